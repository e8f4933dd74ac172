"""The command line of the training examples."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from medseg.data.dataset import Benchmark
from medseg.settings import ATTENTIONS, LOGGERS, LOSSES, POOLS, PRECISIONS, Settings


def parser(
    benchmark: Benchmark,
    description: str,
    preset: Settings | None = None,
    parents: Sequence[argparse.ArgumentParser] = (),
) -> argparse.ArgumentParser:
    """The command line of one benchmark.

    Args:
        benchmark: Its settings are the defaults.
        description: For ``--help``.
        preset: Settings for synthetic data, where ``--data`` may be left out.
        parents: Options of the script itself.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        parents=list(parents),
    )
    paper = benchmark.settings

    def default(name: str) -> str:
        theirs, ours = getattr(paper, name), getattr(preset or paper, name)
        return f" (default: {theirs})" if theirs == ours else f" (default: {theirs}; on phantoms: {ours})"

    run = parser.add_argument_group("run")
    run.add_argument(
        "--data",
        type=Path,
        help=f"folder with {benchmark.layout}" + (" (default: generate synthetic phantoms)" if preset else ""),
    )
    out = Path("runs") / benchmark.name
    run.add_argument("--out", type=Path, default=out, help="receives everything (default: %(default)s)")
    run.add_argument(
        "--resume",
        action="store_true",
        help="resume the interrupted run in --out, with the settings and data noted there, or start one",
    )
    run.add_argument("--overwrite", action="store_true", help="replace what is in --out")
    run.add_argument("--config", type=Path, help="settings.json of a run to repeat; other options change it")
    run.add_argument("--test-only", action="store_true", help="test a finished run in --out again, without training")
    run.add_argument(
        "--keep-checkpoints",
        action="store_true",
        help="keep the last and the best checkpoint of a finished run, four times the size of the network",
    )
    run.add_argument(
        "--seed",
        type=int_from_0,
        nargs="+",
        help="of weights, order and augmentation; several train one after another" + default("seed"),
    )
    run.add_argument("--limit", type=positive_int, help="use at most this many cases of each part, for a quick look")
    run.add_argument("--score-training", action="store_true", help="also score the cases it was trained on")
    run.add_argument(
        "--time-loader", action="store_true", help="print how many images a second loading gives, and stop"
    )

    split = parser.add_argument_group("split")
    if benchmark.folds:
        split.add_argument(
            "--cross-validate",
            action=argparse.BooleanOptionalAction,
            help="train and test every fold, one after another",
        )
        split.add_argument(
            "--folds", type=_folds, help="folds of the cross-validation over patients" + default("folds")
        )
        split.add_argument(
            "--fold",
            type=positive_int,
            help="train and test this fold alone, counted from 1 (default: the split of the lists)",
        )
    if benchmark.holds_out:
        split.add_argument(
            "--validation",
            type=fraction,
            help="share of the training patients held out for validation where the data names none; 0 for none"
            + default("validation"),
        )
        split.add_argument(
            "--split-seed", type=int_from_0, help="of folds and of what is held out" + default("split_seed")
        )

    network = parser.add_argument_group("network")
    network.add_argument(
        "--arch",
        help="gca-resunet, or a baseline of segmentation-models-pytorch: Unet, UnetPlusPlus, Segformer, ..."
        + default("arch"),
    )
    network.add_argument(
        "--attention",
        choices=ATTENTIONS,
        help="attention in every residual block of gca-resunet" + default("attention"),
    )
    network.add_argument("--groups", type=positive_int, help="channel groups of GCA (default: 2)")
    network.add_argument("--reduction", type=positive_int, help="reduction ratio (default: of the layer; GCA: 2)")
    network.add_argument("--pool", choices=POOLS, help="pooling of GCA (default: avg+max)")
    network.add_argument(
        "--identity-init",
        action=argparse.BooleanOptionalAction,
        help="attention starts as the identity, and the network as the one without" + default("identity_init"),
    )
    network.add_argument("--encoder", help="encoder of segmentation-models-pytorch" + default("encoder"))
    network.add_argument(
        "--encoder-weights",
        metavar="imagenet",
        help="download pretrained weights of the encoder; attention then starts as the identity, unless "
        "--no-identity-init is given (default: random weights, as in the paper)",
    )

    training = parser.add_argument_group("training")
    training.add_argument("--size", type=size, help="side of the square slices" + default("size"))
    training.add_argument(
        "--batch-size", type=positive_int, help="slices in a batch, of all devices together" + default("batch_size")
    )
    training.add_argument("--epochs", type=positive_int, help="passes over the training slices" + default("epochs"))
    training.add_argument("--lr", type=_positive_float, help="first learning rate" + default("lr"))
    training.add_argument("--min-lr", type=_positive_float, help="last learning rate" + default("min_lr"))
    training.add_argument("--weight-decay", type=_float_from_0, help="of AdamW" + default("weight_decay"))
    training.add_argument("--loss", choices=LOSSES, help="terms of the loss" + default("loss"))
    training.add_argument(
        "--class-weights",
        type=_float_from_0,
        nargs="+",
        metavar="WEIGHT",
        help="of the classes in the loss, background first (default: all the same)",
    )
    training.add_argument(
        "--augment", action=argparse.BooleanOptionalAction, help="augment as in the paper" + default("augment")
    )
    training.add_argument(
        "--validate-every", type=positive_int, help="epochs between validations" + default("validate_every")
    )
    training.add_argument(
        "--patience", type=positive_int, help="validations without improvement before it stops" + default("patience")
    )

    execution = parser.add_argument_group("execution")
    execution.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), help="what to compute on (default: auto)")
    execution.add_argument("--devices", help="how many, which (0,2), or auto (default: 1)")
    execution.add_argument("--nodes", type=positive_int, help="machines (default: 1)")
    execution.add_argument("--strategy", help="of Lightning, e.g. ddp (default: auto)")
    execution.add_argument(
        "--workers", type=int_from_0, help="processes that prepare slices (default: 4 with a GPU, else 0)"
    )
    execution.add_argument("--precision", choices=PRECISIONS, help="of training" + default("precision"))
    execution.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="torch.compile the network (default: no)",
    )
    execution.add_argument(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        help="memory format of network and images; results differ in rounding only (default: yes with bf16-mixed and "
        "16-mixed, where it is faster)",
    )
    execution.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        help="the same numbers every time; a GPU is faster without" + default("deterministic"),
    )
    execution.add_argument(
        "--logger", choices=LOGGERS, help="where losses go beside metrics.csv (default: tensorboard)"
    )
    return parser


def _number(kind: type[int] | type[float], wanted: str, accept: Callable[[float], bool]) -> Callable[[str], float]:
    """An argparse type that says what it wanted."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and accept(value)):
            raise argparse.ArgumentTypeError(f"wanted {wanted}, got {text!r}")
        return value

    return parse


positive_int = _number(int, "a whole number from 1", lambda value: value >= 1)
int_from_0 = _number(int, "a whole number from 0", lambda value: value >= 0)
_folds = _number(int, "a whole number from 2", lambda value: value >= 2)
_positive_float = _number(float, "a number above 0", lambda value: value > 0)
_float_from_0 = _number(float, "a number from 0", lambda value: value >= 0)
fraction = _number(float, "a number from 0 to below 1", lambda value: 0 <= value < 1)
size = _number(int, "a whole number from 32", lambda value: value >= 32)
