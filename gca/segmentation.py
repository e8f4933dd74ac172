"""GCA-ResUNet, assembled from segmentation-models-pytorch."""

from collections.abc import Sequence
from typing import Any

from gca.inject import inject

try:
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch.base import SegmentationHead
    from segmentation_models_pytorch.base.initialization import initialize_head
except ModuleNotFoundError as error:
    if error.name != "segmentation_models_pytorch":
        raise
    raise ImportError('gca.GCAResUNet needs segmentation-models-pytorch: pip install "gca-attn[seg]"') from error


class GCAResUNet(smp.Unet):  # type: ignore[misc]  # smp ships no types
    r"""ResNet U-Net with attention after the last norm of every residual block of its encoder.

    A ``smp.Unet`` with the paper's decoder: bilinear upsampling, two 3x3 convolutions with ReLU and without norm per
    stage, a last stage at full resolution, and a 1x1 convolution as head. Everything that works with an ``smp.Unet``
    works with it. Any height and width.

    With the defaults, 9 classes and 3x224x224 it has 48,978,313 parameters and 17.80 G multiply-accumulates counted
    by thop; 43,933,321 and 17.57 G without attention.

    Args:
        classes: Output channels: the classes, background included.
        in_channels: Input channels.
        encoder: Encoder name of segmentation-models-pytorch whose blocks ``gca.inject`` knows, e.g. ``"tu-resnet50"``.
        encoder_weights: ``"imagenet"`` downloads pretrained weights; ``None``, as in the paper, starts at random.
        attention: ``"gca"``, ``"coord"``, ``"cbam"``, ``"se"`` or ``None``.
        attention_options: Options of the attention layer, e.g. ``{"groups": 4}``. JSON-able, so that they are saved.
        decoder_channels: Output channels of the five decoder stages.
        activation: Applied to the output, as in ``smp.Unet``; ``None`` returns logits.

    Shape:
        ``(B, in_channels, H, W)`` -> ``(B, classes, H, W)``.

    Raises:
        ValueError: If the encoder has no known block, or attention is unknown or refuses its options.
        TypeError: If attention does not accept the options.

    Reference:
        Ding and Gao, "GCA-ResUNet: Medical Image Segmentation Using Grouped Coordinate Attention", sections 3.1-3.4.
        The decoder's widths, absence of norm and last stage are those that reproduce its Table 4 without attention
        to the last digit; with attention the parameters come to 48.98 M, 4.00 M more than the 44.98 M reported there,
        while the multiply-accumulates agree.

    Example:
        >>> model = gca.GCAResUNet(classes=9, attention_options={"groups": 4})
        >>> model(torch.randn(1, 3, 224, 224)).shape
        torch.Size([1, 9, 224, 224])
    """

    def __init__(
        self,
        classes: int,
        in_channels: int = 3,
        *,
        encoder: str = "tu-resnet50",
        encoder_weights: str | None = None,
        attention: str | None = "gca",
        attention_options: dict[str, Any] | None = None,
        decoder_channels: Sequence[int] = (512, 256, 128, 64, 64),
        activation: str | None = None,
    ) -> None:
        if attention is None and attention_options:
            raise ValueError(f"attention_options need an attention, got attention=None with {attention_options}")
        super().__init__(
            encoder,
            encoder_weights=encoder_weights,
            decoder_use_norm=False,
            decoder_channels=decoder_channels,
            decoder_interpolation="bilinear",
            in_channels=in_channels,
            classes=classes,
        )
        self.segmentation_head = SegmentationHead(decoder_channels[-1], classes, kernel_size=1, activation=activation)
        initialize_head(self.segmentation_head)
        if attention is not None:
            # From the papers' start, since this is the paper's network and starts at random as a whole.
            inject(self.encoder, attention, **{"identity_init": False, **(attention_options or {})})

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **kwargs: Any) -> "GCAResUNet":
        # The checkpoint holds every weight, so nothing is downloaded for the encoder. The mixin's own default is not
        # strict: a checkpoint without attention would load into a network whose attention stays random.
        kwargs["encoder_weights"] = None
        model: GCAResUNet = super()._from_pretrained(strict=strict, **kwargs)
        return model

    def generate_model_card(self, *args: Any, **kwargs: Any) -> Any:
        card = super().generate_model_card(*args, **kwargs)
        card.text = card.text.replace("import segmentation_models_pytorch as smp", "import gca").replace(
            "smp.from_pretrained", "gca.GCAResUNet.from_pretrained"
        )
        return card
