"""Which residual blocks are known, and where attention goes in each.

Blocks are recognised by the qualified name of the class whose ``forward`` runs, so nothing needs importing to look
for them, and a sub-class that overrides ``forward`` is not mistaken for its parent. To add a family, add a row.
"""

import importlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

SLOTS = "gca.slots"  # where the classes live that give a slot to blocks without one
_WRAPPER = "segmentation_models_pytorch.base.modules.Attention"  # of a decoder block: holds its attention, or Identity


@dataclass(frozen=True)
class BlockFamily:
    """Where attention goes in one class of residual block.

    Attributes:
        models: The networks that are built of it, for the documentation.
        slot: Attribute that the block calls, unless it is ``None`` or ``nn.Identity``, before the residual sum.
        last_conv: Dotted name of the convolution whose output reaches the slot, or of a Sequential that ends in it.
        slotted: Qualified name of the sub-class that has the slot, where the class itself has none.
        position: What stands before the slot.
        requires: Attribute that must be true: without it, such as without a shortcut, a block is no insertion point.
        on_request: Qualified name of the part that is built of these blocks, such as a decoder: they are chosen only
            when that part itself is what is injected, never along with the whole network.
    """

    models: str
    slot: str
    last_conv: str
    slotted: str | None = None
    position: str = "the last norm"
    requires: str | None = None
    on_request: str | None = None


def _without_slot(
    models: str, last_conv: str, slotted: str, position: str = "the last norm", requires: str | None = None
) -> BlockFamily:
    return BlockFamily(models, "attention", last_conv, f"{SLOTS}.{slotted}", position, requires)


_NO_NORM = "the last convolution: a pre-activation block has no norm after it"
_ACTIVATION = "the activation that follows its only norm"
_NO_SUM = "the last activation: a decoder block has no residual sum"

FAMILIES: dict[str, BlockFamily] = {
    "timm.models.resnet.Bottleneck": BlockFamily(
        "resnet, resnext, wide_resnet, resnet-d, resnet-rs, resnetaa, resnetblur, resnet_gn, seresnet, ecaresnet, "
        "hrnet, vit_base_resnet50d",
        "se",
        "conv3",
    ),
    "timm.models.resnet.BasicBlock": BlockFamily("resnet18, resnet34, seresnet18, ..., hrnet", "se", "conv2"),
    "timm.models.res2net.Bottle2neck": BlockFamily("res2net, res2next", "se", "conv3"),
    "timm.models.sknet.SelectiveKernelBottleneck": BlockFamily("skresnet50, skresnext50", "se", "conv3.conv"),
    "timm.models.sknet.SelectiveKernelBasic": BlockFamily("skresnet18, skresnet34", "se", "conv2.conv"),
    "timm.models.resnest.ResNestBottleneck": _without_slot("resnest", "conv3", "timm.ResNestBottleneck"),
    "timm.models.resnetv2.PreActBottleneck": _without_slot("resnetv2", "conv3", "timm.PreActBottleneck", _NO_NORM),
    "timm.models.resnetv2.PreActBasic": _without_slot(
        "resnetv2_18, resnetv2_34", "conv2", "timm.PreActBasic", _NO_NORM
    ),
    "timm.models.resnetv2.Bottleneck": _without_slot("the ResNets inside hybrid ViTs", "conv3", "timm.Bottleneck"),
    "timm.models.senet.Bottleneck": BlockFamily("legacy_senet154, legacy_seresnet50, ...", "se_module", "conv3"),
    "timm.models.senet.SEResNetBlock": BlockFamily(
        "legacy_seresnet18, legacy_seresnet34", "se_module", "conv2", position="the ReLU that follows the last norm"
    ),
    "timm.models.byobnet.BottleneckBlock": BlockFamily(
        "resnet33ts, resnet51q, resnet50_clip, gcresnet50t, seresnext26ts, regnetz, gernet, mobilevit, ...",
        "attn_last",
        "conv3_1x1.conv",
    ),
    "timm.models.byobnet.BasicBlock": BlockFamily("gernet", "attn_last", "conv2_kxk.conv"),
    "timm.models.byobnet.DarkBlock": BlockFamily("test_byobnet", "attn_last", "conv2_kxk.conv"),
    "timm.models.byobnet.EdgeBlock": BlockFamily("resnet61q", "attn_last", "conv2_1x1.conv"),
    "timm.models.byobnet.SelfAttnBlock": _without_slot(
        "botnet, halonet, lambda_resnet, lamhalobotnet, ...", "conv3_1x1.conv", "timm.SelfAttnBlock"
    ),
    "timm.models.cspnet.BottleneckBlock": BlockFamily("cspresnet, cspresnext, cs3sedarknet_xdw", "attn3", "conv3.conv"),
    "timm.models.tresnet.BasicBlock": BlockFamily("tresnet, stages 1 and 2", "se", "conv2.conv"),
    "timm.models.dla.DlaBasic": _without_slot("dla34", "conv2", "timm.DlaBasic"),
    "timm.models.dla.DlaBottleneck": _without_slot("dla60, dla102, dla169, dla60x, ...", "conv3", "timm.DlaBottleneck"),
    "timm.models.dla.DlaBottle2neck": _without_slot("dla60_res2net, dla60_res2next", "conv3", "timm.DlaBottle2neck"),
    "timm.models._efficientnet_blocks.InvertedResidual": _without_slot(
        "mobilenetv2, mobilenetv3, efficientnet, efficientnetv2, mnasnet, semnasnet, spnasnet, fbnetc, fbnetv3, "
        "tinynet, hardcorenas",
        "conv_pwl",
        "timm_efficientnet.InvertedResidual",
        requires="has_skip",
    ),
    "timm.models._efficientnet_blocks.DepthwiseSeparableConv": _without_slot(
        "the first stage of many of these", "conv_pw", "timm_efficientnet.DepthwiseSeparableConv", requires="has_skip"
    ),
    "timm.models._efficientnet_blocks.EdgeResidual": _without_slot(
        "efficientnetv2, efficientnet_es, mobilenet_edgetpu, mobilenetv5",
        "conv_pwl",
        "timm_efficientnet.EdgeResidual",
        requires="has_skip",
    ),
    "timm.models._efficientnet_blocks.UniversalInvertedResidual": _without_slot(
        "mobilenetv4, mobilenetv5", "pw_proj.conv", "timm_efficientnet.UniversalInvertedResidual", requires="has_skip"
    ),
    "timm.models._efficientnet_blocks.ConvBnAct": _without_slot(
        "efficientnetv2, the first stage", "conv", "timm_efficientnet.ConvBnAct", _ACTIVATION, "has_skip"
    ),
    "torchvision.models.resnet.Bottleneck": _without_slot(
        "resnet, resnext, wide_resnet, FCN, DeepLabV3, Faster and Mask R-CNN, ...; resnet50, resnext50_32x4d, ... of "
        "segmentation-models-pytorch",
        "conv3",
        "torchvision.Bottleneck",
    ),
    "torchvision.models.resnet.BasicBlock": _without_slot(
        "the same: resnet18, resnet34", "conv2", "torchvision.BasicBlock"
    ),
    "torchvision.models.mobilenetv2.InvertedResidual": _without_slot(
        "mobilenet_v2, also of segmentation-models-pytorch",
        "conv",
        "torchvision.MobileNetV2Residual",
        requires="use_res_connect",
    ),
    "torchvision.models.mobilenetv3.InvertedResidual": _without_slot(
        "mobilenet_v3, LR-ASPP, DeepLabV3, SSDLite, ...",
        "block",
        "torchvision.MobileNetV3Residual",
        requires="use_res_connect",
    ),
    "torchvision.models.efficientnet.MBConv": _without_slot(
        "efficientnet, efficientnet_v2", "block", "torchvision.MBConv", requires="use_res_connect"
    ),
    "torchvision.models.efficientnet.FusedMBConv": _without_slot(
        "efficientnet_v2",
        "block",
        "torchvision.FusedMBConv",
        "the last norm; in the first stage, which does not expand, the activation that follows its only norm",
        "use_res_connect",
    ),
    "torchvision.models.mnasnet._InvertedResidual": _without_slot(
        "mnasnet", "layers", "torchvision.MNASNetResidual", requires="apply_residual"
    ),
    "segmentation_models_pytorch.encoders._senet.Bottleneck": BlockFamily(
        "senet154, se_resnet50, se_resnext50_32x4d, ...", "se_module", "conv3"
    ),
    "segmentation_models_pytorch.encoders._efficientnet.MBConvBlock": _without_slot(
        "efficientnet-b0, ...", "_project_conv", "smp.MBConvBlock", requires="_has_drop_connect"
    ),
    "segmentation_models_pytorch.decoders.unet.decoder.UnetDecoderBlock": BlockFamily(
        "the decoder of Unet",
        "attention2",
        "conv2",
        position=_NO_SUM,
        on_request="segmentation_models_pytorch.decoders.unet.decoder.UnetDecoder",
    ),
    "segmentation_models_pytorch.decoders.unetplusplus.decoder.DecoderBlock": BlockFamily(
        "the decoder of UnetPlusPlus",
        "attention2",
        "conv2",
        position=_NO_SUM,
        requires="conv2",
        on_request="segmentation_models_pytorch.decoders.unetplusplus.decoder.UnetPlusPlusDecoder",
    ),
    "monai.networks.nets.resnet.ResNetBottleneck": _without_slot(
        "resnet50, ... with spatial_dims=2", "conv3", "monai.ResNetBottleneck"
    ),
    "monai.networks.nets.resnet.ResNetBlock": _without_slot(
        "resnet18, resnet34, ... with spatial_dims=2", "conv2", "monai.ResNetBlock"
    ),
    "monai.networks.blocks.squeeze_and_excitation.SEBlock": BlockFamily(
        "SENet154, SEResNet50, SEResNext50, ... with spatial_dims=2", "se_layer", "conv3.conv"
    ),
    "transformers.models.resnet.modeling_resnet.ResNetBottleNeckLayer": _without_slot(
        "ResNetModel and its heads", "layer.2.convolution", "transformers.ResNetBottleNeckLayer"
    ),
    "transformers.models.resnet.modeling_resnet.ResNetBasicLayer": _without_slot(
        'the same with layer_type="basic"', "layer.1.convolution", "transformers.ResNetBasicLayer"
    ),
    "transformers.models.rt_detr.modeling_rt_detr_resnet.RTDetrResNetBottleNeckLayer": _without_slot(
        "the backbone of RT-DETR", "layer.2.convolution", "transformers.RTDetrResNetBottleNeckLayer"
    ),
    "transformers.models.rt_detr.modeling_rt_detr_resnet.RTDetrResNetBasicLayer": _without_slot(
        'the same with layer_type="basic"', "layer.1.convolution", "transformers.RTDetrResNetBasicLayer"
    ),
    "transformers.models.bit.modeling_bit.BitPreActivationBottleneckLayer": _without_slot(
        "BitModel and its heads", "conv3", "transformers.BitPreActivationBottleneckLayer", _NO_NORM
    ),
    "transformers.models.bit.modeling_bit.BitBottleneckLayer": _without_slot(
        'the same with layer_type="bottleneck", as in hybrid ViTs and DPT', "conv3", "transformers.BitBottleneckLayer"
    ),
}

_BEFORE_CONV3 = "its own se stands before conv3, and it has no place for attention after"
_ACTIVATED = "an activation stands between its last norm and the residual sum"
_FUSED = "its parallel branches are each normalised and fuse into one convolution for deployment"
_REGNET = "attention stands before its last convolution, as in its Y layers, and it has no place for any after"
_POOLED = "where it strides, its branch ends in a pooling that follows the last norm"
_CONCATENATED = "its branches are concatenated: there is no residual sum"
_PART = "only a part of its output is added to the shortcut, the rest is concatenated"
_QUANTIZED = "it is built for quantization, which fuses its last norm away and adds in a quantized operator"

# Blocks that look like the ones above, and why they are left alone.
REFUSED: dict[str, str] = {
    "timm.models.regnet.Bottleneck": _BEFORE_CONV3,
    "timm.models.regnet.PreBottleneck": _BEFORE_CONV3,
    "timm.models.tresnet.Bottleneck": _BEFORE_CONV3,
    "timm.models.nfnet.NormFreeBlock": "it has no norm and keeps the variance of its branch by design",
    "timm.models.cspnet.DarkBlock": _ACTIVATED,
    "timm.models.cspnet.EdgeBlock": _ACTIVATED,
    "timm.models.hgnet.HighPerfGpuBlock": _ACTIVATED,
    "timm.models.vovnet.OsaBlock": _ACTIVATED,
    "timm.models.byobnet.RepVggBlock": _FUSED,
    "timm.models.byobnet.MobileOneBlock": _FUSED,
    "timm.models.dpn.DualPathBlock": _PART,
    "timm.models.xception.Block": _POOLED,
    "timm.models._efficientnet_blocks.CondConvResidual": "each image has convolutions of its own, mixed of experts",
    "torchvision.models.regnet.ResBottleneckBlock": _BEFORE_CONV3,
    "torchvision.models.quantization.resnet.QuantizableBottleneck": _QUANTIZED,
    "torchvision.models.quantization.resnet.QuantizableBasicBlock": _QUANTIZED,
    "torchvision.models.quantization.mobilenetv2.QuantizableInvertedResidual": _QUANTIZED,
    "torchvision.models.quantization.mobilenetv3.QuantizableInvertedResidual": _QUANTIZED,
    "torchvision.models.shufflenetv2.InvertedResidual": _CONCATENATED,
    "torchvision.models.quantization.shufflenetv2.QuantizableInvertedResidual": _CONCATENATED,
    "segmentation_models_pytorch.encoders._dpn.DualPathBlock": _PART,
    "segmentation_models_pytorch.encoders.mobileone.MobileOneBlock": _FUSED,
    "segmentation_models_pytorch.encoders._xception.Block": _POOLED,
    "transformers.models.regnet.modeling_regnet.RegNetXLayer": _REGNET,
    "transformers.models.regnet.modeling_regnet.RegNetYLayer": _REGNET,
}


@dataclass(frozen=True)
class Block:
    """A residual block inside a model: known, and then it has a family, or refused, and then it has a reason."""

    name: str
    module: nn.Module
    family: BlockFamily | None
    refusal: str = ""

    @property
    def slot(self) -> str:
        """Name of the attribute that holds attention."""
        assert self.family is not None
        return self.family.slot

    @property
    def layer_name(self) -> str:
        """Qualified name of the slot."""
        return f"{self.name}.{self.slot}" if self.name else self.slot

    @property
    def occupant(self) -> nn.Module | None:
        """What the slot holds; ``None`` where it is empty, which ``nn.Identity`` counts as, also in smp's wrapper."""
        occupant: nn.Module | None = getattr(self.module, self.slot, None)
        inside = occupant.attention if occupant is not None and qualified(type(occupant)) == _WRAPPER else occupant
        return None if isinstance(inside, nn.Identity) else occupant

    def slotted_class(self) -> type[nn.Module]:
        """The class whose ``forward`` calls the slot: the block's own, or its sub-class in ``gca.slots``.

        That is imported on demand; the library of its parent is there, since the block is.
        """
        assert self.family is not None
        if self.family.slotted is None:
            return type(self.module)
        module, _, name = self.family.slotted.rpartition(".")
        cls: type[nn.Module] = getattr(importlib.import_module(module), name)
        return cls

    @property
    def weight(self) -> Tensor:
        """Weight of the last convolution: attention takes its output channels, its device and its dtype."""
        assert self.family is not None
        last = self.module.get_submodule(self.family.last_conv)
        if isinstance(last, nn.Sequential):
            last = [last, *(child for child in last.modules() if isinstance(child, _ConvNd))][-1]
        weight = getattr(last, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 4:
            of_shape = f"one of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else ""
            got = of_shape or "a quantized or packed one, or several side by side"
            raise ValueError(
                f"attention is for two-dimensional images, but block {self.name!r} ends in a convolution whose weight "
                f"is not (C_out, C_in, kH, kW): {got}"
            )
        return weight

    @property
    def stage(self) -> int | None:
        """Stage, counted from 1, as the name of the block gives it; ``None`` outside a stage.

        ``layer1``, ``stage1`` and ``level1`` carry it; in ``stages.0``, and in the ``blocks.0.0`` of timm's inverted
        residuals, the count starts from 0. ``features_only`` models have an underscore in place of the dot.
        """
        pattern = r"(?:^|[._])(layer|stage|level|stages[._]|blocks\.(?=\d+\.\d+$))(\d+)(?=\.|$)"
        found = re.findall(pattern, self.name)
        if not found:
            return None
        word, number = found[-1]
        return int(number) + 1 if word.startswith(("stages", "blocks")) else int(number)


def qualified(cls: type) -> str:
    """Module and name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _identify(name: str, module: nn.Module) -> Block | None:
    # A block whose slot is open runs the forward of its sub-class in gca.slots; it is still a block of its parent's.
    owner = next(c for c in type(module).__mro__ if "forward" in vars(c) and not c.__module__.startswith(SLOTS))
    known = qualified(owner)
    if known in REFUSED:
        return Block(name, module, None, REFUSED[known])
    family = FAMILIES.get(known)
    if family and family.requires and not getattr(module, family.requires):
        return None
    if family and family.slotted and qualified(type(module)) not in (known, family.slotted):
        reason = f"it inherits its forward from {known}, which has no slot; only that class itself can be given one"
        return Block(name, module, None, reason)
    return Block(name, module, family) if family else None


def find_blocks(model: nn.Module) -> Iterator[Block]:
    """Every known and every refused block of a model, in the order of ``named_modules``."""
    for name, module in model.named_modules():
        block = _identify(name, module)
        if block is not None:
            yield block


def requested(model: nn.Module, block: Block) -> bool:
    """Whether injecting a model means this block too: one on request only if the model is its part, or the block."""
    family = block.family
    if family is None or family.on_request is None:
        return True
    return block.module is model or family.on_request in map(qualified, type(model).__mro__)


def composites(model: nn.Module) -> list[str]:
    """The three most frequent classes of modules that hold others, with how many there are, for error messages."""
    counts = Counter(
        qualified(type(module)) for module in model.modules() if module is not model and _composite(module)
    )
    return [f"{name} ({count})" for name, count in counts.most_common(3)]


def _composite(module: nn.Module) -> bool:
    # Not torch's own containers, nor its layers with parts added, such as timm's norm with its activation.
    layers = [cls for cls in type(module).__mro__ if cls.__module__.startswith("torch.nn.modules.")]
    torch_only = layers[0] is type(module) or {cls.__module__.rpartition(".")[2] for cls in layers} - {
        "module",
        "container",
    }
    return any(module.children()) and not torch_only
