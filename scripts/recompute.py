"""Compute all tables of a result folder again from its stored predictions, as after a change of the metrics.

    python scripts/recompute.py results/reference [--resamples 100000]

What needs the cells themselves (studies, timings, checkpoints) stays as it is.
"""

import argparse
import tempfile
from pathlib import Path

from medq import collect


def recompute(folder, resamples):
    parts = collect._kept(folder)
    for part in parts.values():
        if part.run:
            part.run["parameters"]["bootstrap"] = {"resamples": resamples}
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        collect._write(Path(scratch) / "new", folder, parts)
        collect._replace(folder, Path(scratch) / "new")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resamples", type=int, default=100_000)
    args = parser.parse_args()
    recompute(args.folder.resolve(), args.resamples)
