"""Catalogue, index, folds and subsets: what is found, how it is split, and what is refused how."""

import os
import shutil
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from medq import params
from medq.datasets import DatasetWarning, dataset_root, folds, index, inner_split, subset
from medq.datasets.spec import DatasetSpec
from medq.errors import UserError

CATALOGUE = params.datasets()


def folder_spec(**changes):
    entry = {"name": "Own", "title": "Own", "layout": "folders", "classes": ["cat", "dog"], "folder": ["own"]}
    entry |= {"pattern": "{class}/images/*", "folds": {"scheme": "stratified", "n": 2}}
    return DatasetSpec(**(entry | changes))


def table_spec(**changes):
    table = {"file": "meta.csv", "image": "image_id", "label": "dx", "group": "lesion", "folders": ["a", "b"]}
    entry = {"name": "Own", "title": "Own", "layout": "table", "classes": ["cat", "dog"], "folder": ["own"]}
    entry |= {"table": table | changes.pop("table", {}), "folds": {"scheme": "stratified-group", "n": 2}}
    return DatasetSpec(**(entry | changes))


FIXED = {"splits": {"train": "tr", "held_out": "te"}, "folds": {"scheme": "fixed", "n": 1}}


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def write_table(root, rows, header="lesion,image_id,dx", encoding="utf-8"):
    (root / "meta.csv").write_text("\n".join([header, *rows]) + "\n", encoding=encoding)


def refused(spec, root, *said):
    """Indexing ends in one sentence that holds each of `said`."""
    with pytest.raises(UserError) as error:
        index(spec, root)
    text = str(error.value)
    assert "\n" not in text and [part for part in said if part not in text] == [], text
    return text


def left_out(spec, root):
    """How many images are found, and what is said about others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = index(spec, root)
    return len(frame), sorted(str(item.message).removeprefix("Own: ") for item in caught)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch):
    monkeypatch.delenv("MEDQ_DATA", raising=False)


# Catalogue


def test_catalogue_holds_the_three_datasets_and_their_stand_ins():
    totals = {"BrainMRI": 7023, "ChestXray": 3616 + 10192 + 1345, "SkinCancer": 10015}
    assert list(CATALOGUE) == [*totals, *(f"phantom-{name}" for name in totals)]
    for name, total in totals.items():
        spec, phantom = CATALOGUE[name], CATALOGUE[f"phantom-{name}"]
        assert sum(sum(part.values()) for part in spec.release.values()) == total
        assert (phantom.classes, phantom.folds) == (spec.classes, spec.folds)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("  pattern: '{class}/*'\n  patern: x\n", "unknown key 'patern' (did you mean 'pattern'?)"),
        ("  pattern: '{class}/*'\n  folds: {scheme: stratified, m: 3}\n", "unknown key 'folds.m'"),
        ("  pattern: '*/{class}'\n", "pattern must name {class}"),
        ("  pattern: '{class}/*'\n  table: {file: a.csv, image: i, label: l, folders: [x]}\n", "to layout table"),
        ("  pattern: '{class}/*'\n  folds: {scheme: stratified, n: 1}\n", "n of 2 or more"),
        ("  pattern: '{class}/*'\n  folds: {scheme: fixed, n: 1}\n", "fixed folds need 'splits'"),
        ("  pattern: '../{class}/*'\n", "below the data root"),
        ("  pattern: '{class}/**'\n", "for one level"),
        (
            "  pattern: '{class}/*'\n  classes: [no, 7]\n",
            "classes.0: must be text, in quotes where YAML reads it as something else "
            "(numbers, yes, no, null), not 'False'; classes.1: must be text",
        ),
        ("  pattern: '{class}/*'\n  classes: cat\n", "classes: must be a list, like [a, b], not 'cat'"),
        ("  pattern: '{class}/*'\n  table: meta.csv\n", "table: must hold keys and values of its own, not 'meta.csv'"),
        ("  pattern: '{class}/*'\n  titles: {wolf: Wolf}\n", "wolf"),
        ("  pattern: '{class}/*'\n  release: {all: {cat: 3}}\n", "lacks dog"),
        ("  pattern: '{class}/*'\n  release: {all: {cat: 3, dog: -1}}\n", "release.all.dog"),
    ],
)
def test_catalogue_names_what_is_wrong(tmp_path, change, expected):
    entry = {"layout": "folders", "classes": "[cat, dog]", "folder": "[own]", "folds": "{scheme: stratified, n: 2}"}
    lines = [f"  {key}: {value}" for key, value in entry.items() if f"  {key}:" not in change]
    file = tmp_path / "datasets.yaml"
    file.write_text("\n".join(["Own:", "  title: Own", *lines, change]))
    with pytest.raises(UserError) as error:
        params.datasets(tmp_path)
    assert expected in str(error.value) and str(file) in str(error.value)
    assert "at least 2" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"2024: {}\n", "reads as 2024; put it in quotes"),
        (b"Own: 3\n", "Own: must hold keys and values of its own, not '3'"),
        (b"Own: {name: x}", "must not have a key 'name'"),
    ],
)
def test_catalogue_refuses_what_is_no_entry(tmp_path, content, said):
    (tmp_path / "datasets.yaml").write_bytes(content)
    with pytest.raises(UserError, match=said):
        params.datasets(tmp_path)


# Where the data lies


def test_root_is_found_below_the_data_root_or_given_itself(tmp_path, root, monkeypatch):
    spec = folder_spec()
    assert dataset_root(spec, tmp_path) == root
    for given_root in (tmp_path, root):
        monkeypatch.setenv("MEDQ_DATA", str(given_root))
        assert dataset_root(spec) == root


def test_missing_root_names_both_ways_out(tmp_path):
    for given_root in (None, tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match="MEDQ_DATA.*data_root"):
            dataset_root(folder_spec(), given_root)
    assert dataset_root(CATALOGUE["phantom-BrainMRI"]) is None


# Folders


def test_folders_pass_over_what_is_no_image(root):
    names = "1.png 2.JPG Thumbs.db notes.txt ._1.png".split()
    touch(root, *(f"cat/images/{name}" for name in names))
    touch(root, "cat/masks/1.png", "dog/images/1.png", "wolf/images/1.png", "readme.md")
    (root / "cat" / "images" / "folder.png").mkdir()
    frame = index(folder_spec(), root)
    assert frame.columns.tolist() == ["image_id", "path", "label", "group", "split"]
    assert frame["image_id"].tolist() == ["cat/images/1", "cat/images/2", "dog/images/1"]
    assert frame["label"].tolist() == [0, 0, 1]
    assert frame["group"].tolist() == frame["image_id"].tolist()
    assert set(frame["split"]) == {""}
    assert all(Path(path).is_file() for path in frame["path"])


def test_ids_survive_another_suffix_and_stay_unique(root, tmp_path):
    touch(root, "cat/images/1.png", "dog/images/1.png")
    other = tmp_path / "copy" / "own"
    touch(other, "cat/images/1.webp", "dog/images/1.jpg")
    ids = index(folder_spec(), root)["image_id"].tolist()
    assert index(folder_spec(), other)["image_id"].tolist() == ids
    touch(root, "cat/images/1.jpg", "cat/images/1.jpg.bmp")
    frame = index(folder_spec(), root)
    assert frame["image_id"].is_unique and len(frame) == 4


@pytest.mark.parametrize("name", ["with space", 'it\'s "quoted"', "Häßlich ☃ 図", "a;b&c$(d)", "-dash", "tab\there"])
def test_any_name_will_do(tmp_path, name):
    spec = folder_spec(classes=["cat", "dog"], folder=[name.strip()])
    touch(tmp_path / name, f"cat/images/{name}.png", f"dog/images/{name}.png")
    frame = index(spec, tmp_path)
    assert [Path(path).is_file() for path in frame["path"]] == [True, True]
    assert frame["image_id"].tolist() == [f"cat/images/{name}", f"dog/images/{name}"]


def test_fixed_split(root):
    spec = folder_spec(pattern="{split}/{class}/*", **FIXED)
    touch(root, "tr/cat/1.png", "tr/dog/1.png", "te/cat/1.png", "te/dog/1.png")
    frame = index(spec, root)
    assert frame["image_id"].tolist() == ["te/cat/1", "te/dog/1", "tr/cat/1", "tr/dog/1"]
    assert frame["split"].tolist() == ["held_out", "held_out", "train", "train"]
    assert folds(frame, spec)["fold"].tolist() == [0, 0, -1, -1]
    (root / "te" / "dog" / "1.png").unlink()
    refused(spec, root, "no images in te of 'dog'")


def test_what_the_pattern_passes_over_is_said(root):
    spec = folder_spec(pattern="{class}/*.png")
    touch(root, "cat/1.png", "cat/2.PNG", "dog/1.png", "cat/.hidden.png", "cat/Thumbs.db")
    assert left_out(spec, root) == (3, [])
    touch(root, "cat/3.jpg", "dog/4.dcm", "dog/more/5.png", "dog/notes/readme.txt")
    touch(root, "wolf/6.png", ".trash/7.png", "papers/x.pdf")
    assert left_out(spec, root) == (
        3,
        [
            "left out in 'cat', as they do not match '*.png': '3.jpg'",
            "left out in 'dog', as they do not match '*.png': '4.dcm'",
            "left out in 'dog', in folders below; the pattern covers one level: 'more'",
            "left out, since they are no class: 'wolf'",
        ],
    )
    assert left_out(folder_spec(pattern="{class}/*.png", release={"all": {"cat": 2, "dog": 1}}), root) == (3, [])


def test_a_star_is_the_only_sign_of_a_pattern(root):
    touch(root, "cat/slice[1]_0.png", "cat/slice1_0.png", "dog/slice[1]_0.png")
    assert len(index(folder_spec(pattern="{class}/slice[1]_*"), root)) == 2
    touch(root, "cat/scan?.png", "cat/scan1.png", "dog/scan?.png")
    assert len(index(folder_spec(pattern="{class}/scan?.*"), root)) == 2


def test_names_with_the_marks_of_a_pattern_and_names_that_no_file_has(root):
    touch(root, "{split}/images/1.png", "dog/images/1.png")
    assert len(index(folder_spec(classes=["{split}", "dog"]), root)) == 2
    with pytest.raises(ValueError, match="classes.0"):
        folder_spec(classes=["a\0b", "dog"])


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["Cat/images/1.png"], "no folder 'cat'; in its place: 'Cat', 'dog'"),
        (["cat/pictures/1.png"], "no folder 'cat/images'; in its place: 'pictures'"),
        (["cat"], "no folder 'cat'; in its place: 'dog'"),
        (["cat/images/1.nii.gz", "cat/images/2.txt"], "'cat/images' holds 2 files and folders, none of them an image"),
    ],
)
def test_an_empty_class_says_what_was_looked_for(root, files, said):
    refused(folder_spec(), root, "no images of 'cat', 'dog'")
    touch(root, "dog/images/1.png", *files)
    refused(folder_spec(), root, "no images of 'cat'", said)


def test_what_cannot_be_read_is_named_with_the_reason(root):
    touch(root, "cat/images/1.png", "dog/images/1.png")
    images = root / "cat" / "images"
    os.mkfifo(images / "pipe.png")
    for name, target in {"loop": "loop.png", "gone": "elsewhere.png", "fine": "1.png"}.items():
        (images / f"{name}.png").symlink_to(target)
    with open(os.fsencode(images) + b"/caf\xe9.png", "wb"):
        pass
    reasons = ["pipe.png (not a file)", "loop.png (a loop", "gone.png (a symbolic link", ".png (its name is not UTF-8)"]
    assert "fine.png" not in refused(folder_spec(), root, *reasons)
    shutil.rmtree(root / "cat")
    (root / "cat").symlink_to("cat")
    refused(folder_spec(), root, "cannot be read (a loop of symbolic links)")


def test_fewer_images_than_the_release_warns_with_both_counts(root):
    touch(root, "cat/images/1.png", "dog/images/1.png", "dog/images/2.png")
    with pytest.warns(DatasetWarning, match="3 images, the release has 9: cat 1 of 7"):
        index(folder_spec(release={"all": {"cat": 7, "dog": 2}}), root)
    with pytest.warns(DatasetWarning, match="3 images, the release has 2: dog 2 of 1"):
        index(folder_spec(release={"all": {"cat": 1, "dog": 1}}), root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index(folder_spec(release={"all": {"cat": 1, "dog": 2}}), root)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_may_be_written_in_either_normal_form(root, form):
    written = {name: unicodedata.normalize(form, name) for name in ("bénin", "malin", "données", "étude", "Ångström")}
    other = unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], "bénin")
    touch(root, *(f"{written['données']}/{written[name]}/{k}.png" for name in ("bénin", "malin") for k in "12"))
    frame = index(folder_spec(classes=[other, "malin"], folder=["données"], pattern="{class}/*"), root)
    assert frame["label"].tolist() == [0, 0, 1, 1] and frame["image_id"][0] == "bénin/1"
    named = folder_spec(classes=[other, "malin"], folder=["données"], pattern="{class}/Étude*.png")
    with pytest.raises(UserError):
        index(named, root)
    touch(root, *(f"{written['données']}/{written[name]}/{written['étude']} 3.png" for name in ("bénin", "malin")))
    assert index(named, root)["image_id"].tolist() == ["bénin/étude 3", "malin/étude 3"]
    touch(root, f"{written['étude']}/{written['Ångström']} 1.png", f"{written['étude']}/2.png")
    write_table(root, [f"L1,{unicodedata.normalize('NFC', 'Ångström')} 1,{other}", "L2,2,malin"])
    spec = table_spec(classes=["bénin", "malin"], table={"folders": ["étude"]})
    assert index(spec, root)["image_id"].tolist() == ["2", "Ångström 1"]


def test_both_spellings_of_an_accent_are_one_class():
    nfc, nfd = (unicodedata.normalize(form, "bénin") for form in ("NFC", "NFD"))
    spec = folder_spec(classes=[nfd, "malin"], titles={nfc: "Benign"}, release={"all": {nfd: 1, "malin": 1}})
    assert spec.class_titles() == ["Benign", "malin"] and spec.classes[0] == nfc
    with pytest.raises(ValueError, match="repeated"):
        folder_spec(classes=[nfc, nfd])


@pytest.mark.parametrize("name", ["scans [1]", "a*b", "what?", "[!x]", "{own}", "~own", "$HOME", "#1", "-own", "<own>"])
def test_a_folder_with_signs_is_found_from_outside_and_inside(tmp_path, name, monkeypatch):
    monkeypatch.setenv("MEDQ_DATA", str(tmp_path))
    touch(tmp_path / name, "cat/images/1.png", "dog/images/1.png")
    spec = folder_spec(folder=[name])
    assert dataset_root(spec) == tmp_path / name
    assert index(spec, tmp_path / name).equals(index(spec, dataset_root(spec))) and len(index(spec)) == 2


def test_an_archive_unpacked_into_a_folder_of_its_own_name_is_found_once(tmp_path, root):
    touch(root / "own", "cat/images/1.png", "dog/images/1.png")
    (root / "notes").mkdir()
    for start in (tmp_path, root, root / "own"):
        assert dataset_root(folder_spec(), start) == root / "own" == dataset_root(folder_spec(), root / "own")
        assert len(index(folder_spec(), start)) == 2
    touch(root, "cat/images/2.png")  # the outer folder holds a class itself
    assert dataset_root(folder_spec(), tmp_path) == root == dataset_root(folder_spec(), root)


def test_home_in_a_root_is_expanded(tmp_path, root, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(root, "cat/images/1.png", "dog/images/1.png")
    assert len(index(folder_spec(), "~")) == len(index(folder_spec(), "~/own")) == 2


def test_a_folder_of_a_dot_is_the_data_root(root):
    touch(root, "cat/images/1.png", "dog/images/1.png")
    assert len(index(folder_spec(folder=["."]), root)) == 2
    with pytest.raises(ValueError, match="folder must list 'pets'"):
        folder_spec(folder=["."], kaggle="someone/pets")


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "pgm", "ppm", "jp2", "tga", "webp", "pcx", "avif", "ico", ""])
def test_all_that_pillow_reads_is_an_image(root, suffix):
    formats = {"jfif": "JPEG", "jpe": "JPEG", "": "PNG"}
    for name in ("cat", "dog"):
        touch(root, f"{name}/images/plain.png")
        Image.new("L", (16, 16), 9).save(
            (root / name / "images" / "1.2.840.5").with_suffix(f".{suffix}" if suffix else ".77"), formats.get(suffix)
        )
    n, said = left_out(folder_spec(), root)
    assert n == 4 and said == []


def test_what_is_not_read_is_named_by_suffix_and_count(root):
    touch(root, "cat/images/1.png", "dog/images/1.png", *(f"cat/images/{k}.nii.gz" for k in range(3)))
    touch(root, "cat/images/scan.mha", "cat/images/IM0001", "cat/images/IM0002", "cat/images/film.mpg")
    expected = "in formats that are not read: 2 without a suffix, 1 .mha, 1 .mpg, 3 .nii.gz"
    assert left_out(folder_spec(), root) == (2, [f"left out in 'cat/images', {expected}"])
    touch(root, "a/1.png", "a/2.png", "a/2.nrrd")
    write_table(root, ["L1,1,cat", "L2,2,dog"])
    assert left_out(table_spec(), root) == (2, ["left out in 'a', in formats that are not read: 1 .nrrd"])


# Tables


def test_table_reads_several_folders_and_the_first_wins(root):
    touch(root, "a/1.jpg", "b/1.jpg", "b/2.png", "b/2_mask.png", "b/3.jpg")
    write_table(root, ["L1,1,cat", "L1,2,cat", "L2,3.jpg,dog"], encoding="utf-8-sig")
    with pytest.warns(DatasetWarning, match="left out, since meta.csv has no row for them: '2_mask.png'"):
        frame = index(table_spec(), root)
    assert frame["image_id"].tolist() == ["1", "2", "3.jpg"]
    found = [Path(path).relative_to(root).as_posix() for path in frame["path"]]
    assert found == ["a/1.jpg", "b/2.png", "b/3.jpg"]
    assert frame["group"].tolist() == ["L1", "L1", "L2"] and frame["label"].tolist() == [0, 0, 1]


def test_table_with_its_own_split(root):
    spec, header = table_spec(table={"split": "part"}, **FIXED), "lesion,image_id,dx,part"
    touch(root, *(f"a/{k}.jpg" for k in range(1, 7)))
    rows = ["P1,1,cat,tr", "P2,2,dog,tr", "P3,3,cat,te", "P4,4,dog,te", "P5,5,cat,tr", "P5,6,cat,tr"]
    write_table(root, rows, header)
    assert index(spec, root)["split"].tolist() == ["train", "train", "held_out", "held_out", "train", "train"]
    write_table(root, [row.replace("cat,te", "cat,tx") for row in rows], header)
    refused(spec, root, "unknown values of part: 'tx'; known are tr, te")
    write_table(root, [row.replace("P3", "P1") for row in rows], header)
    said = refused(spec, root, "lesion 'P1' on both sides of its part; the scheme stratified-group")
    assert "P5" not in said


def test_all_mistakes_of_a_table_in_one_sentence(root):
    touch(root, "a/1.jpg", "a/2.jpg", "a/3.jpg", "a/3.png", "a/4.jpg")
    write_table(root, ["L1,1,cat", "L1,2,dog", "L2,3,wolf", "L3,1,cat", ",4,dog", "L5,lost,dog"])
    refused(
        table_spec(),
        root,
        "more than one dx to the lesion 'L1'",
        "unknown values of dx: 'wolf'",
        "more than once: '1'",
        "no lesion in 'row 6'",
        "without a file in a or b: 'lost'",
        "two files for one image: '3'",
    )


def test_a_patient_may_have_two_findings_where_the_entry_says_so(root):
    touch(root, "a/1.jpg", "a/2.jpg")
    write_table(root, ["P1,1,cat", "P1,2,dog"])
    assert len(index(table_spec(table={"mixed_groups": True}), root)) == 2


@pytest.mark.parametrize(
    ("files", "ids", "said"),
    [
        ("a/1.jpg a/2.jpg", "1 1.jpg 2", "names images with and without their suffix: '1.jpg'"),
        ("a/x.jpg", " ".join(["x", *(f"m{k:03d}" for k in range(45))]), "'m019' and 25 more"),
        (
            "pictures/1.jpg",
            "1",
            "the image folder 'a' or 'b' is missing; put it there, or name it in `table.folders`; "
            "in its place: 'pictures'",
        ),
        (
            "a/deep/1.jpg a/2.jpg",
            "1 2",
            "without a file in a or b: '1' (there are images in 'a/deep': name each folder",
        ),
        ("a/scan_0017.png a/scan_0018.png", "0 1", "(the files have names like 'scan_0017.png')"),
    ],
)
def test_ids_without_a_file_of_their_own_say_what_is_there(root, files, ids, said):
    touch(root, *files.split())
    write_table(root, [f"L{k},{name},{'cat' if k else 'dog'}" for k, name in enumerate(ids.split())])
    refused(table_spec(), root, said)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("lesion,image_id,dx\nL1,1,caf\xe9\n".encode("latin-1"), "not UTF-8"),
        ("lesion,image_id,dx\nL1,1,cat\n".encode("utf-16"), "UTF-8"),
        (b"", "not a readable CSV"),
        (b"lesion,image_id\nL1,1\n", "lacks the column 'dx'"),
        (b"lesion,image_id,dx,dx\nL1,1,cat,dog\n", "'dx' twice"),
        (
            b"lesion,image_id,dx\nL1,1,cat,more,and,more\n",
            "more than 3 entries in 'row 2'.*every row needs as many entries",
        ),
        (b"lesion,image_id,dx\n", "no images of 'cat', 'dog' .no usable row has 'cat' as its dx"),
        (b"lesion;image_id;dx\nL1;1;cat;\n\n;;wolf\n", "no lesion in 'row 4'.*unknown values of dx: 'wolf'"),
        (b"\n\nlesion,image_id,dx\n\n,1,cat\n", "no lesion in 'row 5'"),
        (b"PK\3\4xl/workbook.xml", "Excel workbook.*CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Excel workbook.*CSV"),
        (b"\x1f\x8b\x08", "compressed"),
        ("lesion,image_id,dx\nL1,1,cat\n".encode("utf-16-le"), "UTF-8"),
        (b'lesion,image_id,dx,notes\nL1,1,cat,"large\nL2,2,dog,\n', "row 2: .*quotation marks"),
        (b'lesion,image_id,dx,notes\nL1,1,cat,"large\nL2,2,dog,"small\n', "row 2: .*quotation marks"),
        (b"lesion,Image_ID,dx\nL1,1,cat\n", "case-sensitive"),
        (b"lesion,image_id,dx\nL1,a/1.JPG,cat\n", "without folder and in the same case; '1.jpg' is there"),
    ],
)
def test_tables_that_cannot_be_read(root, content, expected):
    touch(root, "a/1.jpg")
    (root / "meta.csv").write_bytes(content)
    with pytest.raises(UserError, match=expected):
        index(table_spec(), root)


def test_empty_rows_are_no_rows(root):
    touch(root, "a/1.jpg", "a/2.jpg")
    write_table(root, ["L1,1,cat", " ,,", "L2,2,dog", ",,"])
    assert index(table_spec(), root)["image_id"].tolist() == ["1", "2"]


def test_a_missing_table(root):
    touch(root, "META.CSV", "1.jpg")
    with pytest.raises(UserError, match="'meta.csv' is missing; .*in its place: 'META.CSV'.$"):
        index(table_spec(), root)
    touch(root, "sheet 2.XLSX")
    with pytest.raises(UserError, match="'meta.csv' is missing; 'sheet 2.XLSX' is a workbook: save its sheet as a CSV"):
        index(table_spec(), root)


@pytest.mark.parametrize("suffix", [".tab", ".tsv", ".txt"])
@pytest.mark.parametrize("separator", ["\t", ",", ";", "|"])
def test_tables_with_other_suffixes_and_separators(root, suffix, separator):
    touch(root, "a/1.jpg", "a/2.jpg")
    lines = [("lesion", "image_id", "dx"), ("L1, left", "1", "cat"), ("L2", "2", "dog")]
    (root / f"meta{suffix}").write_text("\n".join(separator.join(f'"{cell}"' for cell in line) for line in lines))
    frame = index(table_spec(), root)
    assert frame[["image_id", "group"]].to_numpy().tolist() == [["1", "L1, left"], ["2", "L2"]]


@pytest.mark.parametrize("files, folders", [("a/deep/1.jpg a/2.jpg", ["a", "a/deep"]), ("1.jpg 2.jpg", ["."])])
def test_neither_a_folder_that_the_table_names_nor_the_table_itself_is_left_out(root, files, folders):
    touch(root, *files.split())
    write_table(root, ["L1,1,cat", "L2,2,dog"])
    assert left_out(table_spec(table={"folders": folders}), root) == (2, [])


def test_the_exact_name_wins_over_a_name_without_suffix(root):
    touch(root, "a/s0.jpg", "a/s0.jpg.png", "b/s0.jpg", "b/s1.png.tif", "a/s2.jpg", "a/s2.png")
    write_table(root, ["L0,s0.jpg,cat", "L1,s1.png,dog", "L2,s2.png,dog", "L3,s2.jpg,cat"])
    frame = index(table_spec(), root).set_index("image_id")
    assert {name: Path(path).relative_to(root).as_posix() for name, path in frame["path"].items()} == {
        "s0.jpg": "a/s0.jpg",
        "s1.png": "b/s1.png.tif",
        "s2.png": "a/s2.png",
        "s2.jpg": "a/s2.jpg",
    }
    touch(root, "a/s1.jpg")
    assert left_out(table_spec(), root) == (4, ["left out, since meta.csv has no row for them: 's0.jpg.png', 's1.jpg'"])


@pytest.mark.parametrize(
    "names", [["NA", "nan", "null", "None", "NULL", "n/a"], ["1e5", "007", "7", "1.0", "True", "-"]]
)
def test_image_ids_are_text(root, names):
    names = [name for name in names if "/" not in name]
    touch(root, *(f"a/{name}.png" for name in names))
    write_table(root, [f"{name},{name},{'cat' if k % 2 else 'dog'}" for k, name in enumerate(names)])
    frame = index(table_spec(), root)
    assert frame["image_id"].tolist() == frame["group"].tolist() == sorted(names)
    assert {Path(path).name for path in frame["path"]} == {f"{name}.png" for name in names}


@pytest.mark.parametrize(
    ("file", "written", "reason"),
    [
        ("00001.png", "1", "zeros or a decimal point"),
        ("1.png", "1.0", "zeros or a decimal point"),
        ("s007.png", "s7", "zeros or a decimal point"),
        ("100000.png", "1e5", "zeros or a decimal point"),
        ("s1.png", "s1.jpg", "another suffix"),
        ("s1.png", "s1.png.jpg", "another suffix"),
        ("S1.PNG", "s1.png", "in the same case"),
        ("s1.png", "C:\\scans\\s1.png", "without folder"),
        ("s 1.png", "s_1", "spaces or signs"),
        ("patient17.png", "patient71", "nearest"),
    ],
)
def test_ids_that_nearly_fit_come_with_a_hint(root, file, written, reason):
    touch(root, f"a/{file}", "a/x.png")
    write_table(root, [f"L1,{written},cat", "L2,x,dog"])
    with pytest.raises(UserError, match=reason) as error:
        index(table_spec(), root)
    assert f"'{Path(file).stem}" in str(error.value) and repr(written) in str(error.value)


def test_a_group_column_needs_folds_by_group():
    with pytest.raises(ValueError, match="stratified-group"):
        table_spec(folds={"scheme": "stratified", "n": 2})
    fixed = table_spec(table={"split": "part"}, **FIXED)
    assert fixed.grouped and table_spec().grouped and not folder_spec().grouped


# Random structures: a DataFrame or a UserError, never another exception

names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=6)
suffixes = st.sampled_from([".png", ".JPG", ".jpeg", ".txt", "", ".png.tif"])
folders = st.sampled_from(["cat/images", "dog/images", "dog", "cat/masks", ".", "cat/images/deep"])
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def attempt(spec, root):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DatasetWarning)
            frame = index(spec, root)
    except UserError as error:
        assert "\n" not in str(error)
        return None
    assert frame["image_id"].is_unique and frame["image_id"].is_monotonic_increasing and len(frame)
    assert set(frame["label"]) == {0, 1}
    return frame


kinds = st.sampled_from(["file", "folder", "link", "loop"])


@given(st.lists(st.tuples(folders, names, suffixes, kinds), max_size=8))
@quick
def test_random_folders(tmp_path_factory, entries):
    root = tmp_path_factory.mktemp("random") / "own"
    (root / "cat" / "images").mkdir(parents=True)
    for folder, name, suffix, kind in entries:
        path = root / folder / (name + suffix)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                path.write_bytes(b"x")
            elif kind == "folder":
                path.mkdir()
            else:
                path.symlink_to(path.name if kind == "loop" else "elsewhere")
        except OSError:
            continue  # a name that this file system does not take
    attempt(folder_spec(), root)


known = st.sampled_from(["", "1", "2", "cat", "dog", "L1", " ", '"', ",", "image_id", "dx", "lesion"])
cells = st.one_of(known, names)


@given(
    st.lists(st.lists(cells, min_size=1, max_size=5), max_size=8),
    st.booleans(),
    st.sampled_from([",", ";"]),
    st.sampled_from(["utf-8", "utf-16"]),
)
@quick
def test_random_tables(tmp_path_factory, rows, header, separator, encoding):
    root = tmp_path_factory.mktemp("random") / "own"
    touch(root, "a/1.png", "a/2.png", "b/2.png")
    lines = [separator.join(row) for row in rows]
    text = "\n".join((["lesion,image_id,dx"] if header else []) + lines)
    (root / "meta.csv").write_bytes(text.encode(encoding, "replace"))
    attempt(table_spec(), root)


# Folds, subsets, inner splits


def frame_of(labels, groups=None):
    ids = [f"i{k:04d}" for k in range(len(labels))]
    groups = ids if groups is None else groups
    return pd.DataFrame({"image_id": ids, "path": ids, "label": labels, "group": groups, "split": ""})


def grouped_frame(seed=0, n_groups=120):
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 0, 0, 1], n_groups)
    label[:20] = [0, 1] * 10
    sizes = rng.integers(1, 5, n_groups)
    groups = np.repeat([f"g{k}" for k in range(n_groups)], sizes)
    return frame_of(np.repeat(label, sizes).tolist(), groups.tolist())


def test_stratified_folds_cover_each_image_once_in_the_same_shares():
    frame = frame_of([0] * 100 + [1] * 50)
    spec = folder_spec(folds={"scheme": "stratified", "n": 5})
    table = folds(frame, spec, seed=42)
    assert table.columns.tolist() == ["image_id", "label", "group", "fold"]
    assert table.groupby(["fold", "label"]).size().unstack().to_numpy().tolist() == [[20, 10]] * 5
    assert table["image_id"].tolist() == frame["image_id"].tolist()
    assert folds(frame, spec, seed=42).equals(table) and not folds(frame, spec, seed=43).equals(table)
    three = folder_spec(folds={"scheme": "stratified", "n": 3})
    assert set(folds(frame, three)["fold"]) == {0, 1, 2}


def test_grouped_folds_never_tear_a_group_apart():
    frame, spec = grouped_frame(), table_spec(folds={"scheme": "stratified-group", "n": 5})
    table = folds(frame, spec)
    assert (table.groupby("group")["fold"].nunique() == 1).all()
    shares = table.groupby("fold")["label"].mean()
    assert np.ptp(shares) < 0.1 and table.groupby("fold").size().min() > len(frame) / 7


def test_classes_with_fewer_images_or_groups_than_folds_are_all_named():
    spec = folder_spec(folds={"scheme": "stratified", "n": 5})
    with pytest.raises(UserError, match=r"cat \(4\), dog \(3\)"):
        folds(frame_of([0] * 4 + [1] * 3), spec)
    grouped = table_spec(folds={"scheme": "stratified-group", "n": 3})
    with pytest.raises(UserError, match=r"3 groups of each class.*dog \(2\)"):
        folds(frame_of([0] * 9 + [1] * 9, [f"g{k}" for k in range(9)] + ["x", "y"] * 4 + ["x"]), grouped)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=6, max_size=60),
    st.integers(3, 80),
    st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_a_subset_keeps_groups_and_shares(groups, size, seed):
    groups = [(0, 1), (1, 2), (2, 1), *groups]
    labels = [label for label, n in groups for _ in range(n)]
    table = frame_of(labels, [f"g{k}" for k, (_, n) in enumerate(groups) for _ in range(n)]).assign(fold=-1)
    held_out = table.assign(fold=0, image_id="h" + table["image_id"], group="h" + table["group"])
    both = pd.concat([table, held_out])
    chosen = subset(both, {"train": size, "held_out": None}, 0, seed)
    train = chosen[chosen["part"] == "train"]
    assert (chosen["part"] == "held_out").sum() == len(table)
    assert set(train["label"]) == set(labels)
    whole = table.groupby("group").size()
    assert all(whole[name] == images for name, images in train.groupby("group").size().items())
    assert len(train) <= size + 3 * 3  # at least one group of each class, even where its share is one image
    shuffled = both.sample(frac=1, random_state=1)
    again = subset(shuffled, {"train": size, "held_out": None}, 0, seed)
    assert set(again["image_id"]) == set(chosen["image_id"])


def test_subset_takes_exactly_the_size_where_groups_are_single_images():
    spec = folder_spec(folds={"scheme": "stratified", "n": 2})
    table = folds(frame_of([0] * 300 + [1] * 100), spec)
    sizes, whole = {"train": 41, "held_out": 20}, {"train": None, "held_out": None}
    chosen = subset(table, sizes, 1, seed=3)
    counts = chosen.groupby(["part", "label"]).size()
    assert counts["train"].tolist() == [31, 10] and counts["held_out"].tolist() == [15, 5]
    assert (chosen["part"].eq("held_out") == chosen["fold"].eq(1)).all()
    assert len(subset(table, whole, 0)) == 400
    assert not chosen["image_id"].equals(subset(table, sizes, 1, seed=4)["image_id"])
    with pytest.raises(UserError, match="unknown fold 7: known are 0, 1"):
        subset(table, whole, 7)
    with pytest.raises(UserError, match="2 classes need at least one image each"):
        subset(table, whole | {"train": 1}, 0)


def test_inner_split_is_disjoint_by_group_and_holds_all_classes():
    train = grouped_frame(1)
    fit, selection = inner_split(train, seed=42)
    assert len(fit) + len(selection) == len(train)
    assert not set(fit["group"]) & set(selection["group"])
    assert set(fit["label"]) == set(selection["label"]) == {0, 1}
    assert abs(len(selection) / len(train) - 0.2) < 0.05
    again = inner_split(train, seed=42)
    assert again[1].equals(selection) and not inner_split(train, seed=1)[1].equals(selection)
    with pytest.raises(UserError, match="label 1"):
        inner_split(frame_of([0, 0, 0, 1]))


def mixed_frame(kinds, seed):
    """Groups with the classes of one of `kinds` each, in an order that hides the rare ones behind the common."""
    rng = np.random.default_rng(seed)
    groups = [(f"g{k:03d}", sorted(kinds[k % len(kinds)])) for k in rng.permutation(60)]
    rows = [(f"{name}/{label}", label, name) for name, labels in groups for label in labels]
    return pd.DataFrame(rows, columns=["image_id", "label", "group"])


@pytest.mark.parametrize(
    "kinds",
    [[{0}] * 5 + [{0, 1}], [{0, 1}], [{0, 1}, {0, 2}, {1, 2}], [{0}] * 9 + [{0, 1, 2}], [{0}, {1}, {1}, {0, 1, 2, 3}]],
)
def test_groups_of_several_classes_lose_no_class(kinds):
    for seed in range(8):
        frame = mixed_frame(kinds, seed)
        classes, n = set(frame["label"]), len(set(frame["label"]))
        both = pd.concat([frame.assign(fold=-1), frame.assign(fold=0, group="h" + frame["group"])])
        chosen = subset(both, {"train": n, "held_out": 10}, 0, seed)
        fit, selection = inner_split(frame, 0.2, seed)
        for part in (chosen[chosen["part"] == "train"], chosen[chosen["part"] == "held_out"], fit, selection):
            assert set(part["label"]) == classes
        assert not set(fit["group"]) & set(selection["group"]) and len(selection) < len(fit)
        whole = both.groupby("group").size()
        assert all(whole[name] == images for name, images in chosen.groupby("group").size().items())


# Real images


def test_real_brain_images_and_their_fixed_split(real_data):
    spec = CATALOGUE["BrainMRI"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the release is complete
        frame = index(spec, real_data)
    assert frame.groupby(["split", "label"]).size().tolist() == [300, 306, 405, 300, 1321, 1339, 1595, 1457]
    assert (folds(frame, spec)["fold"] == 0).sum() == 1311


def test_real_skin_images_keep_lesions_whole(real_data):
    spec = CATALOGUE["SkinCancer"]
    frame = index(spec, real_data)
    assert len(frame) == 10015 and frame["group"].nunique() == 7470
    table = folds(frame, spec)
    assert (table.groupby("group")["fold"].nunique() == 1).all()
    assert table.groupby(["fold", "label"]).size().unstack().min().min() >= 20
    chosen = subset(table, {"train": 480, "held_out": 240}, 2)
    parts = chosen.groupby("part")["group"].agg(set)
    assert not parts["train"] & parts["held_out"]
    assert 470 <= (chosen["part"] == "train").sum() <= 485


def test_real_chest_images_are_a_part_of_the_release(real_data):
    with pytest.warns(DatasetWarning, match="10284 images, the release has 15153"):
        frame = index(CATALOGUE["ChestXray"], real_data)
    assert frame.groupby("label").size().tolist() == [3350, 5596, 1338]
