"""Every path of the project, in one place.

`runs/<profile>/<dataset>/<backbone>/<regime>/[seed<n>/]fold<k>/` is one cell of a batch; `results/<profile>/` is what the
book reads.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARAMS = ROOT / "params"
NOTEBOOKS = ROOT / "notebooks"
RESULTS = ROOT / "results"


def runs():
    """Folder of all batches: `MEDQ_RUNS`, or `runs/` beside the package."""
    return Path(os.path.expanduser(os.environ.get("MEDQ_RUNS") or ROOT / "runs"))


@dataclass(frozen=True)
class Cell:
    """One unit of work: what is trained or quantized, on which data, in which fold, and from which of several seeds."""

    profile: str
    dataset: str
    backbone: str
    regime: str
    fold: int = 0
    seed: int | None = None

    @classmethod
    def at(cls, profile, name):
        """The cell whose folder has this name below the batch's: what `str` gives."""
        dataset, backbone, regime, *seed, fold = name.split("/")
        seed = int(seed[0].removeprefix("seed")) if seed else None
        return cls(profile, dataset, backbone, regime, int(fold.removeprefix("fold")), seed)

    @property
    def place(self):
        """The last part of its path: `fold<k>`, below `seed<n>` where the profile has several."""
        return f"fold{self.fold}" if self.seed is None else f"seed{self.seed}/fold{self.fold}"

    @property
    def folder(self):
        """Where everything that this cell writes lives."""
        return runs() / self.profile / self.dataset / self.backbone / self.regime / self.place

    def of(self, regime):
        """The cell of another regime with the same images, backbone, fold and seed."""
        return replace(self, regime=regime)

    def __str__(self):
        return f"{self.dataset}/{self.backbone}/{self.regime}/{self.place}"


def data_folder(profile, dataset):
    """Folds, audit and decoded pixels of one dataset in one batch."""
    return runs() / profile / dataset / "data"


def pixels():
    """Decoded images, shared by all profiles of one size."""
    return runs() / ".pixels"
