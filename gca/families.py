"""Which classes of residual blocks are known, and where attention goes in each.

Classes are named by text, so nothing needs importing to look for them. To add a family, add a row; users add theirs
with :func:`gca.register_block`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Any

from torch import nn

SLOTS = "gca.slots"  # where the classes live that give a slot to blocks without one


@dataclass(frozen=True)
class BlockFamily:
    """Where attention goes in one class of residual block.

    Attributes:
        models: The networks that are built of it, for the documentation.
        slot: Attribute that the block calls, unless it is ``None`` or ``nn.Identity``, before the residual sum.
        last_conv: Dotted name of the convolution whose output reaches the slot, or of a Sequential that ends in it.
        slotted: The sub-class that has the slot, or its qualified name, where the class itself has none.
        position: What stands before the slot.
        requires: Attribute of the block that must be true, or a question about it: where it is not, such as without a
            shortcut, a block is no insertion point.
        on_request: Qualified name of the part that is built of these blocks, such as a decoder: they are chosen only
            when that part itself is what is injected, never along with the whole network.
    """

    models: str
    slot: str
    last_conv: str
    slotted: str | type[nn.Module] | None = None
    position: str = "the last norm"
    requires: str | Callable[[nn.Module], bool] | None = None
    on_request: str | None = None


def _ends_in_activation(unit: Any) -> bool:
    """Whether a ``ResidualUnit`` of MONAI ends in a norm or an activation: the last one of a UNet is its head."""
    return hasattr(unit.conv[-1], "adn")


def _without_slot(
    models: str,
    last_conv: str,
    slotted: str,
    position: str = "the last norm",
    requires: str | Callable[[nn.Module], bool] | None = None,
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
    "timm_3d.models.resnet.Bottleneck": BlockFamily("resnet50, ... in 3-D", "se", "conv3"),
    "timm_3d.models.resnet.BasicBlock": BlockFamily("resnet18, ... in 3-D", "se", "conv2"),
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
    "torchvision.models.video.resnet.BasicBlock": _without_slot(
        "r3d_18, mc3_18, r2plus1d_18", "conv2", "torchvision_video.BasicBlock"
    ),
    "torchvision.models.video.resnet.Bottleneck": _without_slot(
        "VideoResNet of bottlenecks", "conv3", "torchvision_video.Bottleneck"
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
    "monai.networks.nets.resnet.ResNetBottleneck": _without_slot("resnet50, ...", "conv3", "monai.ResNetBottleneck"),
    "monai.networks.nets.resnet.ResNetBlock": _without_slot("resnet18, resnet34, ...", "conv2", "monai.ResNetBlock"),
    "monai.networks.blocks.squeeze_and_excitation.SEBlock": BlockFamily(
        "SENet154, SEResNet50, SEResNext50, ...", "se_layer", "conv3.conv"
    ),
    "monai.networks.blocks.segresnet_block.ResBlock": _without_slot("SegResNet", "conv2", "monai.ResBlock", _NO_NORM),
    "monai.networks.nets.segresnet_ds.SegResBlock": _without_slot(
        "SegResNetDS, SegResNetDS2, the encoder of VISTA3D", "conv2", "monai.SegResBlock", _NO_NORM
    ),
    "monai.networks.blocks.dynunet_block.UnetResBlock": _without_slot(
        "DynUNet(res_block=True), UNETR, SwinUNETR", "conv2", "monai.UnetResBlock"
    ),
    "monai.networks.blocks.convolutions.ResidualUnit": _without_slot(
        "UNet with num_res_units, except its head",
        "conv",
        "monai.ResidualUnit",
        "the activation that follows the last norm",
        _ends_in_activation,
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
    "dynamic_network_architectures.building_blocks.residual.BasicBlockD": BlockFamily(
        "ResidualEncoderUNet of nnU-Net's residual encoder plans (M, L, XL), ResidualUNet, ResNets",
        "squeeze_excitation",
        "conv2.conv",
        f"{SLOTS}.nnunet.BasicBlockD",
        "the last norm, before drop path",
    ),
    "dynamic_network_architectures.building_blocks.residual.BottleneckD": BlockFamily(
        "the same with bottlenecks",
        "squeeze_excitation",
        "conv3.conv",
        f"{SLOTS}.nnunet.BottleneckD",
        "the last norm, before drop path",
    ),
}

_BEFORE_CONV3 = "its own SE comes before conv3, and there is no insertion point after it"
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

# Networks of plain convolutions, which have no residual sum for attention to stand before, and what has one.
PLAIN: dict[str, str] = {
    "dynamic_network_architectures.building_blocks.plain_conv_encoder.PlainConvEncoder": (
        "nnU-Net's residual encoder plans have one: nnUNetv2_plan_and_preprocess -pl nnUNetPlannerResEncM, "
        "then -p nnUNetResEncUNetMPlans"
    ),
    "monai.networks.blocks.dynunet_block.UnetBasicBlock": "DynUNet has residual blocks with res_block=True",
    "monai.networks.nets.basic_unet.TwoConv": "take UNet with num_res_units=2, or SegResNet",
    "monai.networks.nets.unet.UNet": "UNet has residual units with num_res_units=2",
}

_registered: set[str] = set()  # of FAMILIES, by users


def qualified(builder: Callable[..., Any]) -> str:
    """Module and name of a class or function; of another callable, those of its class."""
    named = builder if hasattr(builder, "__qualname__") else type(builder)
    return f"{named.__module__}.{named.__qualname__}"


def register_block(
    block: type[nn.Module], *, slot: str = "attention", last_conv: str, slotted: type[nn.Module] | None = None
) -> None:
    """Make a class of residual blocks known to ``inject``, ``injected``, ``summary`` and ``eject``.

    A block has a slot where its ``forward`` calls ``self.<slot>`` unless that is ``None`` (or ``nn.Identity``), after
    the last norm and before the residual sum. Where it has none, give a sub-class that has one as ``slotted``:
    ``inject`` changes the class of the blocks to it, and ``eject`` changes it back. Then sub-classes of torchvision's
    and other slotless blocks can be registered too, whether they have a ``forward`` of their own or not. Define both
    at the top level of a module if networks are to be pickled.

    Registering a class again replaces its entry; a class that the library knows itself cannot be registered.

    Args:
        block: The class of the blocks.
        slot: Attribute that holds attention.
        last_conv: Dotted name, inside the block, of the convolution whose output reaches the slot; attention takes
            its output channels, its device and its dtype.
        slotted: Sub-class of ``block`` whose ``forward`` calls ``self.<slot>`` without asking whether it is there.

    Raises:
        TypeError: If ``block`` is no class of modules, ``slotted`` no sub-class of it with a ``forward`` of its own,
            or a name is no string.
        ValueError: If the library knows ``block`` already, a name is no attribute name, or the ``forward`` that
            should call the slot does not mention it.

    Example:
        >>> gca.register_block(MyBlock, slot="attention", last_conv="conv2")
        >>> gca.inject(MyNetwork())
    """
    if not (isinstance(block, type) and issubclass(block, nn.Module)):
        raise TypeError(f"block must be a class of torch.nn.Module, got {block!r}")
    name = qualified(block)
    if name in REFUSED or (name in FAMILIES and name not in _registered):
        raise ValueError(f"{name} is known to gca already; register classes of your own")
    for key, value in {"slot": slot, "last_conv": last_conv}.items():
        if not isinstance(value, str):
            raise TypeError(f"{key} must be a str, got {value!r}")
        parts = value.split(".") if key == "last_conv" else [value]
        if not all(part.isidentifier() or (key == "last_conv" and part.isdecimal()) for part in parts):
            raise ValueError(f"{key} must be the name of an attribute, got {value!r}")
    if slotted is not None and not (
        isinstance(slotted, type) and issubclass(slotted, block) and "forward" in vars(slotted) and slotted is not block
    ):
        raise TypeError(f"slotted must be a sub-class of {name} with a forward of its own, got {slotted!r}")
    if not _mentions(slotted or block, slot):
        raise ValueError(
            f"no method of {qualified(slotted or block)} mentions self.{slot}, so attention there would never run; "
            "name the attribute that its forward calls, or pass slotted=, a sub-class with such a forward"
        )
    if slotted is not None:
        try:
            block.__new__(block).__class__ = slotted
        except TypeError as error:
            raise TypeError(f"a {name} cannot become a {qualified(slotted)}: {error}; give it no __slots__") from error
    FAMILIES[name] = BlockFamily("registered by the user", slot, last_conv, slotted)
    _registered.add(name)


def _mentions(cls: type, name: str) -> bool:
    """Whether a method of a class, other than its constructor, uses an attribute of this name."""
    methods = [value for parent in cls.__mro__ if parent is not nn.Module for value in vars(parent).items()]
    functions = (inspect.unwrap(value) for key, value in methods if key != "__init__" and callable(value))
    return any(_names(function.__code__, name) for function in functions if hasattr(function, "__code__"))


def _names(code: CodeType, name: str) -> bool:
    """Whether code, or that of a function defined in it, uses an attribute of this name."""
    return name in code.co_names or any(_names(part, name) for part in code.co_consts if isinstance(part, CodeType))
