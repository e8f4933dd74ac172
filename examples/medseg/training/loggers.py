"""Where the losses of a training go beside ``metrics.csv``: loggers of Lightning."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medseg.errors import RunError
from medseg.settings import LOGGERS


def check_logger(name: str) -> None:
    """Refuse a logger whose package is missing, without importing anything.

    Raises:
        RunError: With the line that installs it.
    """
    package = LOGGERS[name]
    if find_spec(package) is None:
        raise RunError(f"--logger {name} needs a package that is not installed: pip install {package}")


def make_logger(name: str, out: Path) -> Any:
    """One of ``medseg.settings.LOGGERS`` for a run in ``out``; ``False`` for none, as Lightning has it."""
    check_logger(name)
    from lightning.pytorch import loggers

    if name == "none":
        return False
    if name == "tensorboard":
        return loggers.TensorBoardLogger(out, name=None, version="tensorboard")
    if name == "csv":
        return loggers.CSVLogger(out, name=None, version="csv")
    project, run = out.parent.name or "medseg", out.name
    if name == "wandb":
        return loggers.WandbLogger(name=run, project=project, save_dir=out)
    return loggers.MLFlowLogger(experiment_name=project, run_name=run, save_dir=str(out / "mlruns"))
