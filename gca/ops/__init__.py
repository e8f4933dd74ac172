"""The two operations every coordinate layer is made of: pool along both axes, gate along both axes.

``reference`` states each operation as a formula and defines what is correct; ``eager`` is what the layers run.
"""

from gca.ops.eager import POOLS, axis_gate, axis_pool

__all__ = ["POOLS", "axis_gate", "axis_pool"]
