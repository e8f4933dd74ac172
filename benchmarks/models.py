"""What attention in every residual block costs a whole network.

    python benchmarks/models.py --modes inference     # CPU, batch 8, 224x224: resnet50 and GCA-ResUNet
    python benchmarks/models.py --modes training
    python benchmarks/models.py --device cuda --batch 32 --runs eager graph compiled

Beside GCA stand the attentions of timm in the same places, each with its default options. "overhead" is the time over
that of the same network without attention in the same round: its median and quartiles over all rounds.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from torch import nn

import gca
from contenders import timm_attention
from gca import ops
from naive import NaiveGCA
from plots import plot_models
from timing import Row, add_options, exact_convolutions, interleave, machine, peak_bytes, save, set_up, show

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": lambda: timm.create_model("resnet50"),
    "GCA-ResUNet": lambda: gca.GCAResUNet(classes=9, attention=None),
}
ATTENTION: dict[str, Any] = {
    "no attention": None,
    "GCA": "gca",
    "naive GCA": NaiveGCA,
    **timm_attention(),
}
RUNS = ("eager", "graph", "compiled")  # graph: eager kernels, replayed from a CUDA graph
COLUMNS = ["network", "mode", "run", "contender", "ms", "overhead_percent", "overhead_q1", "overhead_q3", "peak_mib"]


def build(name: str, attention: Any) -> nn.Module:
    """The network with an attention in all 16 residual blocks, or without."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # timm starts the last one of a block at 0, and so would attention see 0
            module.reset_parameters()
    if attention is not None:
        if attention == "gca":
            gca.inject(network, identity_init=False)  # as NaiveGCA, whose weights it takes
        else:
            gca.inject(network, attention)
    return network


def check_same_outputs(ours: nn.Module, naive: nn.Module, images: torch.Tensor) -> None:
    """Nothing is timed that does not compute what naive PyTorch does."""
    naive.load_state_dict(ours.state_dict())
    with exact_convolutions(), torch.no_grad():
        y, expected = ours.eval()(images[:1]), naive.eval()(images[:1])
    if not torch.allclose(y, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()):
        raise RuntimeError(f"the network differs from its naive version by up to {(y - expected).abs().max():.2g}")


def passes(network: Any, images: torch.Tensor, mode: str, autocast: bool) -> Callable[[], object]:
    """One step of inference, or one of training without the optimizer."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    # Weights are cast anew in every step: a CUDA graph must not hold casts that autocast cached before it.
    narrow = torch.autocast(images.device.type, torch.bfloat16, enabled=autocast, cache_enabled=False)

    @torch.no_grad()
    def infer() -> object:
        with narrow:
            return network(images)

    def train() -> object:
        with narrow:
            y = network(images)
        return torch.autograd.grad(y.square().mean(), parameters)

    network.train(mode == "training")
    return train if mode == "training" else infer


def measure(name: str, mode: str, options: argparse.Namespace) -> Iterator[Row]:
    """Rows of one network and mode."""
    device = torch.device(options.device)
    layout = torch.channels_last if options.layout == "channels_last" else torch.contiguous_format
    images = torch.randn(options.batch, 3, options.size, options.size, device=device).to(memory_format=layout)
    built = {
        label: build(name, ATTENTION[label]).to(device, memory_format=layout)  # type: ignore[call-overload]
        for label in dict.fromkeys(("no attention", "GCA", "naive GCA", *options.contenders))
    }
    check_same_outputs(built["GCA"], built["naive GCA"], images)
    for run in options.runs:
        contenders = {}
        for label in dict.fromkeys(("no attention", *options.contenders)):
            network = built[label]
            called = torch.compile(network) if run == "compiled" else network
            contenders[label] = passes(called, images, mode, options.autocast)
        times = interleave(contenders, device, options.rounds, graphs=run == "graph", base="no attention")
        peaks = peak_bytes(contenders, device)
        for label, time in times.items():
            yield {"run": run, "contender": label, **time, "peak_mib": peaks[label] / 2**20}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "models_cpu")
    parser.add_argument("--size", type=int, default=224, help="side of the images (default: %(default)s)")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--modes", nargs="+", default=["inference", "training"], choices=["inference", "training"])
    parser.add_argument("--contenders", nargs="+", default=list(ATTENTION), choices=ATTENTION, help="default: all")
    parser.add_argument("--layout", default="NCHW", choices=["NCHW", "channels_last"])
    parser.add_argument("--runs", nargs="+", default=["eager"], choices=RUNS, help="default: %(default)s")
    parser.add_argument("--autocast", action="store_true", help="in bfloat16 where autocast allows")
    options = parser.parse_args()
    set_up(options.threads)
    where = machine(torch.device(options.device))
    images = torch.empty(options.batch, 256, options.size // 4, options.size // 4, device=options.device)
    where["backend"] = ops.selected(images)  # in the first stage
    rows: list[Row] = []
    for mode in options.modes:
        for name in options.networks:
            for row in measure(name, mode, options):
                rows.append({"network": name, "mode": mode, "layout": options.layout, **row})
                save(options.out, where, rows, {"complete": False})  # for whoever interrupts
                show(rows[-1:], COLUMNS)
    show(rows, COLUMNS)
    save(options.out, where, rows, {"complete": True})
    plot_models(rows, where, options.out / "overhead.png")


if __name__ == "__main__":
    main()
