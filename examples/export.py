"""Export the network of a run to ONNX, and check with onnxruntime that it computes the same.

    export.py --checkpoint runs/acdc --out acdc.onnx

The input is ``images``, ``(B, 3, S, S)`` with any B: slices in [0, 1], fitted to the square as
medseg/training/transforms.py does; the output is ``logits``, ``(B, classes, S, S)``. Classes, size and intensity are in
the metadata of the file. It needs ``pip install onnx onnxscript onnxruntime``.
"""

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from medseg.errors import DataError, RunError
from medseg.evaluation.inputs import Use, read_use
from medseg.files import atomic_write

NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # of logits, relative to the largest


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parser().parse_args(arguments)
    try:
        if options.out.exists() and not options.overwrite:
            raise RunError(f"{options.out} exists; pass --overwrite to replace it, or another --out")
        if options.out.suffix != ".onnx":
            raise RunError(f"ONNX files end in .onnx; --out is {options.out}")
        use = read_use(options.checkpoint)
        if missing := [name for name in NEEDED if find_spec(name) is None]:
            raise RunError(f"the export needs {', '.join(missing)}; pip install {' '.join(NEEDED)}")
        difference = export(use, options.out)
    except (DataError, RunError) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}; free the disk or choose another --out")
    print(f"{options.out}: logits of onnxruntime differ by at most {difference:.1e} of the largest from torch's")
    print(f"Input images (B, 3, {use.size}, {use.size}) in [0, 1]; classes {', '.join(use.classes)}")


def export(use: Use, out: Path) -> float:
    """Write the file, if it computes what the network computes.

    Returns:
        The largest difference of logits, relative to the largest logit, over random images in batches of 1 and 3.

    Raises:
        RunError: If the export fails, or computes something else.
    """
    import onnx
    import onnxruntime
    import torch

    from medseg.evaluation.prediction import load_network

    model = load_network(use, "cpu").model
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(count, 3, use.size, use.size, generator=generator) for count in (2, 1, 3)]
    with torch.inference_mode():
        wanted = [model(batch) for batch in images]
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with atomic_write(out) as part:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch's exporter, about its own future
                torch.onnx.export(
                    model,
                    (images[0],),
                    part,
                    input_names=["images"],
                    output_names=["logits"],
                    dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                    dynamo=True,
                    external_data=False,
                    verbose=False,
                )
        except Exception as error:  # the exporter, onnxscript and the operators have each their own
            raise RunError(f"torch cannot export the network in {use.folder}: {str(error).splitlines()[0]}") from error
        content = onnx.load(part)
        noted = {"classes": json.dumps(use.classes), "size": str(use.size), "intensity": use.intensity}
        onnx.helper.set_model_props(content, noted)
        onnx.save(content, part)
        session = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"])
        found = [torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0]) for batch in images]
        differences = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, wanted, strict=True)]
        if not max(differences) < TOLERANCE:
            raise RunError(f"onnxruntime computes other logits, by up to {max(differences):.1e} of the largest")
    return float(max(differences))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="RUN", help="folder of a run of train_*.py, or model/ in it"
    )
    parser.add_argument("--out", type=Path, required=True, help="the .onnx file")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    return parser


if __name__ == "__main__":
    main()
