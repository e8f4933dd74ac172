"""Parameters, multiply-accumulates (MACs) and latency of GCA-ResUNet with each attention: Table 4 of the paper.

    python benchmarks/complexity.py                   # CPU, batch 1, 9 classes, 3x224x224
    python benchmarks/complexity.py --device cuda

No attention, SE, CBAM, coordinate attention and GCA stand in the same places: every residual block of the encoder.
Counters disagree about what is an operation, so each count is named after its counter (see COUNTERS below). FLOPs are
2 x MACs, as in the paper. "overhead" is over the network without attention.
"""

import argparse
import copy
import math
import sys
import warnings
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import gca
from gca import ops
from plots import plot_complexity
from table4 import TABLE_4
from timing import Row, add_options, interleave, machine, save, set_up, show

try:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*distutils.*", DeprecationWarning)
        import thop
except ImportError as error:
    raise ImportError('benchmarks/complexity.py counts with thop: pip install "gca-attn[dev]"') from error

VARIANTS = {"no attention": None, "SE": "se", "CBAM": "cbam", "CoordinateAttention": "coord", "GCA": "gca"}
AXIS_LAYERS = (gca.CoordinateAttention, gca.GroupedCoordinateAttention)
PAPER: Row = {
    "source": "Ding and Gao, GCA-ResUNet, Table 4; the device is that of its other experiments",
    "setting": {"encoder": "tu-resnet50", "classes": 9, "size": 224, "batch": 1},
    "device": "NVIDIA RTX 4060 Ti (16 GB)",
    "rows": TABLE_4,
}
# key of a row: title, unit, key of the reported figure
COLUMNS = {
    "parameters": ("parameters (M)", 1e6, "parameters_m"),
    "macs_thop": ("MACs, thop (G)", 1e9, "macs_g"),
    "macs_fvcore": ("MACs, fvcore (G)", 1e9, "macs_g"),
    "macs_torch": ("MACs, torch (G)", 1e9, None),
    "flops_thop": ("FLOPs, thop (G)", 1e9, "flops_g"),
    "flops_fvcore": ("FLOPs, fvcore (G)", 1e9, "flops_g"),
    "latency_ms": ("latency (ms)", 1.0, "latency_ms"),
}
COUNTERS = {
    "thop_modules": "thop.profile: convolutions without bias, 4 per element of a batch norm, 1 per output of an "
    "average pool; it sees modules only, so no pooling, resizing or multiplication by a function",
    "thop": "thop_modules, and the attention's averages over rows, columns or the image as thop counts "
    "nn.AdaptiveAvgPool2d: 1 per input and 1 per output; maxima and the multiplications of gates are free",
    "torch": "torch.utils.flop_counter.FlopCounterMode, halved: convolutions without bias and matrix products only",
    "fvcore": "the rules of fvcore's FlopCountAnalysis, applied by torch's counter: convolutions without bias, 2 per "
    "element of a batch norm, 4 per output of bilinear resizing, 1 per input of the averages above",
}


def batch_norm(x_shape: Sequence[int], *_: object, **__: object) -> int:
    """FLOPs of a batch norm by fvcore's rule: 2 MACs per element."""
    return 2 * 2 * math.prod(x_shape)


def resize(_: object, *__: object, out_shape: Sequence[int], **___: object) -> int:
    """FLOPs of bilinear resizing by fvcore's rule: 4 MACs per output."""
    return 2 * 4 * math.prod(out_shape)


FVCORE_RULES = {
    torch.ops.aten.native_batch_norm: batch_norm,
    # torch 2.8 takes apart what has no rule, and looks for that of the overload.
    torch.ops.aten.native_batch_norm.default: batch_norm,
    torch.ops.aten.upsample_bilinear2d: resize,
}


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def infer(network: nn.Module, image: Tensor) -> Tensor:
    """One forward pass without a graph."""
    output: Tensor = network(image)
    return output


def averages(shapes: dict[nn.Module, torch.Size]) -> tuple[int, int]:
    """Inputs and outputs of all average pools over rows, columns or the image, given the inputs of attention layers."""
    inputs = outputs = 0
    for layer, (b, c, h, w) in shapes.items():
        along_axes = isinstance(layer, AXIS_LAYERS)
        inputs += b * c * h * w * (2 if along_axes else 1)
        outputs += b * c * (h + w if along_axes else 1)
    return inputs, outputs


def count(network: nn.Module, image: Tensor) -> tuple[Row, dict[str, Row]]:
    """What each counter finds in a network, and parameters and MACs of every attention layer in it."""
    layers = gca.injected(network)
    shapes: dict[nn.Module, torch.Size] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: shapes.update({layer: inputs[0].shape}))
        for layer in layers.values()
    ]
    with FlopCounterMode(display=False, custom_mapping=FVCORE_RULES) as counter:
        infer(network, image)
    for hook in hooks:
        hook.remove()
    # a copy, since thop leaves buffers in the modules that it has no rule for
    in_modules, _ = thop.profile(copy.deepcopy(network), (image,), verbose=False)
    inputs, outputs = averages(shapes)
    flops = counter.get_flop_counts()

    def convolutions(name: str) -> int:
        counted: int = sum(n for op, n in flops[name].items() if op not in FVCORE_RULES)
        return counted // 2

    row: Row = {
        "parameters": parameters(network),
        "attention_parameters": sum(map(parameters, layers.values())),
        "macs_thop": int(in_modules) + inputs + outputs,
        "macs_thop_modules": int(in_modules),
        "macs_torch": convolutions("Global"),
        "macs_fvcore": counter.get_total_flops() // 2 + inputs,
    }
    row |= {f"flops_{counted}": 2 * row[f"macs_{counted}"] for counted in ("thop", "fvcore")}
    root = type(network).__name__
    each = {
        name: {"parameters": parameters(layer), "macs_torch": convolutions(f"{root}.{name}")}
        for name, layer in layers.items()
    }
    return row, each


def check(name: str, output: Tensor, shape: tuple[int, ...]) -> None:
    """Nothing is timed that does not give finite logits of the right shape."""
    if tuple(output.shape) != shape:
        raise RuntimeError(f"{name} gives an output of shape {tuple(output.shape)}, wanted {shape}: not timed")
    if not output.isfinite().all():
        raise RuntimeError(f"{name} gives outputs that are not finite: not timed")


def measure(options: argparse.Namespace) -> tuple[list[Row], dict[str, dict[str, Row]]]:
    """A row per variant, and for each variant its attention layers."""
    device = torch.device(options.device)
    images = torch.randn(options.batch, 3, options.size, options.size)
    rows, layers, networks = [], {}, {}
    for name, attention in VARIANTS.items():
        print(f"counting {name}", file=sys.stderr, flush=True)
        network = gca.GCAResUNet(options.classes, encoder=options.encoder, attention=attention).eval()
        counts, layers[name] = count(network, images[:1])
        rows.append({"contender": name, **counts})
        networks[name] = network.to(device)
    if len({tuple(each) for name, each in layers.items() if name != "no attention"}) != 1:
        raise RuntimeError(f"the attention layers do not stand in the same places: {layers}")
    images = images.to(device)
    shape = (options.batch, options.classes, options.size, options.size)
    contenders = {name: partial(infer, network, images) for name, network in networks.items()}
    for name, call in contenders.items():
        check(name, call(), shape)
    print("timing", file=sys.stderr, flush=True)
    times = interleave(contenders, device, options.rounds)
    for row in rows:
        row |= {f"latency_{key}": value for key, value in times[row["contender"]].items()}
    return rows, layers


def add_overheads(rows: list[Row]) -> None:
    """Over the first row, absolute and in percent."""
    base = rows[0]
    keys = [key for key in base if key.startswith(("parameters", "macs_", "flops_")) or key == "latency_ms"]
    for row in rows:
        for key in keys:
            row[f"{key}_overhead"] = row[key] - base[key]
            row[f"{key}_overhead_percent"] = 100 * (row[key] / base[key] - 1)


def compare(rows: list[Row]) -> list[Row]:
    """Every reported count beside ours, rounded as it is reported. The reported overheads follow from these figures."""
    compared: list[Row] = []
    for key, (_, unit, reported) in COLUMNS.items():
        for row in rows:
            if row["contender"] in PAPER["rows"] and reported and key != "latency_ms":
                ours, paper = round(row[key] / unit, 2), PAPER["rows"][row["contender"]][reported]
                agrees = "yes" if ours == paper else "no"
                compared.append(
                    {"count": key, "contender": row["contender"], "ours": ours, "paper": paper, "agrees": agrees}
                )
    return compared


def explain(rows: list[Row], compared: list[Row], layers: dict[str, Row]) -> list[str]:
    """What the numbers say about the reported figures that differ. ``layers`` are those of GCA."""
    told = []
    differ = [row for row in compared if row["agrees"] == "no"]
    by_fvcore = not any(row["count"].endswith("fvcore") for row in differ)
    if by_fvcore:
        told.append("All reported MACs and FLOPs are met to the last digit when counted by fvcore's rules.")
        told += [
            f"FLOPs of {row['contender']} by thop: {row['ours']:.2f} G, reported {row['paper']:.2f} G. "
            "The paper most likely counted by rules like fvcore's rather than thop's."
            for row in differ
            if row["count"] == "flops_thop"
        ]
    for row in differ:
        if row["count"] == "parameters" and row["contender"] == "GCA":
            told += explain_parameters(row, rows[0]["parameters"], by_fvcore, layers)
    return told


def explain_parameters(row: Row, base: int, macs_agree: bool, layers: dict[str, Row]) -> list[str]:
    """Ways to the reported number of parameters, and which network the reported MACs are of."""
    told = [f"Parameters of GCA: {row['ours']:.2f} M, reported {row['paper']:.2f} M."]
    gap = round(row["ours"] - row["paper"], 2)
    if gap == round(gap):
        told.append(f"They are {gap:.2f} M apart, a whole number of millions: one misprinted digit would do that.")
    name, largest = max(layers.items(), key=lambda item: item[1]["parameters"])
    alone = base + largest["parameters"]
    if round(alone / 1e6, 2) == row["paper"]:
        told.append(
            f"With one of the largest layers alone ({name}, {largest['parameters']:,} parameters) the network would "
            f"have {alone:,}, which is also {row['paper']:.2f} M; but that layer's convolutions add only "
            f"{largest['macs_torch'] / 1e9:.2f} G MACs of the {PAPER['rows']['overhead']['macs_g']:.2f} G reported."
        )
    if macs_agree:
        told.append(f"The reported MACs are those with all {len(layers)} layers, as the paper describes the network.")
    return told


def table(rows: list[Row], reported: dict[str, Row]) -> list[Row]:
    """Counts, then overheads, in millions, billions and milliseconds; under each line what the paper reports."""

    def line(label: str, values: Row, suffix: str = "") -> Row:
        per_unit = {key: 1.0 if suffix.endswith("percent") else unit for key, (_, unit, _) in COLUMNS.items()}
        return {"": label} | {name: values[key + suffix] / per_unit[key] for key, (name, _, _) in COLUMNS.items()}

    def paper_line(figures: Row) -> Row:
        return {"": "  reported"} | {name: figures[key] for name, _, key in COLUMNS.values() if key}

    lines = []
    for row in rows:
        lines.append(line(row["contender"], row))
        if row["contender"] in reported:
            lines.append(paper_line(reported[row["contender"]]))
    for row in rows[1:]:
        lines.append(line(f"Δ {row['contender']}", row, "_overhead"))
        lines.append(line("  in %", row, "_overhead_percent"))
        if row["contender"] == "GCA" and reported:
            lines.append(paper_line(reported["overhead"]))
            lines.append(paper_line(reported["overhead"] | reported_percent()) | {"": "  reported, in %"})
    return lines


def reported_percent() -> dict[str, float]:
    """The reported overheads in percent of the reported figures without attention."""
    base, overhead = PAPER["rows"]["no attention"], PAPER["rows"]["overhead"]
    return {key: 100 * overhead[key] / base[key] for key in base}


def main() -> None:
    """Count, measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "complexity_cpu")
    parser.set_defaults(batch=1, rounds=15)
    parser.add_argument("--encoder", default="tu-resnet50", help="default: %(default)s")
    parser.add_argument("--classes", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--size", type=int, default=224, help="side of the images (default: %(default)s)")
    options = parser.parse_args()
    torch.manual_seed(0)
    set_up(options.threads)
    rows, layers = measure(options)
    add_overheads(rows)
    setting = {key: getattr(options, key) for key in PAPER["setting"]}
    as_reported = setting == PAPER["setting"]
    compared = compare(rows) if as_reported else []
    told = explain(rows, compared, layers["GCA"]) if as_reported else []
    shown = table(rows, PAPER["rows"] if as_reported else {})
    show(shown, list(shown[0]))
    print("\nLatency: median, quartiles and minimum over rounds")
    show(rows, ["contender", *(f"latency_{key}" for key in ("ms", "ms_q1", "ms_q3", "ms_min"))])
    if as_reported:
        print(f"\nReported: {PAPER['source']}; latency on {PAPER['device']}.")
        show(compared, list(compared[0]))
    for sentence in told:
        print(sentence)
    for counter, counted in COUNTERS.items():
        print(f"{counter}: {counted}")
    device = torch.device(options.device)
    where = machine(device)
    where["implementation"] = ops.selected(torch.empty(1, 1, 1, 1, device=device))
    summary = {
        "setting": setting,
        "counters": COUNTERS,
        "paper": PAPER,
        "comparison": compared,
        "explanation": told,
        "attention_layers": layers,
    }
    save(options.out, where, rows, summary)
    plot_complexity(rows, reported_percent() if as_reported else {}, where, options.out / "complexity.png")


if __name__ == "__main__":
    main()
