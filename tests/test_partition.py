"""The rows that a cell trains on, selects with and reports on; the phantoms go the whole way."""

import numpy as np
import pandas as pd
import pytest

from medq import artefacts, params, paths
from medq.datasets.partition import AUDIT, partition, prepare
from medq.datasets.spec import DatasetSpec
from medq.errors import UserError


def profile(**changes):
    return params.load("smoke", **changes)


def twins(*groups):
    """The audit's table of groups of images that are copies of each other."""
    rows = [(i, number, "near", False, 0) for number, images in enumerate(groups) for i in images]
    return pd.DataFrame(rows, columns=["image_id", "group_id", "kind", "spans", "label"])


@pytest.fixture
def small(drawn):
    return profile(subset={"train": 80, "held_out": 40})


@pytest.mark.parametrize("dataset", ["phantom-BrainMRI", "phantom-SkinCancer"])
def test_parts_are_apart_and_as_large_as_asked(small, dataset):
    part = partition(small, dataset, 0)
    assert set(part.train).isdisjoint(part.held_out)
    np.testing.assert_array_equal(part.selection, part.held_out)  # section 2.5, as the paper does it
    assert 70 <= len(part.train) <= 80 and 35 <= len(part.held_out) <= 40
    assert part.images.shape[1:] == (32, 32, 3) and part.images.dtype == np.uint8
    assert set(part.labels[part.train]) == set(range(len(part.classes)))


def test_no_lesion_stands_on_both_sides(drawn):
    part = partition(profile(subset={}), "phantom-SkinCancer", 0)
    folds = pd.read_csv(paths.data_folder("smoke", "phantom-SkinCancer") / "folds.csv", dtype=str)
    group = folds.set_index("image_id")["group"]
    assert not set(group[part.image_id[part.train]]) & set(group[part.image_id[part.held_out]])
    assert group.nunique() < len(group)


def test_inner_selection_comes_out_of_the_training_part(drawn):
    usual = partition(profile(), "phantom-ChestXray", 0)
    inner = partition(profile(train={"selection": "inner"}), "phantom-ChestXray", 0)
    assert set(inner.selection) <= set(usual.train) and set(inner.selection).isdisjoint(inner.train)
    np.testing.assert_array_equal(inner.held_out, usual.held_out)


def test_deduplication_takes_twins_out_of_the_training_side_only(drawn):
    usual = partition(profile(subset={}), "phantom-BrainMRI", 0)
    pair = usual.image_id[[usual.train[0], usual.held_out[0]]]
    artefacts.write_csv(paths.data_folder("smoke", "phantom-BrainMRI") / AUDIT, twins(pair))
    clean = partition(profile(subset={}, deduplicate=True), "phantom-BrainMRI", 0)
    assert set(usual.train) - set(clean.train) == {usual.train[0]}
    np.testing.assert_array_equal(usual.held_out, clean.held_out)


def test_copies_never_stand_on_both_sides_of_the_inner_split(drawn):
    inner = profile(train={"selection": "inner"}, subset={"train": 200})
    usual = partition(inner, "phantom-ChestXray", 0)
    rng, rows = np.random.default_rng(0), np.concatenate([usual.train, usual.selection])
    of_class = {label: usual.image_id[rng.permutation(rows[usual.labels[rows] == label])] for label in range(3)}
    chain = of_class[1]  # pairs that share an image: all four are one group
    groups = [ids[k : k + 3] for ids in of_class.values() for k in range(4, len(ids) - 2, 3)][:14]
    groups += [chain[[0, 1]], chain[[1, 2]], chain[[2, 3]]]
    artefacts.write_csv(paths.data_folder("smoke", "phantom-ChestXray") / AUDIT, twins(*groups))
    part = partition(inner, "phantom-ChestXray", 0)
    assert {*part.train, *part.selection} == {*rows} and {*part.train}.isdisjoint(part.selection)
    assert 0.1 < len(part.selection) / len(rows) < 0.3 and len({*part.labels[part.selection]}) == 3

    def torn(p):
        return [group for group in groups if 0 < np.isin(group, p.image_id[p.train]).sum() < len(group)]

    assert torn(usual) and not torn(part)


def test_without_a_limit_of_its_own_every_held_out_image_is_evaluated(drawn):
    part, whole = (partition(profile(subset=s), "phantom-BrainMRI", 0) for s in ({"train": 50}, {}))
    np.testing.assert_array_equal(part.held_out, whole.held_out)
    assert len(part.train) <= 50 < len(whole.train)


def test_preparing_again_changes_nothing_and_a_damaged_folder_is_made_again(small):
    folder = prepare(small, "phantom-BrainMRI")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    prepare(small, "phantom-BrainMRI")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "folds.csv").write_text("image_id")
    prepare(small, "phantom-BrainMRI")
    assert (folder / "folds.csv").read_bytes() == before["folds.csv"]


def test_unknown_names_are_refused(small):
    with pytest.raises(UserError, match="unknown dataset 'phantom-Brain'; did you mean 'phantom-BrainMRI'"):
        partition(small, "phantom-Brain", 0)
    with pytest.raises(UserError, match="unknown fold 3"):
        partition(small, "phantom-BrainMRI", 3)


@pytest.mark.parametrize("name", ["NA", "null", "nan", "None", "007", "1e5", "True"])
def test_an_image_may_have_any_name_and_its_copies_are_removed(drawn, tmp_path, monkeypatch, name):
    from PIL import Image

    names = [name, *(f"s{k}" for k in range(7))]
    pictures = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "own" / "images").mkdir(parents=True)
    for k, one in enumerate(names):
        Image.fromarray(pictures[0 if k < 4 else k]).save(tmp_path / "own" / "images" / f"{one}.png")
    rows = [f"{one},{'ab'[k % 2]}" for k, one in enumerate(names)]
    (tmp_path / "own" / "meta.csv").write_text("\n".join(["image,dx", *rows]))
    table = {"file": "meta.csv", "image": "image", "label": "dx", "folders": ["images"]}
    entry = {"title": "Own", "layout": "table", "classes": ["a", "b"], "folder": ["own"], "table": table}
    spec = DatasetSpec(name="own", **entry, folds={"scheme": "stratified", "n": 2})
    known = params.datasets()
    monkeypatch.setattr(params, "datasets", lambda *_: known | {"own": spec})
    monkeypatch.setenv("MEDQ_DATA", str(tmp_path))
    chosen = params.load("smoke", datasets=["own"], subset={"train": None, "held_out": None}, deduplicate=True)
    copies = set(names[:4])
    for fold in (0, 1):
        part = partition(chosen, "own", fold)
        train, held_out = set(part.image_id[part.train]), set(part.image_id[part.held_out])
        assert not (train & copies and held_out & copies)
    assert set(part.image_id) == set(names)
