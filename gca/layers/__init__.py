"""The attention layers, each a drop-in ``nn.Module`` that keeps the shape of its input."""

from gca.layers._gated import GatedLayer
from gca.layers.cbam import CBAM
from gca.layers.coordinate import CoordinateAttention
from gca.layers.grouped_coordinate import GroupedCoordinateAttention
from gca.layers.squeeze_excitation import SE

__all__ = ["CBAM", "SE", "CoordinateAttention", "GatedLayer", "GroupedCoordinateAttention"]
