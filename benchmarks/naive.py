"""Grouped coordinate attention in naive PyTorch, as the equations stand: what the layers are measured against."""

import torch
import torch.nn.functional as F
from torch import Tensor

import gca


def naive_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Equations 2 and 3, each statistic by its own pooling layer."""
    h, w = x.shape[2:]
    f_h = F.adaptive_avg_pool2d(x, (h, 1)) + F.adaptive_max_pool2d(x, (h, 1))  # (B, C, H, 1)
    f_w = F.adaptive_avg_pool2d(x, (1, w)) + F.adaptive_max_pool2d(x, (1, w))  # (B, C, 1, W)
    return f_h.squeeze(3), f_w.squeeze(2)


def naive_gate(x: Tensor, a_h: Tensor, a_w: Tensor) -> Tensor:
    """Equation 6."""
    return x * a_h.unsqueeze(3) * a_w.unsqueeze(2)


class NaiveGCA(gca.GroupedCoordinateAttention):
    """The layer with the same convolutions and weights, around the two functions above."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        f = torch.cat(naive_pool(x), dim=2).unsqueeze(3)  # (B, C, H+W, 1)
        f = f.reshape(b * self.groups, c // self.groups, h + w, 1)  # (B*G, C_g, H+W, 1)
        a = self.gate(self.conv2(self.act(self.bn1(self.conv1(f)))))
        a_h, a_w = torch.split(a.reshape(b, c, h + w), [h, w], dim=2)
        return naive_gate(x, a_h, a_w)
