"""Fetching a release: what is needed, what is refused, what is left behind; and checking what lies there."""

import errno
import importlib
import io
import sys
import tarfile
import zipfile
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from medq import params
from medq.datasets import check, fetch
from medq.datasets.spec import DatasetSpec
from medq.errors import UserError

ENTRY = {"name": "Own", "title": "Own", "layout": "folders", "classes": ["cat", "dog"], "pattern": "{class}/*"}
ENTRY |= {"folder": ["own", "pets/inner"], "folds": {"scheme": "stratified", "n": 2}, "kaggle": "someone/pets"}
SPEC = DatasetSpec(**ENTRY, release={"all": {"cat": 2, "dog": 3}}, source="https://example.org/pets")
MEMBERS = ("inner/cat/1.png", "inner/cat/2.png", "inner/dog/1.png", "inner/dog/2.png", "inner/dog/3.png")


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch, tmp_path):
    for name in ("MEDQ_DATA", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def kaggle_with(monkeypatch, archive):
    """kagglehub as it is, but what it asks the network for is `archive(path)`, which writes a ZIP file. Returns handles."""
    asked = []

    def download_file(response, path, handle, *more, **options):
        asked.append(f"{handle.owner}/{handle.dataset}")
        archive(path)

    resolver = importlib.import_module("kagglehub.http_resolver")
    monkeypatch.setattr(resolver, "build_kaggle_client", MagicMock())
    monkeypatch.setattr(resolver, "_get_current_version", lambda *_: 1)
    monkeypatch.setattr(resolver, "_list_dataset_files", lambda *_: ([], True), raising=False)
    monkeypatch.setattr(resolver, "download_file", download_file)
    return asked


def release(path, members=MEMBERS):
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, b"x")
    return path


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def refused(root, said):
    """Fetching below `root` ends in one sentence that matches `said`, and leaves nothing there."""
    with pytest.raises(UserError, match=said) as error:
        fetch(SPEC, root)
    assert "\n" not in str(error.value) and not (root.is_dir() and left(root))
    return str(error.value)


# Fetching


def test_without_the_client_it_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    refused(tmp_path, r"pip install 'medq\[fetch\]'")


def test_it_downloads_unpacks_and_finds(tmp_path, monkeypatch):
    asked = kaggle_with(monkeypatch, release)
    root = tmp_path / "new data"
    assert fetch(SPEC, root) == root / "pets" / "inner"
    assert left(root) == ["pets"] and left(root / "pets") == ["inner"] and asked == ["someone/pets"]
    assert fetch(SPEC, root) == root / "pets" / "inner" and len(asked) == 1  # it is there: not fetched again
    assert check(SPEC, root).counts["found"].tolist() == [2, 3]


@pytest.mark.parametrize(
    "raised", [ConnectionError("no route\nto host"), ValueError("401"), zipfile.BadZipFile("no route")]
)
def test_a_failed_download_says_what_is_needed_and_leaves_nothing(tmp_path, monkeypatch, raised):
    def fail(path):
        raise raised

    kaggle_with(monkeypatch, fail)
    said = refused(tmp_path / "data", "could not download someone/pets")
    for part in ("~/.kaggle/kaggle.json", "KAGGLE_USERNAME", "KAGGLE_KEY", SPEC.source, str(raised).split("\n")[0]):
        assert part in said


@pytest.mark.parametrize("content", [b"", b"PK\3\4 cut short", b"not an archive"])
def test_damaged_archives_leave_nothing(tmp_path, monkeypatch, content):
    kaggle_with(monkeypatch, lambda path: Path(path).write_bytes(content))
    refused(tmp_path / "data", "could not download someone/pets")


@pytest.mark.parametrize("member", ["../evil", "a/../../evil", "/tmp/medq-evil", "C:\\evil", "..\\evil"])
def test_nothing_is_written_outside_the_folder(tmp_path, monkeypatch, member):
    kaggle_with(monkeypatch, lambda path: release(path, [*MEMBERS, member]))
    fetch(SPEC, tmp_path / "data" / "deep")
    assert left(tmp_path / "data") == ["deep"] and left(tmp_path / "data" / "deep") == ["pets"]
    assert not Path("/tmp/medq-evil").exists()


@pytest.mark.parametrize("kind", ["link", "outside"])
def test_tar_archives_with_links_or_outer_paths_are_refused(tmp_path, monkeypatch, kind):
    def archive(path):
        with tarfile.open(path, "w") as members:
            item = tarfile.TarInfo("inner/cat" if kind == "link" else "../evil")
            item.type, item.linkname = (tarfile.SYMTYPE if kind == "link" else tarfile.REGTYPE), "dog"
            members.addfile(item, io.BytesIO())

    kaggle_with(monkeypatch, archive)
    refused(tmp_path / "data", "link" if kind == "link" else "could not download")
    assert left(tmp_path) == ["data"]


def test_an_archive_with_something_else_in_it(tmp_path, monkeypatch):
    kaggle_with(monkeypatch, lambda path: release(path, ["other/cat/1.png"]))
    with pytest.raises(UserError, match="'own' or 'pets/inner'"):
        fetch(SPEC, tmp_path / "data")
    with pytest.raises(UserError, match="pets' exists already"):
        fetch(SPEC, tmp_path / "data")


def test_a_folder_that_is_the_data_root_itself_does_not_pass_for_the_dataset(tmp_path, monkeypatch):
    asked = kaggle_with(monkeypatch, lambda path: release(path, [name.removeprefix("inner/") for name in MEMBERS]))
    spec = SPEC.model_copy(update={"folder": (".", "pets")})
    assert fetch(spec, tmp_path / "data") == tmp_path / "data" / "pets" and asked == ["someone/pets"]


def test_nothing_to_fetch(tmp_path):
    with pytest.raises(UserError, match="drawn"):
        fetch(params.datasets()["phantom-BrainMRI"], tmp_path)
    with pytest.raises(UserError, match="no 'kaggle' key"):
        fetch(DatasetSpec(**SPEC.model_dump() | {"kaggle": None}), tmp_path)
    with pytest.raises(UserError, match="MEDQ_DATA"):
        fetch(SPEC)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    kaggle_with(monkeypatch, full)
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "cannot be written")
    refused(tmp_path / "data", "cannot be written.*No space left")


# Checking


def test_check_reports_counts_warnings_and_every_error(tmp_path):
    folder = tmp_path / "own"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
    for k in range(2):
        Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(folder / "cat" / f"{k}.png")
    (folder / "dog" / "broken.png").write_bytes(b"x")
    report = check(SPEC, tmp_path)
    assert report.counts["found"].tolist() == [2, 1] and report.counts["release"].tolist() == [2, 3]
    assert report.warnings == ("Own: 3 images, the release has 5: dog 1 of 3",)
    assert len(report.errors) == 2
    assert "2 folds need at least 2 images" in report.errors[0] and "broken.png" in report.errors[1]


@pytest.mark.parametrize("bits", [10, 12, 14, 15])
def test_check_points_out_what_is_left_out_and_what_will_be_dark(tmp_path, bits):
    folder = tmp_path / "own"
    for name, brightest in (("cat", 2**bits - 1), ("dog", 65535)):
        (folder / name).mkdir(parents=True)
        for k in range(2):
            Image.fromarray(np.linspace(0, brightest, 16).astype(np.uint16).reshape(4, 4)).save(
                folder / name / f"{k}.png"
            )
    (folder / "dog" / "scan.nii").touch()
    pages = [Image.new("L", (4, 4), k) for k in range(3)]
    pages[0].save(folder / "dog" / "stack.tif", save_all=True, append_images=pages[1:])
    report = check(SPEC.model_copy(update={"release": {}}), tmp_path)
    left_out, dark, several = report.warnings
    assert report.errors == () and "1 .nii" in left_out and "1 files" in several and "stack.tif" in several
    assert "2 images" in dark and f"{bits} bits" in dark and str(folder / "cat") in dark and "dog" not in dark


def test_check_reports_what_index_refuses_and_nothing_of_a_phantom(tmp_path):
    report = check(SPEC, tmp_path)
    assert report.counts.empty and "MEDQ_DATA" in report.errors[0]
    report = check(params.datasets()["phantom-ChestXray"])
    assert report.errors == report.warnings == () and report.counts["found"].equals(report.counts["release"])
