"""Turn an original release into the layout that the training reads, keeping the voxel spacing.

  prepare.py synapse  BTCV: img0001.nii.gz, label0001.nii.gz, ...           -> train_synapse.py
  prepare.py acdc     ACDC: patient001/{Info.cfg,patient001_frame01.nii.gz} -> train_acdc.py
  prepare.py isic     ISIC 2017 or 2018: the folders of the archives        -> train_isic.py

After an interruption the same command resumes. ``prepare.py synapse --help`` says what
is looked for and what is done to it.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg.command_line.options import int_from_0, positive_int, size
from medseg.data import acdc, isic, synapse
from medseg.data.preparation import Release, prepare
from medseg.errors import DataError, told_once


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    try:
        with told_once():
            release = _find(options)
            for warning in release.warnings:
                print("Warning:", warning, file=sys.stderr)
            summary = prepare(release, options.out, overwrite=options.overwrite, workers=options.workers)
    except DataError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error}; free the disk or choose another --out, and give the command again to go on")
    except KeyboardInterrupt:
        sys.exit("interrupted; give the command again to go on")
    _report(release, summary, options.out)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--source", type=Path, required=True, help="folder of the extracted release")
    common.add_argument("--out", type=Path, required=True, help="folder that receives the layout")
    common.add_argument("--overwrite", action="store_true", help="prepare again what is in --out")
    common.add_argument(
        "--workers",
        type=positive_int,
        default=min(4, os.cpu_count() or 1),
        help="cases at a time, each up to 1 GB",
    )
    style: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(description=__doc__, **style)
    sets = parser.add_subparsers(dest="set", required=True, metavar="{synapse,acdc,isic}", help="and then --help")
    style["parents"] = [common]
    sets.add_parser("synapse", description=synapse.RELEASE, **style)
    sets.add_parser("acdc", description=acdc.RELEASE, **style)
    skin = sets.add_parser("isic", description=isic.RELEASE, **style)
    skin.add_argument("--year", type=int, choices=isic.RELEASED, default=2018, help="(default: 2018)")
    skin.add_argument("--size", type=size, default=256, help="side of the square images (default: 256, the paper's)")
    skin.add_argument(
        "--split-seed", type=int_from_0, default=0, help="of the 7:3 split where parts are missing (default: 0)"
    )
    return parser


def _find(options: argparse.Namespace) -> Release:
    source: Path = options.source
    if not source.is_dir():
        raise DataError(f"no folder {source}; give --source the folder of the release, extracted from its archives")
    if source.resolve() == options.out.resolve():
        raise DataError("--out is --source; give another folder, the release stays as it is")
    if options.set == "synapse":
        return synapse.find_synapse(source)
    if options.set == "acdc":
        return acdc.find_acdc(source)
    return isic.find_isic(source, options.year, options.size, options.split_seed)


def _report(release: Release, summary: dict[str, Any], out: Path) -> None:
    print(f"Prepared {release.benchmark} in {out}:")
    for name, count in summary["lists"].items():
        print(f"  {name:26}{count['cases']:6} cases {count['slices']:6} slices")
    if spacing := summary["spacing_mm"]:
        ranges = ", ".join(f"{axis} {low:.3g} to {high:.3g}" for axis, (low, high) in spacing.items())
        print(f"  spacing in millimetres: {ranges}")
    script, *words = release.train.split()
    command = ["python", str(Path(__file__).with_name(script)), *words, "--data", str(out)]
    print("Next:", shlex.join(command))


if __name__ == "__main__":
    main()
