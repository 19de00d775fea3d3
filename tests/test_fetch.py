"""Fetching a release: what is needed, what is refused, what is left behind; and checking what lies there."""

import stat
import sys
import types
import zipfile

import numpy as np
import pytest
from PIL import Image

from medq.datasets import check, fetch, load_catalogue
from medq.datasets.fetch import unpack
from medq.datasets.spec import DatasetSpec
from medq.errors import UserError

SPEC = DatasetSpec(
    name="Own",
    title="Own",
    layout="folders",
    classes=["cat", "dog"],
    folder=["own", "pets/inner"],
    pattern="{class}/*",
    folds={"scheme": "stratified", "n": 2},
    kaggle="someone/pets",
    release={"all": {"cat": 2, "dog": 3}},
    source="https://example.org/pets",
)
MEMBERS = ("inner/cat/1.png", "inner/cat/2.png", "inner/dog/1.png", "inner/dog/2.png", "inner/dog/3.png")


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch, tmp_path):
    for name in ("MEDQ_DATA", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def kaggle_with(monkeypatch, download, authenticate=lambda: None):
    """A stand-in for Kaggle's package whose client calls `download(slug, folder)`."""

    def dataset_download_files(slug, path, unzip, quiet):
        download(slug, path)

    api = types.SimpleNamespace(authenticate=authenticate, dataset_download_files=dataset_download_files)
    monkeypatch.setitem(sys.modules, "kaggle", types.SimpleNamespace(api=api))
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    monkeypatch.setenv("KAGGLE_KEY", "secret")


def release(path, members=MEMBERS):
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, b"x")
    return path


def left(folder):
    return sorted(path.name for path in folder.iterdir())


# Fetching


def test_without_credentials_it_says_what_is_needed(tmp_path):
    with pytest.raises(UserError) as error:
        fetch(SPEC, tmp_path)
    for part in ("~/.kaggle/kaggle.json", "KAGGLE_USERNAME", "KAGGLE_KEY", "https://example.org/pets"):
        assert part in str(error.value)
    assert left(tmp_path) == []


def test_without_the_client_it_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "x")
    monkeypatch.setitem(sys.modules, "kaggle", None)
    with pytest.raises(UserError, match=r"pip install 'medq\[fetch\]'"):
        fetch(SPEC, tmp_path)


def test_a_refused_login_is_one_sentence(tmp_path, monkeypatch):
    def refuse():
        raise SystemExit("bad token\nlong help")

    kaggle_with(monkeypatch, None, refuse)
    with pytest.raises(UserError, match=r"refused \(bad token\)"):
        fetch(SPEC, tmp_path)


def test_it_downloads_unpacks_and_finds(tmp_path, monkeypatch):
    asked = []

    def download(slug, folder):
        asked.append(slug)
        release(f"{folder}/pets.zip")

    kaggle_with(monkeypatch, download)
    root = tmp_path / "new data"
    assert fetch(SPEC, root) == root / "pets" / "inner"
    assert left(root) == ["pets"] and asked == ["someone/pets"]
    assert fetch(SPEC, root) == root / "pets" / "inner" and len(asked) == 1  # it is there: not fetched again
    assert check(SPEC, root, decode=False).counts["found"].tolist() == [2, 3]


def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch):
    def fail(slug, folder):
        (tmp_path / "seen").write_text(folder)
        raise ConnectionError("no route\nto host")

    kaggle_with(monkeypatch, fail)
    root = tmp_path / "data"
    with pytest.raises(UserError, match="could not download someone/pets: no route;"):
        fetch(SPEC, root)
    assert left(root) == []
    kaggle_with(monkeypatch, lambda slug, folder: None)
    with pytest.raises(UserError, match="left no archive"):
        fetch(SPEC, root)


def test_an_archive_with_something_else_in_it(tmp_path, monkeypatch):
    kaggle_with(monkeypatch, lambda slug, folder: release(f"{folder}/pets.zip", ["other/cat/1.png"]))
    with pytest.raises(UserError, match="'own' or 'pets/inner'"):
        fetch(SPEC, tmp_path / "data")


def test_nothing_to_fetch(tmp_path):
    with pytest.raises(UserError, match="drawn"):
        fetch(load_catalogue()["phantom-BrainMRI"], tmp_path)
    with pytest.raises(UserError, match="no 'kaggle' key"):
        fetch(DatasetSpec(**SPEC.model_dump() | {"kaggle": None}), tmp_path)
    with pytest.raises(UserError, match="MEDQ_DATA"):
        fetch(SPEC)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    kaggle_with(monkeypatch, None)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        fetch(SPEC, tmp_path / "file")


# Archives


@pytest.mark.parametrize("member", ["../evil", "a/../../evil", "/tmp/evil", "C:\\evil", "..\\evil", "C:evil", "\\evil"])
def test_archives_that_would_write_outside_are_refused(tmp_path, member):
    archive = release(tmp_path / "a.zip", ["fine.png", member])
    with pytest.raises(UserError, match="refused, nothing was unpacked"):
        unpack(archive, tmp_path / "target")
    assert left(tmp_path) == ["a.zip"]
    assert not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK])
def test_archives_with_links_or_devices_are_refused(tmp_path, kind):
    member = zipfile.ZipInfo("link.png")
    member.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(UserError, match="link.png.*plain file"):
        unpack(tmp_path / "a.zip", tmp_path / "target")
    assert left(tmp_path) == ["a.zip"]


def test_damaged_archives_leave_nothing(tmp_path):
    archive = release(tmp_path / "a.zip")
    whole = archive.read_bytes()
    for content in (b"", whole[:60], whole.replace(b"pngx", b"pngy", 1)):
        archive.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            unpack(archive, tmp_path / "target")
        assert left(tmp_path) == ["a.zip"]


def test_archives_too_large_for_the_disk_are_refused(tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=3))
    with pytest.raises(UserError, match="are free"):
        unpack(release(tmp_path / "a.zip"), tmp_path / "target")
    assert left(tmp_path) == ["a.zip"]


def test_an_existing_folder_is_not_overwritten(tmp_path):
    (tmp_path / "target").mkdir()
    with pytest.raises(UserError, match="exists already"):
        unpack(release(tmp_path / "a.zip"), tmp_path / "target")


def test_a_sound_archive(tmp_path):
    unpack(release(tmp_path / "a.zip"), tmp_path / "target")
    assert (tmp_path / "target" / "inner" / "dog" / "3.png").read_bytes() == b"x"
    assert left(tmp_path) == ["a.zip", "target"]


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
    assert len(check(SPEC, tmp_path, decode=False).errors) == 1


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
    report = check(SPEC.model_copy(update={"release": {}}), tmp_path)
    left_out, dark = report.warnings
    assert report.errors == () and "1 .nii" in left_out
    assert "2 images" in dark and f"{bits} bits" in dark and str(folder / "cat") in dark and "dog" not in dark


def test_check_reports_what_index_refuses(tmp_path):
    report = check(SPEC, tmp_path)
    assert report.counts.empty and "MEDQ_DATA" in report.errors[0]


def test_check_of_a_phantom_is_clean():
    spec = load_catalogue()["phantom-ChestXray"]
    report = check(spec, decode=False)
    assert report.errors == report.warnings == () and report.counts["found"].equals(report.counts["release"])
