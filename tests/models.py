"""One small network per family of residual blocks, for the tests of the injector."""

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


def _monai(block: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from monai.networks.nets import resnet

        return resnet.ResNet(block, [1, 1, 1, 1], [8, 16, 24, 32], spatial_dims=2, n_input_channels=3, num_classes=10)

    return build


def _transformers(kind: str) -> Callable[[], nn.Module]:
    class Logits(nn.Module):
        """Returns a tensor in place of an output object, so that it compares like the others."""

        def __init__(self) -> None:
            super().__init__()
            from transformers import ResNetConfig, ResNetForImageClassification

            sizes = {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 2, 1, 1]}
            self.model = ResNetForImageClassification(ResNetConfig(**sizes, layer_type=kind))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x).logits

    return Logits


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
    "torchvision resnet18": (lambda: torchvision.models.resnet18(num_classes=10), 8),
    "torchvision resnext50": (lambda: torchvision.models.resnext50_32x4d(num_classes=10), 16),
    "smp resnet34": (_smp("resnet34"), 16),
    "smp se_resnet50": (_smp("se_resnet50"), 16),
    "smp tu-skresnet18": (_smp("tu-skresnet18"), 8),
    "smp tu-resnest14d": (_smp("tu-resnest14d"), 4),
    "monai basic": (_monai("basic"), 4),
    "monai bottleneck": (_monai("bottleneck"), 4),
    "transformers basic": (_transformers("basic"), 5),
    "transformers bottleneck": (_transformers("bottleneck"), 5),
}
