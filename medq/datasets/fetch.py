"""Download a public release from Kaggle, and check what lies in its folder."""

import contextlib
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medq.datasets.folds import folds
from medq.datasets.index import DatasetWarning, counts, dataset_root, holds, index
from medq.datasets.pixels import each, hidden, read_image
from medq.errors import UserError, first_line


@dataclass(frozen=True)
class Report:
    """What `check` found: counts [split, class, found, release], and sentences. No errors: fit for use."""

    counts: pd.DataFrame
    warnings: tuple
    errors: tuple


def check(spec, root=None):
    """Compare what lies below `root` (default: MEDQ_DATA) with the release, and decode every image once.

    Returns a Report and raises nothing for what is wrong with the data: that is what it reports.
    """
    frame, looked_at, errors = None, [], []

    def look(path):
        read_image(path, 1)
        return path, *hidden(path)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DatasetWarning)
        try:
            frame = index(spec, root)
            folds(frame, spec)
        except UserError as error:
            errors.append(str(error))
    notes = [str(item.message) for item in caught if issubclass(item.category, DatasetWarning)]
    if frame is None:
        return Report(pd.DataFrame(), tuple(notes), tuple(errors))
    try:
        looked_at = list(each(look, frame["path"].tolist(), "check"))
    except UserError as error:
        errors.append(str(error))
    dark = [(bits, path) for path, bits, _ in looked_at if bits]
    several = [path for path, _, frames in looked_at if frames > 1]
    if dark:
        bits, path = max(dark)
        notes.append(
            f"{spec.name}: {len(dark)} images with 16 bits use the lower {bits} bits or fewer and will be dark, "
            f"or bright where 0 is white: multiply their values to fill the range first; one is {path!r}"
        )
    if several:
        notes.append(
            f"{spec.name}: {len(several)} files hold several frames or pages, of which the first is read: "
            f"save each that is an image of the dataset in a file of its own; one is {several[0]!r}"
        )
    return Report(counts(spec, frame), tuple(notes), tuple(errors))


def fetch(spec, root=None):
    """Download the release of `spec` below `root` (default: MEDQ_DATA) with kagglehub and return the dataset's folder.

    Nothing is downloaded if the dataset is there already. It is unpacked beside its place and renamed into it, so that
    the folder is whole or absent. Raises UserError if there is nothing to fetch, `kagglehub` is missing, the download
    fails, the disk is full, or the archive holds links.
    """
    if spec.layout == "phantom":
        raise UserError(f"{spec.name} is drawn when it is needed: there is nothing to fetch.")
    root = root or os.environ.get("MEDQ_DATA")
    if not root:
        raise UserError(f"{spec.name} needs a folder to be put into: give --root or set MEDQ_DATA.")
    root = Path(os.path.expanduser(root))
    with contextlib.suppress(UserError):
        if holds(spec, found := dataset_root(spec, root)):
            return found
    by_hand = f"download it by hand from {spec.source or f'https://www.kaggle.com/datasets/{spec.kaggle}'}"
    if spec.kaggle is None:
        raise UserError(
            f"{spec.name} has no 'kaggle' key in params/datasets.yaml{': ' + by_hand if spec.source else ''}."
        )
    target, scratch = root / spec.kaggle.split("/")[1], None
    if target.exists():
        raise UserError(f"{str(target)!r} exists already, but does not hold {spec.name}: move it away first.")
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".fetch-", dir=root))
        os.replace(_download(spec, scratch / target.name, by_hand), target)
    except OSError as error:
        raise UserError(
            f"{spec.name} cannot be written below {str(root)!r}: {error.strerror or error}; "
            "free space or choose another folder."
        ) from None
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
    return dataset_root(spec, root)


def _download(spec, folder, by_hand):
    try:
        import kagglehub
    except ImportError:
        raise UserError("fetching needs kagglehub, which is not installed: pip install 'medq[fetch]'.") from None
    try:
        kagglehub.dataset_download(spec.kaggle, output_dir=str(folder))
    except Exception as error:  # of kagglehub, requests and zipfile
        if isinstance(error, OSError) and error.errno:  # of the disk: requests' own errors have no number
            raise
        raise UserError(
            f"kagglehub could not download {spec.kaggle} ({first_line(error)}); check the network and that the account may see the "
            "dataset (API token in ~/.kaggle/kaggle.json or KAGGLE_USERNAME and KAGGLE_KEY), or " + by_hand + "."
        ) from None
    shutil.rmtree(folder / ".complete", ignore_errors=True)  # kagglehub's mark
    links = [path.name for path in folder.rglob("*") if path.is_symlink()]
    if links:
        raise UserError(
            f"the archive of {spec.kaggle} is refused: {links[0]!r} is a link, which may lead outside its folder."
        )
    return folder
