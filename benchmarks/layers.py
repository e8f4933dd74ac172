"""Time and peak memory of attention layers, and of the two operations they are made of.

    python benchmarks/layers.py                       # CPU, the four stages of a ResNet-50, both layouts, float32
    python benchmarks/layers.py --device cuda --batch 32 --dtypes float32 bfloat16
    python benchmarks/layers.py --device cuda --batch 32 --dtypes float32 bfloat16 --graphs  # the GPU's time alone
    python benchmarks/layers.py --compiled            # also under torch.compile
    python benchmarks/layers.py --dims 3 --batch 2    # volumes, the stages of a 3-D U-Net at a patch of 64x64x64

Every contender is checked against the reference formulas in float64 before it is timed. "speed-up" is over the
equations in naive PyTorch, with adaptive pools, in NCHW (NCDHW) whatever the layout of the contender.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.layers.eca import EcaModule
from torch import Tensor, nn

import gca
from contenders import timm_attention
from gca import ops
from gca.ops import autograd
from gca.ops.plain import combine
from naive import NaiveGCA, naive_gate, naive_pool
from plots import plot_layers
from timing import (
    Row,
    add_options,
    exact_convolutions,
    geometric_mean,
    interleave,
    machine,
    peak_bytes,
    save,
    set_up,
    show,
)

# Channels and side, by the number of spatial axes: the stages of a ResNet-50, and of a 3-D U-Net.
STAGES = {2: ((256, 56), (512, 28), (1024, 14), (2048, 7)), 3: ((32, 64), (64, 32), (128, 16), (320, 8))}
LAYOUTS = {
    2: {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last},
    3: {"NCDHW": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d},
}
TIMM = timm_attention()  # for images
Call = Callable[[], object]
Function = Callable[..., tuple[Tensor, ...]]


def fast(device: torch.device) -> list[str]:
    """Backends that can run here."""
    names = ["plain", "torch", "numba"] if device.type == "cpu" else ["plain", "torch", "triton"]
    return [name for name in names if ops.backends()[name] is None]


def naive_ops(x: Tensor, gates: Tensor) -> tuple[Tensor, ...]:
    """Both operations, as the equations stand."""
    return torch.cat(naive_pool(x), dim=2), naive_gate(x, *torch.split(gates, list(x.shape[2:]), dim=2))


def linked_ops(x: Tensor, gates: Tensor) -> tuple[Tensor, ...]:
    """Both operations, as the layers call them."""
    means, maxima, link = autograd.pool(x, "avg+max", x.ndim - 2)
    return combine(means, maxima).to(x.dtype), autograd.gate(x, gates, x.ndim - 2, link)


def with_backend(name: str | None, call: Call) -> Call:
    """``call`` under one backend of the operations."""

    def run() -> object:
        with ops.backend(name):
            return call()

    return run


def forward_and_both(function: Function, inputs: list[Tensor], grads: list[Tensor]) -> tuple[Call, Call]:
    """The forward pass without a graph, and the forward with the backward pass to every input."""

    @torch.no_grad()
    def forward() -> object:
        return function(*inputs)

    def both() -> object:
        return torch.autograd.grad(function(*inputs), inputs, grads)

    return forward, both


def ops_contenders(x: Tensor, naive_x: Tensor) -> Iterator[tuple[str, Call, Call]]:
    """Name, forward and forward + backward of the two operations."""
    b, c, *sizes = x.shape
    gates = torch.rand(b, c, sum(sizes), device=x.device, dtype=x.dtype).requires_grad_()
    grads = [torch.randn_like(gates), torch.randn_like(x)]
    with ops.backend("reference"):
        expected = [t.detach() for t in linked_ops(x.double(), gates.double())]
    for name in ("naive", *fast(x.device)):
        function = naive_ops if name == "naive" else linked_ops
        backend = None if name == "naive" else name
        inputs = [(naive_x if name == "naive" else x).detach().requires_grad_(), gates]
        with ops.backend(backend):
            check(name, function(*inputs), expected)
        outputs = [grads[0], grads[1].contiguous() if name == "naive" else grads[1]]
        forward, both = forward_and_both(function, inputs, outputs)
        yield f"ops {name}", with_backend(backend, forward), with_backend(backend, both)


def check(name: str, outputs: tuple[Tensor, ...], expected: list[Tensor]) -> None:
    """Nothing is timed that does not compute what it should."""
    for ours, formula in zip(outputs, expected, strict=True):
        tolerance = 16 * torch.finfo(ours.dtype).eps
        if not torch.allclose(ours.double(), formula, rtol=tolerance, atol=tolerance):
            error = (ours.double() - formula).abs().max().item()
            raise RuntimeError(f"{name} is up to {error:.2g} off the reference, beyond {tolerance:.2g}: not timed")


def modules(channels: int, dims: int) -> dict[str, nn.Module]:
    """The layers that are compared, with the default options of each library."""
    ours = {
        "naive": NaiveGCA(channels, spatial_dims=dims),
        "GCA": gca.GroupedCoordinateAttention(channels, spatial_dims=dims),
        "coord": gca.CoordinateAttention(channels, spatial_dims=dims),
        "CBAM": gca.CBAM(channels, spatial_dims=dims),
        "SE": gca.SE(channels, spatial_dims=dims),
    }
    others = {**{name: attention(channels) for name, attention in TIMM.items()}, "timm ECA": EcaModule(channels)}
    return ours | (others if dims == 2 else {})


class Convolutions(NaiveGCA):
    """What no backend of the two operations can save: the layer between them."""

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.conv2(self.act(self.bn1(self.conv1(x)))))


def module_contenders(x: Tensor, naive_x: Tensor, compiled: bool) -> Iterator[tuple[str, Call, Call]]:
    """Name, forward and forward + backward of whole layers."""
    b, c, *sizes = x.shape
    built = modules(c, len(sizes))
    for module in built.values():
        module.to(x.device, x.dtype)
    built["GCA"].load_state_dict(built["naive"].state_dict())
    double = gca.GroupedCoordinateAttention(c, spatial_dims=len(sizes)).to(x.device, torch.float64).eval()
    double.load_state_dict(built["naive"].state_dict())
    with ops.backend("reference"), torch.no_grad():
        expected = double(x.double())
    for name, module in built.items():
        names = fast(x.device) if name == "GCA" else [None]
        for backend in names:
            yield module_contender(name, module, naive_x if name == "naive" else x, backend, expected)
    if compiled:
        torch.compiler.reset()  # or the second shape would be compiled as one of many
        for name in ("naive", "GCA", *(name for name in TIMM if name in built and name != "timm SE")):
            graph = torch.compile(built[name], fullgraph=True)
            yield module_contender(f"{name} compiled", graph, naive_x if name == "naive" else x, None, expected)
    pooled = torch.randn(2 * b, c // 2, sum(sizes), 1, device=x.device, dtype=x.dtype)
    convolutions = Convolutions(c).to(x.device, x.dtype)
    yield module_contender("convolutions of GCA", convolutions, pooled, None, expected)


def module_contender(
    name: str, module: Any, x: Tensor, backend: str | None, expected: Tensor
) -> tuple[str, Call, Call]:
    """Check a layer if it is ours, and prepare its two passes."""
    if name.startswith(("GCA", "naive")):
        with exact_convolutions(), ops.backend(backend), torch.no_grad():
            check(name, (module.eval()(x),), [expected])
    inputs = [x.detach().requires_grad_(), *module.parameters()]
    grad = torch.randn_like(x)

    @torch.no_grad()
    def forward() -> object:
        return module.eval()(x)

    def both() -> object:
        return torch.autograd.grad(module.train()(inputs[0]), inputs, grad)

    label = f"{name} {backend}" if backend else name
    return label, with_backend(backend, forward), with_backend(backend, both)


def measure(x: Tensor, options: argparse.Namespace) -> Iterator[Row]:
    """Rows of one shape, layout and dtype."""
    target = torch.empty_like(x)
    naive_x = x.contiguous()
    contenders: list[tuple[str, Call, Call]] = []
    if "ops" in options.what:
        contenders += ops_contenders(x, naive_x)
    if "modules" in options.what:
        contenders += module_contenders(x, naive_x, options.compiled)
    copy = {"copy": lambda: target.copy_(x)}
    forwards = {name: call for name, call, _ in contenders}
    boths = {name: call for name, _, call in contenders}
    forward = interleave(copy | forwards, x.device, options.rounds, graphs=options.graphs)
    both = interleave(boths, x.device, options.rounds, graphs=options.graphs)
    forward_peak, both_peak = peak_bytes(forwards, x.device), peak_bytes(boths, x.device)
    yield {"contender": "copy", **{f"forward_{key}": value for key, value in forward["copy"].items()}}
    for name in forwards:
        yield {
            "contender": name,
            **{f"forward_{key}": value for key, value in forward[name].items()},
            **{f"both_{key}": value for key, value in both[name].items()},
            "forward_peak_of_x": forward_peak[name] / x.nbytes,
            "both_peak_of_x": both_peak[name] / x.nbytes,
        }


def add_speedups(rows: list[Row]) -> None:
    """Over the naive version of the same shape and dtype in NCHW, of the operations or of the module."""
    base = {(row["contender"], row["shape"], row["dtype"]): row for row in rows if row["layout"] in ("NCHW", "NCDHW")}
    for row in rows:
        naive = "ops naive" if row["contender"].startswith("ops ") else "naive"
        for key in ("forward", "both"):
            if f"{key}_ms" in row and row["contender"] != "copy":
                row[f"{key}_speedup"] = base[naive, row["shape"], row["dtype"]][f"{key}_ms"] / row[f"{key}_ms"]


def geometric_means(rows: list[Row]) -> list[Row]:
    """Over shapes and layouts, for each contender and dtype."""
    means = []
    for dtype, name in dict.fromkeys((row["dtype"], row["contender"]) for row in rows):
        own = [row for row in rows if (row["dtype"], row["contender"]) == (dtype, name)]
        keys = [key for key in own[0] if key.endswith(("_ms", "_speedup", "_of_x"))]
        means.append({"contender": name, "dtype": dtype, **{k: geometric_mean(row[k] for row in own) for k in keys}})
    return means


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "layers_cpu")
    parser.add_argument("--what", nargs="+", default=["ops", "modules"], choices=["ops", "modules"])
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="default: %(default)s")
    parser.add_argument("--dims", type=int, default=2, choices=LAYOUTS, help="spatial axes (default: %(default)s)")
    parser.add_argument("--layouts", nargs="+", choices=[*LAYOUTS[2], *LAYOUTS[3]], help="default: both of --dims")
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 2, 3, 4], choices=[1, 2, 3, 4])
    parser.add_argument("--compiled", action="store_true", help="also under torch.compile")
    parser.add_argument("--graphs", action="store_true", help="replay CUDA graphs instead of launching from Python")
    options = parser.parse_args()
    layouts = LAYOUTS[options.dims]
    if strange := set(options.layouts or ()) - set(layouts):
        parser.error(f"--dims {options.dims} has the layouts {' and '.join(layouts)}, got {' '.join(strange)}")
    torch.manual_seed(0)
    set_up(options.threads)
    device = torch.device(options.device)
    where = machine(device)
    rows: list[Row] = []
    for dtype in options.dtypes:
        for channels, side in (STAGES[options.dims][stage - 1] for stage in options.stages):
            sizes = [options.batch, channels, *[side] * options.dims]
            image = torch.randn(sizes, device=device, dtype=getattr(torch, dtype))
            for layout in options.layouts or layouts:
                shape = "x".join(map(str, sizes))
                print(shape, layout, dtype, file=sys.stderr, flush=True)
                for row in measure(image.contiguous(memory_format=layouts[layout]), options):
                    rows.append({"shape": shape, "layout": layout, "dtype": dtype, **row})
                save(options.out, where, rows, {"complete": False})  # for whoever interrupts
    add_speedups(rows)
    means = geometric_means(rows)
    columns = ["contender", "forward_ms", "both_ms", "forward_speedup", "both_speedup", "both_peak_of_x"]
    show(rows, ["shape", "layout", "dtype", *columns])
    print("\nGeometric means over shapes and layouts")
    show(means, ["dtype", *columns])
    save(options.out, where, rows, {"complete": True, "geometric_means": means})
    for dtype in options.dtypes:
        own = [row for row in means if row["dtype"] == dtype]
        plot_layers(own, where, options.out / ("speed.png" if dtype == options.dtypes[0] else f"speed_{dtype}.png"))


if __name__ == "__main__":
    main()
