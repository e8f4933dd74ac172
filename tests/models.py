"""One small network per family of residual blocks, for the tests of the injector."""

import warnings
from collections.abc import Callable

import timm
import torch
import torchvision
from torch import nn


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=10, **options)


def _hybrid() -> nn.Module:
    return timm.models.resnetv2.ResNetV2([1, 1, 1, 1], channels=(128, 256, 384, 512), preact=False, num_classes=10)


def _smp(encoder: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import segmentation_models_pytorch as smp

        return smp.Unet(encoder, encoder_weights=None, classes=2)

    return build


def _monai(block: str, spatial_dims: int = 2) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from monai.networks.nets import resnet

        sizes = [1, 1, 1, 1], [8, 16, 24, 32]
        return resnet.ResNet(block, *sizes, spatial_dims=spatial_dims, n_input_channels=3, num_classes=10)

    return build


def _monai_senet() -> nn.Module:
    from monai.networks.nets import senet

    return senet.SENet(2, 3, "se_resnetxt_bottleneck", [1, 1, 1, 1], 32, 16, inplanes=64, num_classes=10)


class Tensors(nn.Module):
    """Returns a tensor in place of an output object, so that a network of transformers compares like the others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.model(x)
        return output.feature_maps[-1] if hasattr(output, "feature_maps") else output.logits


def _transformers(family: str, kind: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        sizes = {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 2, 1, 1], "layer_type": kind}
        if family == "rt_detr":
            config = transformers.RTDetrResNetConfig(**{**sizes, "embedding_size": 16})
            return Tensors(transformers.RTDetrResNetBackbone(config))
        if family == "bit":
            sizes["hidden_sizes"] = [32, 32, 64, 64]
            config = transformers.BitConfig(**sizes, num_groups=4, drop_path_rate=0.2)
            return Tensors(transformers.BitForImageClassification(config))
        return Tensors(transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes)))

    return build


def _torchvision(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, num_classes=10, **options)


def _efficientnet(*arch: str) -> Callable[[], nn.Module]:
    """timm's EfficientNet of a few narrow blocks, one stage a string."""

    def build() -> nn.Module:
        from timm.models._efficientnet_builder import decode_arch_def

        stages = decode_arch_def([[blocks] for blocks in arch])
        return timm.models.EfficientNet(stages, num_classes=10, num_features=32, stem_size=8, drop_path_rate=0.2)

    return build


def _torchvision_efficientnet() -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig

    stages = [
        FusedMBConvConfig(1, 3, 1, 16, 16, 2),
        FusedMBConvConfig(4, 3, 2, 16, 24, 2),
        MBConvConfig(4, 3, 1, 24, 24, 2),
        MBConvConfig(4, 5, 2, 24, 32, 2),
    ]
    return EfficientNet(stages, dropout=0, stochastic_depth_prob=0.2, num_classes=10, last_channel=64)


def _decoder(architecture: str) -> Callable[[], nn.Module]:
    """smp's decoder alone, on images of several sizes in place of an encoder's features."""

    def build() -> nn.Module:
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
        from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder

        parent = {"unet": UnetDecoder, "unetplusplus": UnetPlusPlusDecoder}[architecture]

        class Decoder(parent):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = x[:, [0, 1, 2, 2]]  # four channels: an even number for layers of groups
                return super().forward([nn.functional.avg_pool2d(x, 2**level) for level in range(4)])

        return Decoder(encoder_channels=(4, 4, 4, 4), decoder_channels=(24, 16, 8), n_blocks=3)

    return build


def _monai_3d(name: str, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from monai.networks import nets

        return getattr(nets, name)(**options)

    return build


class Logits(nn.Module):
    """Returns the last of several outputs, so that a network of deep supervision compares like the others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.model(x)
        return output[0] if isinstance(output, (list, tuple)) else output


def _segresnet_ds() -> nn.Module:
    from monai.networks.nets import SegResNetDS

    return Logits(SegResNetDS(init_filters=8, in_channels=3, blocks_down=(1, 2), dsdepth=2, norm="INSTANCE"))


def _swin_unetr() -> nn.Module:
    from monai.networks.nets import SwinUNETR

    with torch.device("cpu"):  # it computes with numbers
        return SwinUNETR(3, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), spatial_dims=2)


def _dynunet() -> nn.Module:
    from monai.networks.nets import DynUNet

    sizes = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [8, 12, 16]}
    return DynUNet(3, 3, 2, **sizes, res_block=True)


def _video(name: str, bottleneck: bool = False) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision.models.video import resnet

        builders = {
            "r3d": [resnet.Conv3DSimple] * 4,
            "mc3": [resnet.Conv3DSimple] + [resnet.Conv3DNoTemporal] * 3,
            "r2plus1d": [resnet.Conv2Plus1D] * 4,
        }
        block = resnet.Bottleneck if bottleneck else resnet.BasicBlock
        stem = resnet.R2Plus1dStem if name == "r2plus1d" else resnet.BasicStem
        return resnet.VideoResNet(block, builders[name], [1, 1, 1, 1], stem, num_classes=10)

    return build


def _timm_3d(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch.jit.*")  # what it scripts when it is imported
            from timm_3d.models import resnet

        block = {"basic": resnet.BasicBlock, "bottleneck": resnet.Bottleneck}[name]
        return resnet.ResNet(block, [1, 1, 1, 1], num_classes=10)

    return build


# name -> how to build it, residual blocks in it
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (_timm("resnet18"), 8),
    "resnet14t": (_timm("resnet14t"), 4),
    "resnet50_gn": (_timm("resnet50_gn"), 16),
    "resnetblur18": (_timm("resnetblur18"), 8),
    "resnext50_32x4d": (_timm("resnext50_32x4d"), 16),
    "seresnet18": (_timm("seresnet18"), 8),
    "ecaresnet26t": (_timm("ecaresnet26t"), 8),
    "res2net50_14w_8s": (_timm("res2net50_14w_8s"), 16),
    "skresnet18": (_timm("skresnet18"), 8),
    "skresnet50": (_timm("skresnet50"), 16),
    "resnest14d": (_timm("resnest14d"), 4),
    "resnetv2_18": (_timm("resnetv2_18"), 8),
    "resnetv2_50": (_timm("resnetv2_50", drop_path_rate=0.2), 16),
    "hybrid ViT's ResNet": (_hybrid, 4),
    "legacy_seresnet18": (_timm("legacy_seresnet18"), 8),
    "legacy_seresnext26_32x4d": (_timm("legacy_seresnext26_32x4d"), 8),
    "hrnet_w18_small": (_timm("hrnet_w18_small"), 23),
    "gernet_s": (_timm("gernet_s"), 14),
    "test_byobnet": (_timm("test_byobnet"), 4),
    "seresnext26ts": (_timm("seresnext26ts"), 8),
    "lambda_resnet26t": (_timm("lambda_resnet26t"), 8),
    "cspresnet50": (_timm("cspresnet50"), 13),
    "dla34": (_timm("dla34"), 12),
    "dla46_c": (_timm("dla46_c"), 12),
    "dla60_res2net": (_timm("dla60_res2net"), 16),
    "efficientnet": (_efficientnet("ds_r2_k3_s1_e1_c8_se0.25", "ir_r2_k3_s2_e2_c16", "ir_r2_k5_s1_e3_c16_se0.25"), 5),
    "efficientnetv2": (_efficientnet("cn_r2_k3_s1_e1_c8_skip", "er_r3_k3_s2_e2_c16", "ir_r2_k3_s2_e2_c24"), 5),
    "mobilenetv4_conv_small_035": (_timm("mobilenetv4_conv_small_035"), 10),
    "torchvision resnet18": (_torchvision("resnet18"), 8),
    "torchvision resnext50": (_torchvision("resnext50_32x4d"), 16),
    "torchvision mobilenet_v2": (_torchvision("mobilenet_v2", width_mult=0.25), 11),
    "torchvision mobilenet_v3_small": (_torchvision("mobilenet_v3_small", reduced_tail=True), 6),
    "torchvision efficientnet": (_torchvision_efficientnet, 6),
    "torchvision mnasnet": (_torchvision("mnasnet0_5"), 10),
    "smp resnet34": (_smp("resnet34"), 16),
    "smp se_resnet50": (_smp("se_resnet50"), 16),
    "smp mobilenet_v2": (_smp("mobilenet_v2"), 10),
    "smp efficientnet-b0": (_smp("efficientnet-b0"), 9),
    "smp decoder of Unet": (_decoder("unet"), 3),
    "smp decoder of UnetPlusPlus": (_decoder("unetplusplus"), 4),
    "smp tu-skresnet18": (_smp("tu-skresnet18"), 8),
    "smp tu-resnest14d": (_smp("tu-resnest14d"), 4),
    "monai basic": (_monai("basic"), 4),
    "monai bottleneck": (_monai("bottleneck"), 4),
    "monai senet": (_monai_senet, 4),
    "monai SwinUNETR": (_swin_unetr, 10),
    "transformers basic": (_transformers("resnet", "basic"), 5),
    "transformers bottleneck": (_transformers("resnet", "bottleneck"), 5),
    "transformers rt_detr basic": (_transformers("rt_detr", "basic"), 5),
    "transformers rt_detr bottleneck": (_transformers("rt_detr", "bottleneck"), 5),
    "transformers bit": (_transformers("bit", "preactivation"), 5),
    "transformers bit bottleneck": (_transformers("bit", "bottleneck"), 5),
}

# The same for networks that take volumes.
VOLUMES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "monai basic 3-D": (_monai("basic", 3), 4),
    "monai bottleneck 3-D": (_monai("bottleneck", 3), 4),
    "monai SegResNet 3-D": (
        _monai_3d("SegResNet", init_filters=8, in_channels=3, blocks_down=(1, 2), blocks_up=(1,), dropout_prob=0.2),
        4,
    ),
    "monai SegResNetDS 3-D": (_segresnet_ds, 4),
    "monai DynUNet 3-D": (_dynunet, 3),
    "monai UNETR 3-D": (
        _monai_3d(
            "UNETR", in_channels=3, out_channels=2, img_size=16, feature_size=8, hidden_size=16, mlp_dim=16, num_heads=2
        ),
        8,
    ),
    "monai UNet 3-D": (
        _monai_3d(
            "UNet", spatial_dims=3, in_channels=3, out_channels=2, channels=(8, 12, 16), strides=(2, 2), num_res_units=2
        ),
        4,
    ),
    "torchvision r3d 3-D": (_video("r3d"), 4),
    "torchvision mc3 3-D": (_video("mc3"), 4),
    "torchvision r2plus1d 3-D": (_video("r2plus1d"), 4),
    "torchvision bottleneck 3-D": (_video("r3d", bottleneck=True), 4),
    "timm_3d basic 3-D": (_timm_3d("basic"), 4),
    "timm_3d bottleneck 3-D": (_timm_3d("bottleneck"), 4),
}
