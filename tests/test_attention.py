"""The study of maps: measures of one image, means with their intervals, and what the stage writes."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures.quantize import cell, part, trained
from PIL import Image
from scipy.stats import spearmanr

from medq import artefacts, attention, finetune
from medq.augment import MEAN, STD
from medq.quantize import stage, static
from medq.quantize.cam import Maps, maps
from medq.quantize.engines import Unsupported
from medq.results import SCHEMA


def made(values, logits=None):
    values = torch.as_tensor(values, dtype=torch.float32)
    logits = torch.zeros(len(values), 2) if logits is None else torch.tensor(logits)
    return Maps(values, logits, torch.zeros(len(values), dtype=torch.long))


def test_measures_of_one_image():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 9, 7, 7)).round(1)  # with ties
    table = attention.shifts(made(first), made(second), 224)
    for i in range(9):
        assert table["rank_correlation"][i] == pytest.approx(spearmanr(first[i].ravel(), second[i].ravel()).statistic)
        tops = [set(np.argsort(-m[i].ravel(), kind="stable")[:10]) for m in (first, second)]
        assert table["overlap"][i] == pytest.approx(len(tops[0] & tops[1]) / len(tops[0] | tops[1]))
        peaks = [np.array(np.unravel_index(m[i].argmax(), (7, 7))) for m in (first, second)]
        assert table["peak_shift"][i] == pytest.approx(32 * np.linalg.norm(peaks[0] - peaks[1]))
    same = attention.shifts(made(first), made(3 * first + 1), 224).mean()
    assert same.to_dict() == pytest.approx({"rank_correlation": 1, "overlap": 1, "peak_shift": 0, "change": 0})
    surer, less_sure = (made(np.eye(4)[None], [[np.log(odds), 0.0]]) for odds in (3.0, 1 / 3))
    assert attention.shifts(surer, less_sure, 32)["change"][0] == pytest.approx(0.25 - 0.75)  # of the reference's class
    with pytest.raises(Unsupported, match="8 × 8"):
        attention.shifts(made(first), made(np.zeros((9, 8, 8))), 224)


def test_a_constant_map_has_no_order_and_is_left_out():
    maps = np.stack([np.eye(4), np.eye(4)[::-1], np.ones((4, 4))])
    table = attention.shifts(made(np.stack([np.eye(4)] * 3)), made(maps), 32)
    assert table.iloc[2, :3].isna().all() and table["change"].notna().all()
    rows = attention.summarised(table, None, 0, 200).set_index("measure")
    assert rows.loc["overlap", "n"] == 2 and rows.loc["change", "n"] == 3
    assert rows.loc["overlap", "value"] == pytest.approx(table["overlap"].mean())
    empty = attention.summarised(table[2:], None, 0, 10).set_index("measure")
    assert np.isnan(empty.loc["overlap", "value"]) and np.isnan(empty.loc["relation", "low"])


def test_rank_correlation_of_resamples():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 12, (2, 30)).astype(float)
    counts = rng.multinomial(30, np.full(30, 1 / 30), 20)
    for found, drawn in zip(attention.rank_correlation(x, y, counts), counts):
        assert found == pytest.approx(spearmanr(np.repeat(x, drawn), np.repeat(y, drawn)).statistic)


def test_intervals_resample_groups():
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(20), 10)
    frame = pd.DataFrame({"rank_correlation": rng.normal(size=20)[group], "overlap": 0.0, "peak_shift": 0.0})
    frame["change"] = rng.normal(size=200)
    alone, together = (attention.summarised(frame, g, 0, 500).set_index("measure") for g in (None, group))
    width = {name: rows["high"] - rows["low"] for name, rows in (("images", alone), ("groups", together))}
    assert width["groups"]["rank_correlation"] > 2 * width["images"]["rank_correlation"]
    assert width["groups"]["change"] == pytest.approx(width["images"]["change"], rel=0.4)


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_stated():
    """80 groups of 1 to 4 images; the means are known, the relation of two normal variables is (6 / π) asin(ρ / 2)."""
    rng, inside, repeats = np.random.default_rng(3), pd.Series(0, ["rank_correlation", "change", "relation"]), 400
    truth = pd.Series([0.7, -0.05, 6 / np.pi * np.arcsin(0.6 / 2)], inside.index)
    for repeat in range(repeats):
        group = np.repeat(np.arange(80), rng.integers(1, 5, 80))
        shared, own = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], (2, len(group)))
        moved, change = (np.sqrt([0.5]) * (shared[group] + own)).T
        frame = pd.DataFrame({"rank_correlation": 0.7 - 0.2 * moved, "overlap": 0.0, "peak_shift": 0.0})
        frame["change"] = 0.1 * change - 0.05
        rows = attention.summarised(frame, group, repeat, 400).set_index("measure")
        frame["change"] = np.exp(change)  # positive, in the same order
        rows.loc["relation"] = attention.summarised(frame, group, repeat, 400).set_index("measure").loc["relation"]
        rows = rows.loc[truth.index]
        inside += (rows["low"] <= truth) & (truth <= rows["high"])
    assert (inside / repeats).between(0.92, 0.975).all(), inside / repeats


@pytest.fixture
def study(alone, monkeypatch):
    """(params, cell) whose FP32 model is `trained`, with neither control nor QAT."""
    params, here = cell("attention")
    monkeypatch.setattr(stage, "float_model", lambda *_: trained())
    return params.model_copy(update={"controls": [], "regimes": ["fp32", "ptq-fbgemm", "ptq-qnnpack"]}), here


def test_the_stage_writes_the_tidy_table_and_a_gallery_of_phantoms(study):
    folder = attention.run(*study)
    table = pd.read_csv(folder / attention.TABLE, keep_default_na=False)
    assert list(table.columns) == SCHEMA[attention.TABLE] and artefacts.is_finished(folder)
    assert set(zip(table["regime"], table["form"], table["view"])) == {
        ("fp32", "float", "darker"),
        ("fp32", "float", "brighter"),
        *((f"ptq-{name}", form, "") for name in ("fbgemm", "qnnpack") for form in ("fake-quant", "converted")),
    }
    assert set(table["method"]) == {"CAM"} and set(table["grid"]) == {16} and set(table["n"]) == {96}
    inside = table[table["measure"] != "relation"].astype({"value": float, "low": float, "high": float})
    assert (inside["low"] <= inside["value"] + 1e-12).all() and (inside["value"] <= inside["high"] + 1e-12).all()
    sound = table[(table["regime"] == "ptq-fbgemm") & (table["measure"] == "rank_correlation")]["value"].astype(float)
    assert (sound > 0.8).all()
    gallery = pd.read_csv(folder / attention.GALLERY, keep_default_na=False)
    assert list(gallery.columns) == SCHEMA[attention.GALLERY] and len(gallery) == 2 * 2 * attention.KEPT
    for _, shown in gallery.groupby("regime"):
        most, least = (shown[shown["moved"] == end]["rank_correlation"] for end in ("most", "least"))
        assert most.max() <= least.min()
    row = gallery.iloc[0]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(row["image"]))))
    assert np.array_equal(pixels, part().images[list(part().image_id).index(row["image_id"])])
    assert len(row["map"].split()) == len(row["map_fp32"].split()) == 16 * 16


def test_no_image_of_a_dataset_leaves_the_run(study):
    params, here = study
    tables, _ = attention.measure(params, type(here)("tiny", "BrainMRI", "mobilenetv2", "attention"), part())
    assert not tables[attention.TABLE].empty and tables[attention.GALLERY].empty


def test_what_is_not_possible_is_a_reason(study, monkeypatch):
    params, here = study
    vit = type(here)("tiny", "phantom-BrainMRI", "vit_base", "attention")
    tables, facts = attention.measure(params, vit, part())
    assert facts["status"] == "unsupported" and "convolutional" in facts["reason"] and tables[attention.TABLE].empty

    def refuse(*_):
        raise Unsupported("no such kernel")

    monkeypatch.setattr(attention.static, "convert", refuse)
    tables, facts = attention.measure(params, here, part())
    assert facts == {"reason": "ptq-fbgemm (converted): no such kernel; ptq-qnnpack (converted): no such kernel"}
    assert set(tables[attention.TABLE]["form"]) == {"float", "fake-quant"} and tables[attention.GALLERY].empty


def test_views_are_the_same_images_under_another_light(study):
    params, here = study
    table = attention.measure(params, here, part())[0][attention.TABLE].set_index(["view", "measure"])["value"]
    graph, images = static.fused(trained(), "traced"), part().images[np.sort(part().held_out)]
    plain, *others = (np.minimum(light * images, 255).transpose(0, 3, 1, 2) / 255 for light in (1, 1.1, 0.9))

    def shown(x):
        return torch.tensor((x - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1)), dtype=torch.float32)

    reference = maps(graph, [shown(plain)])
    for view, light in zip(("brighter", "darker"), others):
        wanted = attention.shifts(reference, maps(graph, [shown(light)], reference.classes), 32).mean()
        assert table[view, "change"] == pytest.approx(wanted["change"], abs=1e-5)
        assert table[view, "rank_correlation"] == pytest.approx(wanted["rank_correlation"], abs=1e-3)
