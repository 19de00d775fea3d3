"""Phantoms: the same bytes everywhere, the releases' imbalance, lesions with views, learnable classes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medq import params
from medq.datasets import folds, index, phantoms, pixels, read_image
from medq.datasets.spec import DatasetSpec

CATALOGUE = params.datasets()
NAMES = ("BrainMRI", "ChestXray", "SkinCancer")
PINNED = {  # SHA-256 over every 11th image; a change of it needs a new phantoms.VERSION
    "BrainMRI": "06d65f01aaea5fd95bfd941ffc171452021604771440810c7864e8828f62f883",
    "ChestXray": "64447ac7ac872be8ddc1d3ba92bcd481c69aa52fc006bf49da25e3777e5a6fef",
    "SkinCancer": "64a0035f9c4c30a1cdceaa0fbd955f758c163dd2ab1e09e9a6582c1ce5105b1d",
}


def spec_of(name, **phantom):
    spec = CATALOGUE[f"phantom-{name}"]
    return DatasetSpec(**spec.model_dump() | {"phantom": spec.phantom.model_dump() | phantom})


def digest(name, every):
    """SHA-256 over the images of a dataset, of which one in `every` counts."""
    drawn = (phantoms.draw(path).tobytes() for path in index(spec_of(name))["path"][::every])
    return hashlib.sha256(b"".join(drawn)).hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_pinned(name):
    assert digest(name, 11) == PINNED[name]


def test_bytes_do_not_depend_on_the_processors_vector_instructions():
    code = "from tests.test_phantoms import NAMES, digest\nprint(*(digest(name, 60) for name in NAMES))"
    plain = os.environ | {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX X86_V3 X86_V4"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    said = subprocess.check_output(command, text=True, cwd=Path(__file__).parents[1], env=plain)
    assert said.split() == [digest(name, 60) for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_those_of_the_entry_and_near_the_release(name):
    spec, real = spec_of(name), CATALOGUE[name]
    frame = index(spec)
    for part, counts in spec.release.items():
        rows = frame[frame["split"] == ("" if part == "all" else part)]
        assert rows["label"].value_counts().sort_index().tolist() == list(counts.values())
        shares = np.array(list(counts.values())) / sum(counts.values())
        released = np.array(list(real.release[part].values())) / sum(real.release[part].values())
        assert np.abs(shares - released).max() < 0.04
    assert frame["image_id"].is_unique and frame["path"].is_unique
    assert frame["image_id"].is_monotonic_increasing


def test_every_class_has_lesions_enough_for_five_folds_and_some_have_views():
    spec = spec_of("SkinCancer")
    frame = index(spec)
    lesions = frame.groupby("label")["group"].nunique()
    assert lesions.min() >= 10
    assert 1.2 < len(frame) / frame["group"].nunique() < 1.6  # HAM10000: 1.34
    assert (frame.groupby("group")["label"].nunique() == 1).all()
    table = folds(frame, spec)
    assert (table.groupby("group")["fold"].nunique() == 1).all()
    assert table.groupby(["fold", "label"]).size().unstack().min().min() >= 2


@pytest.mark.parametrize("name", NAMES)
def test_images_are_distinct_full_of_contrast_and_read_like_any_other(name):
    frame = index(spec_of(name)).iloc[::40]
    images = np.stack([read_image(path) for path in frame["path"]])
    assert images.dtype == np.uint8 and images.shape[1:] == (64, 64, 3)
    assert len({image.tobytes() for image in images}) == len(images)
    assert images.std(axis=(1, 2, 3)).min() > 8
    assert (images == images[..., :1]).all() == (name != "SkinCancer")
    resized = Image.fromarray(images[0]).resize((24, 24), Image.Resampling.BILINEAR)
    assert np.array_equal(read_image(frame["path"].iloc[0], 24), np.asarray(resized))


def test_views_of_a_lesion_resemble_each_other():
    frame = index(spec_of("SkinCancer"))
    several = frame[frame.groupby("group")["group"].transform("size") > 1].iloc[:80]
    colour = np.stack([read_image(path)[24:40, 24:40].mean((0, 1)) for path in several["path"]])
    groups = several["group"].to_numpy()

    def within(groups):
        return (colour - np.stack([colour[groups == group].mean(0) for group in groups])).std()

    assert within(groups) < 0.85 * within(np.roll(groups, 1))  # neighbours are other lesions of the class


def test_seed_and_size_matter():
    path, seeded, small = (index(spec_of("ChestXray", **k))["path"][0] for k in ({}, {"seed": 1}, {"image_size": 32}))
    assert phantoms.draw(small).shape == (32, 32, 3)
    assert not np.array_equal(phantoms.draw(seeded), phantoms.draw(path))


@pytest.mark.parametrize(("name", "least"), [("BrainMRI", 0.60), ("ChestXray", 0.70), ("SkinCancer", 0.70)])
def test_classes_can_be_told_apart_but_not_perfectly(name, least):
    # A linear model on coarse pixels, far weaker than a network, does better than chance and is not perfect.
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    spec = spec_of(name)
    frame = index(spec).groupby("label").head(90 if name != "SkinCancer" else 60).reset_index(drop=True)
    features = np.stack([read_image(path, 16).ravel() / 255 for path in frame["path"]])
    features -= features.mean(0)
    labels, test = frame["label"].to_numpy(), np.arange(len(frame)) % 3 == 0
    model = LogisticRegression(C=0.05, max_iter=500).fit(features[~test], labels[~test])
    auroc = roc_auc_score(labels[test], model.predict_proba(features[test]), multi_class="ovr")
    assert least < auroc < 0.99


def test_pixels_and_fingerprint_of_phantoms(tmp_path):
    frame = index(spec_of("BrainMRI")).iloc[:6]
    array, fingerprint = pixels(frame, 32, tmp_path)
    assert array.shape == (6, 32, 32, 3)
    assert np.array_equal(array[3], read_image(frame["path"].iloc[3], 32))
    other = index(spec_of("BrainMRI", seed=1)).iloc[:6]
    assert pixels(other, 32, tmp_path)[1] != fingerprint
