"""Those residual blocks of timm that have no slot of their own, with one."""

import torch
from timm.models import byobnet, dla, resnest, resnetv2
from torch import Tensor


class DlaBasic(dla.DlaBasic):
    """DLA's basic block with attention after ``bn2``."""

    def forward(self, x: Tensor, shortcut: Tensor | None = None, children: list[Tensor] | None = None) -> Tensor:
        if shortcut is None:
            shortcut = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.attention(self.bn2(self.conv2(out)))
        out += shortcut
        return self.relu(out)


class DlaBottleneck(dla.DlaBottleneck):
    """DLA's bottleneck with attention after ``bn3``."""

    def forward(self, x: Tensor, shortcut: Tensor | None = None, children: list[Tensor] | None = None) -> Tensor:
        if shortcut is None:
            shortcut = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.attention(self.bn3(self.conv3(out)))
        out += shortcut
        return self.relu(out)


class DlaBottle2neck(dla.DlaBottle2neck):
    """DLA's Res2Net bottleneck with attention after ``bn3``."""

    def forward(self, x: Tensor, shortcut: Tensor | None = None, children: list[Tensor] | None = None) -> Tensor:
        if shortcut is None:
            shortcut = x
        out = self.relu(self.bn1(self.conv1(x)))

        splits = torch.split(out, self.width, 1)
        scales = []
        sp = splits[0]
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns)):  # noqa: B905  # TorchScript knows no strict=
            sp = splits[i] if i == 0 or self.is_first else sp + splits[i]
            sp = self.relu(bn(conv(sp)))
            scales.append(sp)
        if self.scale > 1:
            scales.append(splits[-1] if self.pool is None else self.pool(splits[-1]))

        out = self.attention(self.bn3(self.conv3(torch.cat(scales, 1))))
        out += shortcut
        return self.relu(out)


class ResNestBottleneck(resnest.ResNestBottleneck):
    """ResNeSt's bottleneck with attention after ``bn3``."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        out = self.act1(self.bn1(self.conv1(x)))
        if self.avd_first is not None:
            out = self.avd_first(out)
        out = self.act2(self.drop_block(self.bn2(self.conv2(out))))
        if self.avd_last is not None:
            out = self.avd_last(out)
        out = self.attention(self.bn3(self.conv3(out)))
        if self.drop_path is not None:
            x = self.drop_path(x)
        if self.downsample is not None:
            shortcut = self.downsample(x)
        out += shortcut
        return self.act3(out)


class PreActBasic(resnetv2.PreActBasic):
    """The pre-activation basic block with attention after its last convolution, which no norm follows."""

    def forward(self, x: Tensor) -> Tensor:
        preact = self.norm1(x)
        shortcut = x if self.downsample is None else self.downsample(preact)
        x = self.conv1(preact)
        x = self.attention(self.conv2(self.norm2(x)))
        return self.drop_path(x) + shortcut


class PreActBottleneck(resnetv2.PreActBottleneck):
    """The pre-activation bottleneck with attention after its last convolution, which no norm follows."""

    def forward(self, x: Tensor) -> Tensor:
        preact = self.norm1(x)
        shortcut = x if self.downsample is None else self.downsample(preact)
        x = self.conv1(preact)
        x = self.conv2(self.norm2(x))
        x = self.attention(self.conv3(self.norm3(x)))
        return self.drop_path(x) + shortcut


class Bottleneck(resnetv2.Bottleneck):
    """The bottleneck of the hybrid vision transformers with attention after ``norm3``."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.norm1(self.conv1(x))
        x = self.norm2(self.conv2(x))
        x = self.attention(self.norm3(self.conv3(x)))
        return self.act3(self.drop_path(x) + shortcut)


class SelfAttnBlock(byobnet.SelfAttnBlock):
    """The bottleneck with self-attention in its middle, with attention after ``conv3_1x1`` and its norm."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.conv2_kxk(self.conv1_1x1(x))
        x = self.post_attn(self.self_attn(x))
        x = self.drop_path(self.attention(self.conv3_1x1(x)))
        if self.shortcut is not None:
            x = x + self.shortcut(shortcut)
        return self.act(x)
