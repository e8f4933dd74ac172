"""Grouped coordinate attention in naive PyTorch, as the equations stand: what the layers are measured against."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import gca


def naive_pool(x: Tensor) -> list[Tensor]:
    """Equations 2 and 3, each statistic of each axis by its own pooling layer."""
    functions: Any = {  # typed by their number of axes
        4: (F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
        5: (F.adaptive_avg_pool3d, F.adaptive_max_pool3d),
    }
    mean, maximum = functions[x.ndim]
    axes = range(2, x.ndim)
    sizes = [[x.shape[axis] if other == axis else 1 for other in axes] for axis in axes]
    return [(mean(x, size) + maximum(x, size)).flatten(2) for size in sizes]  # (B, C, H), (B, C, W)


def naive_gate(x: Tensor, *gates: Tensor) -> Tensor:
    """Equation 6."""
    for axis, gate in enumerate(gates, start=2):
        x = x * gate.view(*gate.shape[:2], *(-1 if other == axis else 1 for other in range(2, x.ndim)))
    return x


class NaiveGCA(gca.GroupedCoordinateAttention):
    """The layer with the same convolutions and weights, around the two functions above."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, *sizes = x.shape
        f = torch.cat(naive_pool(x), dim=2)  # (B, C, H+W)
        f = f.reshape(b * self.groups, c // self.groups, sum(sizes), 1)  # (B*G, C_g, H+W, 1)
        a = self.gate(self.conv2(self.act(self.bn1(self.conv1(f)))))
        return naive_gate(x, *torch.split(a.reshape(b, c, sum(sizes)), sizes, dim=2))
