"""The audit finds copies and nothing else, says which stand on both sides, and what to remove."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from medq import params
from medq.datasets import audit, folds, index, read_image, twins_to_remove
from medq.datasets.audit import summary
from medq.errors import UserError

CATALOGUE = params.datasets()


def scene(seed, size=160):
    """A smooth random picture with detail, unlike any other seed's."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((size, size))
    fine = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).resize((size, size))
    return Image.blend(coarse, fine, 0.25)


@pytest.fixture
def dataset(tmp_path):
    """Eight scenes with copies of every kind: (index, folds with fold 0 held out)."""
    pictures = {f"original{k}": scene(k) for k in range(8)}
    pictures |= {
        "same0": scene(0),
        "same0again": scene(0),
        "jpeg1": scene(1),
        "smaller2": scene(2).resize((120, 120)),
        "brighter3": scene(3).point(lambda value: value * 0.7 + 40),
        "mirror4": ImageOps.mirror(scene(4)),
        "flip5": ImageOps.flip(scene(5)),
        "turned6": scene(6).rotate(180),
        "quarter7": scene(7).rotate(90),
        "blank": Image.new("RGB", (50, 50)),
        "white": Image.new("RGB", (50, 50), "white"),
    }
    rows = []
    for name, picture in sorted(pictures.items()):
        path = tmp_path / (name + (".jpg" if name == "jpeg1" else ".png"))
        picture.save(path, quality=85)
        rows.append((name, str(path), int(name == "mirror4"), name, ""))
    frame = pd.DataFrame(rows, columns=["image_id", "path", "label", "group", "split"])
    held_out = frame["image_id"].str.startswith("original") | (frame["image_id"] == "same0")
    return frame, frame[["image_id", "label", "group"]].assign(fold=np.where(held_out, 0, -1))


def groups_of(found, kind):
    rows = found[found["kind"] == kind]
    return sorted(rows.groupby("group_id")["image_id"].agg(sorted).tolist())


def test_each_kind_of_copy_is_found_and_nothing_else(dataset):
    found = audit(*dataset)
    assert found.columns.tolist() == ["image_id", "group_id", "kind", "spans", "label"]
    assert groups_of(found, "identical") == [["original0", "same0", "same0again"]]
    assert groups_of(found, "near") == [["brighter3", "original3"], ["jpeg1", "original1"], ["original2", "smaller2"]]
    assert groups_of(found, "mirrored") == [["flip5", "original5"], ["mirror4", "original4"], ["original6", "turned6"]]
    assert found["spans"].all()
    assert audit(*dataset).equals(found)


def test_a_near_group_takes_identical_images_along(dataset):
    frame, assigned = dataset
    path = Path(frame["path"].iloc[0]).with_name("jpeg0.jpg")
    scene(0).save(path, quality=80)
    more = pd.concat([frame, pd.DataFrame([("jpeg0", str(path), 0, "jpeg0", "")], columns=frame.columns)])
    found = audit(more.reset_index(drop=True), more.assign(fold=0))
    assert ["jpeg0", "original0", "same0", "same0again"] in groups_of(found, "near")
    assert groups_of(found, "identical") == [["original0", "same0", "same0again"]]


def test_which_images_span_and_which_are_removed(dataset):
    frame, assigned = dataset
    found = audit(frame, assigned)
    removed = "brighter3 flip5 jpeg1 mirror4 same0again smaller2 turned6".split()
    assert twins_to_remove(found, assigned, 0) == removed
    nothing_held_out = assigned.assign(fold=-1)
    assert twins_to_remove(found, nothing_held_out, 0) == []
    assert not audit(frame, nothing_held_out)["spans"].any()
    kept = ~frame["image_id"].isin(removed)
    assert not audit(frame[kept].reset_index(drop=True), assigned[kept])["spans"].any()
    table = summary(found).set_index("kind")
    assert table["groups"].to_dict() == {"identical": 1, "near": 3, "mirrored": 3}
    assert table["conflicting_groups"].to_dict() == {"identical": 0, "near": 0, "mirrored": 1}


def test_a_dataset_without_copies(dataset, tmp_path):
    frame, assigned = dataset
    alone = frame[frame["image_id"].str.startswith("original")].reset_index(drop=True)
    found = audit(alone, alone.assign(fold=0))
    assert found.empty and summary(found)["groups"].tolist() == [0, 0, 0]
    found.to_csv(tmp_path / "audit.csv", index=False)
    assert twins_to_remove(pd.read_csv(tmp_path / "audit.csv"), assigned, 0) == []


def test_unreadable_images_are_named(dataset):
    frame, assigned = dataset
    Path(frame["path"].iloc[0]).write_bytes(b"x")
    with pytest.raises(UserError, match="1 unreadable image: .*blank"):
        audit(frame, assigned)


@pytest.mark.slow
def test_real_brain_images_have_copies_on_both_sides_of_the_split(real_data):
    spec = CATALOGUE["BrainMRI"]
    frame = index(spec, real_data)
    assigned = folds(frame, spec)
    found = audit(frame, assigned)
    table = summary(found).set_index("kind").loc["identical"]
    assert (table["groups"], table["spanning_groups"], table["conflicting_groups"]) == (300, 189, 0)
    first = found[found["group_id"] == 0].merge(frame, on="image_id")
    assert len({read_image(path).tobytes() for path in first["path"]}) == 1
    # 475 in the release's own files
    held_out = found[found["spans"] & found["image_id"].isin(assigned.loc[assigned["fold"] == 0, "image_id"])]
    assert held_out.loc[held_out["kind"] != "mirrored", "image_id"].nunique() == 477
    assert held_out["image_id"].nunique() == 992


@pytest.mark.slow
def test_real_near_twins_are_twins_at_full_size_too(real_data):
    frame = index(CATALOGUE["BrainMRI"], real_data)
    part = frame[frame["label"] == 3].iloc[::3].reset_index(drop=True)
    found = audit(part, part.assign(fold=0)).merge(part[["image_id", "path"]], on="image_id")
    grey = {path: read_image(path).mean(2) for path in found["path"]}
    for _, group in found[found["kind"] != "identical"].groupby("group_id"):
        first, *others = group["path"]
        for other in others:
            ways = (grey[other], grey[other][:, ::-1], grey[other][::-1], grey[other][::-1, ::-1])
            assert max(np.corrcoef(grey[first].ravel(), way.ravel())[0, 1] for way in ways) > 0.98
    assert (found["kind"] == "mirrored").sum() > 50
