"""Download a public release with Kaggle's own client, and check what lies in its folder."""

import os
import shutil
import stat
import sys
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import pandas as pd

from medq.datasets.folds import folds
from medq.datasets.index import DatasetWarning, below, counts, index
from medq.datasets.pixels import each, bits_used, read_image, refuse
from medq.errors import UserError


@dataclass(frozen=True)
class Report:
    """What `check` found: counts [split, class, found, release], and sentences. No errors: fit for use."""

    name: str
    counts: pd.DataFrame
    warnings: tuple
    errors: tuple


def check(spec, root=None, decode=True):
    """Compare what lies below `root` (default: MEDQ_DATA) with the release, and decode every image once.

    Returns a Report and raises nothing for what is wrong with the data: that is what it reports.
    `decode=False` leaves the files unopened.
    """
    frame, nothing = None, pd.DataFrame(columns=["split", "class", "found", "release"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DatasetWarning)
        try:
            frame, errors = index(spec, root), []
            folds(frame, spec)
        except UserError as error:
            errors = [str(error)]
    notes = [str(item.message) for item in caught if issubclass(item.category, DatasetWarning)]
    if frame is None:
        return Report(spec.name, nothing, tuple(notes), tuple(errors))
    if decode:
        paths = frame["path"].tolist()
        try:
            looked_at = list(each(_look, paths, "check"))
            refuse(paths, looked_at)
            dark = [(bits, path) for path, bits in zip(paths, looked_at, strict=True) if bits]
            if dark:
                bits, path = max(dark)
                notes.append(
                    f"{spec.name}: {len(dark)} images with 16 bits use the lower {bits} bits or fewer and will be dark: "
                    f"multiply their values to fill the range first; one is {path!r}"
                )
        except UserError as error:
            errors.append(str(error))
    return Report(spec.name, counts(spec, frame), tuple(notes), tuple(errors))


def _look(path):
    """Decode an image; returns what `bits_used` does."""
    read_image(path, 1)
    return bits_used(path)


def fetch(spec, root=None):
    """Download the release of `spec` below `root` (default: MEDQ_DATA) and return the dataset's folder.

    Nothing is downloaded where the dataset is there already. The archive is unpacked beside its place and
    renamed into it, so that the folder is whole or absent. Raises UserError where there is nothing to fetch,
    the `kaggle` package or credentials are missing, the download fails, or the archive is damaged, does not
    fit on the disk or would write outside its folder.
    """
    if spec.layout == "phantom":
        raise UserError(f"{spec.name} is drawn when it is needed: there is nothing to fetch.")
    root = root or os.environ.get("MEDQ_DATA")
    if not root:
        raise UserError(f"where shall {spec.name} go? Give a folder (--root) or set MEDQ_DATA.")
    root = Path(root).expanduser()
    try:
        return below(spec, root)
    except UserError:
        pass  # not there yet
    if spec.kaggle is None:
        raise UserError(
            f"{spec.name} has no 'kaggle' key in params/datasets.yaml: "
            f"get it by hand{' from ' + spec.source if spec.source else ''}."
        )
    client = _client(spec)
    scratch = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".fetch-", dir=root))
        archive = _download(client, spec, scratch)
        unpack(archive, root / spec.kaggle.split("/")[1])
    except OSError as error:
        raise UserError(
            f"{spec.name} cannot be written below {str(root)!r}: {error.strerror or error}; "
            "free space or choose another folder."
        ) from None
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
    return below(spec, root)


def unpack(archive, target):
    """Unpack the ZIP file `archive` as the new folder `target`, whole or not at all.

    Raises UserError if any member would land outside (absolute path, `..`, drive letter), is a symbolic link
    or no plain file, if the archive is damaged, if it needs more space than there is, or if `target` exists.
    """
    if target.exists():
        raise UserError(f"{str(target)!r} exists already: move it away first.")
    scratch = Path(tempfile.mkdtemp(prefix=".unpack-", dir=target.parent))
    try:
        with zipfile.ZipFile(archive) as members:
            bad = [member.filename for member in members.infolist() if not _harmless(member)]
            if bad:
                raise UserError(
                    f"{archive.name} is refused, nothing was unpacked: {bad[0]!r} would not stay "
                    f"a plain file inside its folder ({len(bad)} such)."
                )
            needed = sum(member.file_size for member in members.infolist())
            free = shutil.disk_usage(scratch).free
            if needed > free:
                raise UserError(
                    f"{archive.name} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free "
                    f"in {str(target.parent)!r}."
                )
            members.extractall(scratch)
        scratch.chmod(0o755)
        os.replace(scratch, target)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise UserError(f"{archive.name} is damaged or unknown ({error}): fetch it again.") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _harmless(member):
    posix, windows = PurePosixPath(member.filename), PureWindowsPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    return (
        not posix.is_absolute()
        and not windows.drive
        and not windows.root
        and ".." not in windows.parts
        and kind in (0, stat.S_IFREG, stat.S_IFDIR)
    )


def _client(spec):
    """Kaggle's client, logged in. Raises UserError that says what is needed."""
    needs = (
        f"fetching {spec.name} needs an account at kaggle.com: put its API token at "
        "~/.kaggle/kaggle.json, or set KAGGLE_USERNAME and KAGGLE_KEY; or download "
        f"{spec.source or spec.kaggle} by hand"
    )
    if not _has_credentials():
        raise UserError(f"{needs}.")
    try:
        import kaggle  # logs in when imported; older versions leave the interpreter where that fails

        kaggle.api.authenticate()
    except ImportError as error:
        raise UserError(
            f"fetching needs Kaggle's client, and {error.name!r} is not installed: pip install 'medq[fetch]'."
        ) from None
    except (SystemExit, Exception) as error:  # whatever its version raises, it means that the log-in failed
        raise UserError(f"{needs}; the credentials found were refused ({_first_line(error)}).") from None
    return kaggle.api


def _has_credentials():
    given = os.environ.get
    if given("KAGGLE_API_TOKEN") or (given("KAGGLE_USERNAME") and given("KAGGLE_KEY")):
        return True
    folders = [given("KAGGLE_CONFIG_DIR"), "~/.kaggle", "~/.config/kaggle"]
    return any(
        (Path(folder).expanduser() / name).is_file()
        for folder in folders
        if folder
        for name in ("kaggle.json", "access_token", "credentials.json")
    )


def _download(client, spec, folder):
    try:
        quiet = not sys.stderr.isatty()
        client.dataset_download_files(spec.kaggle, path=str(folder), unzip=False, quiet=quiet)
    except (SystemExit, Exception) as error:  # the client's exceptions differ between versions
        raise UserError(
            f"Kaggle's client could not download {spec.kaggle}: {_first_line(error)}; check the "
            "network and that the account may see the dataset."
        ) from None
    archives = sorted(folder.glob("*.zip"))
    if not archives:
        raise UserError(f"Kaggle's client left no archive of {spec.kaggle}: fetch it again.")
    return archives[0]


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
