"""Under the paper's protocol: verdicts follow the margins that were written before the results."""

import csv
import math
import re

import numpy as np
import pandas as pd
import pytest

from medq import artefacts, paths, results
from medq.tables import protocol

BIG = {"brier": 0.6, "brier_low": 0.5, "brier_high": 0.7, "auroc": -0.1, "auroc_low": -0.12, "auroc_high": -0.08}
SMALL = {"brier": 0.0, "brier_low": -0.01, "brier_high": 0.01, "auroc": 0.0, "auroc_low": -0.005, "auroc_high": 0.005}


@pytest.mark.parametrize(
    "change, seeds, expected",
    [
        (BIG, (), "collapse"),
        (BIG, (0.5, 0.6, 0.7), "collapse"),
        (BIG, (0.2, 0.8, 0.8), "undecided"),  # one seed on the other side of the margin
        (BIG | {"brier_low": 0.2}, (), "undecided"),
        (BIG | {"auroc_high": 0.0}, (), "undecided"),  # calibration alone
        (SMALL, (), "none"),
        (SMALL | {"brier_high": 0.03}, (), "undecided"),
        (SMALL | {"auroc_low": -0.02}, (), "undecided"),
        (SMALL, (0.01, 0.05), "undecided"),
        (BIG | {"brier_low": math.nan}, (), "undecided"),
        (SMALL | {"auroc_low": math.nan}, (), "undecided"),
    ],
)
def test_what_counts_as_what(change, seeds, expected):
    assert protocol.verdict(change, 0.256, seeds) == expected


def test_the_margins_are_those_of_the_page_that_was_written_first():
    page = (paths.ROOT / "book" / "beyond" / "hypothesis.md").read_text(encoding="utf-8")
    for dataset in ("BrainMRI", "ChestXray", "SkinCancer"):
        stated = float("0" + re.search(rf"(\.\d+) on\s+{dataset}", page.split("What counts as what")[1])[1])
        assert protocol.margin(dataset) == pytest.approx(stated, abs=5e-4)
    assert "within ±.02" in page and "within ±.01" in page and protocol.NONE == {"brier": 0.02, "auroc": 0.01}


def test_changes_are_ptq_minus_fp32_with_their_interval_the_right_way_round(tmp_path):
    model = {"dataset": "BrainMRI", "backbone": "mobilenetv2"}
    rows = [("brier", -60.0, -70.0, -50.0), ("auroc", 10.0, 8.0, 12.0)]
    frame = pd.DataFrame(rows, columns=["metric", "delta_pp", "low_pp", "high_pp"])
    frame = frame.assign(**model, method_a="fp32", method_b="ptq-fbgemm.fake-quant", p_value=0.0)
    frame = frame.assign(images_low_pp=frame["low_pp"], images_high_pp=frame["high_pp"])
    artefacts.write_csv(tmp_path / "bootstrap.csv", frame)
    before, after = ("fp32", "float"), ("ptq-fbgemm", "fake-quant")
    cells = [(*before, "brier", 0.1), (*before, "auroc", 0.99), (*after, "brier", 0.7), (*after, "auroc", 0.89)]
    metrics = pd.DataFrame(cells, columns=["regime", "form", "metric", "value"])
    metrics = metrics.assign(**model, recipe="default", fold="pooled", **{"class": ""})
    artefacts.write_csv(tmp_path / "metrics.csv", pd.concat([metrics.assign(seed=s) for s in ("42", "mean")]))
    table = protocol.under_protocol(results.Results("pretrained", tmp_path))
    row = table.iloc[0]
    assert len(table) == 1 and row["verdict"] == "collapse" and row["fp32_brier"] == pytest.approx(0.1)
    assert {name: row[name] for name in BIG} == pytest.approx(BIG)
    wide = frame.assign(low_pp=frame["delta_pp"] - 90, high_pp=frame["delta_pp"] + 90)  # over other trainings as well
    artefacts.write_csv(tmp_path / "bootstrap.csv", wide)
    row = protocol.under_protocol(results.Results("pretrained", tmp_path)).iloc[0]
    assert row["verdict"] == "collapse" and row["brier_low"] == pytest.approx(-0.3)
    artefacts.write_csv(tmp_path / "bootstrap.csv", wide.assign(images_low_pp=-100.0, images_high_pp=0.0))
    assert protocol.under_protocol(results.Results("pretrained", tmp_path))["verdict"].item() == "undecided"


def test_a_study_is_of_the_first_training_not_of_the_mean(tmp_path):
    row = {"dataset": "BrainMRI", "backbone": "mobilenetv2", "regime": "fp32", "form": "float", "recipe": "default"}
    row |= {"fold": "pooled", "metric": "brier", "class": ""}
    rows = [row | {"seed": seed, "value": value} for seed, value in (("9", 0.1), ("10", 0.3), ("mean", 0.2))]
    artefacts.write_csv(tmp_path / "metrics.csv", pd.DataFrame(rows))
    artefacts.write_json(tmp_path / "provenance.json", {"parameters": {"seeds": [9, 10]}})
    both = results.Results("two-seeds", tmp_path)
    assert [results.scores(r, "brier")["value"].item() for r in (both, both.first_seed)] == [0.2, 0.1]
    artefacts.write_json(tmp_path / "provenance.json", {"parameters": {"seeds": None}})
    one = results.Results("one-seed", tmp_path)
    assert one.first_seed is one


def test_results_that_are_not_there_give_empty_tables(tmp_path):
    assert protocol.under_protocol(results.Results("none", tmp_path)).empty
    assert protocol.weights_by_resolution(tmp_path).empty
    assert protocol.with_training(folder=tmp_path).empty
    assert protocol.channels_by_resolution(tmp_path).empty


def test_channels_are_those_of_the_stored_layers():
    table = protocol.channels_by_resolution().set_index(["weights", "pixels", "dataset"])
    assert {("ImageNet", 224, "BrainMRI"), ("none", 64, "BrainMRI"), ("none", 224, "SkinCancer")} <= set(table.index)
    for (weights, pixels, dataset), row in table.iterrows():
        name = next(name for name, place in protocol.DESIGN.items() if place == (weights, pixels))
        with open(paths.RESULTS / name / "layers.csv", encoding="utf-8") as file:
            layers = [r for r in csv.DictReader(file) if (r["dataset"], r["regime"]) == (dataset, "ptq-fbgemm")]
        ranges = [float(r["weight_range_ratio"]) for r in layers if r["operator"] == "Conv2d"]
        stem = next(r for r in layers if r["layer"] == "conv_stem")
        assert row["stem_weights"] == float(stem["weight_range_ratio"]) and row["all_weights"] == np.median(ranges)
        assert row["stem_outputs"] == float(stem["channel_range_ratio"])
        assert row["last_db"] == float(next(r for r in layers if r["layer"] == "classifier")["sqnr_db"])


def test_rows_of_training_with_quantization_start_from_one_fp32_model_each():
    table = protocol.with_training()
    of_cell = table.groupby(["dataset", "backbone"])
    assert len(of_cell) >= 2 and of_cell["regime"].agg(lambda r: {"ptq-fbgemm", "qat-fbgemm"} <= set(r)).all()
    assert (of_cell["fp32_brier"].nunique() == 1).all()
    assert not table.duplicated(["dataset", "backbone", "regime"]).any()


def test_models_count_where_training_with_quantization_has_more_seeds():
    table = protocol.with_training().query("regime == 'qat-fbgemm'")
    for row in table.itertuples():
        seeds = {name: len(trained(name, row.dataset, row.backbone)) for name in protocol.WITH_TRAINING}
        assert seeds[row.results] == max(seeds.values()) == row.seeds
    assert set(table["results"]) == set(protocol.WITH_TRAINING)  # or the rule is not at work


@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
def test_what_training_takes_back_is_that_of_the_stored_predictions(engine):
    share = protocol.taken_back(engine)
    assert len(share) > 1
    for dataset in share.index:
        of_name = {name: trained(name, dataset, "mobilenetv2", engine) for name in protocol.WITH_TRAINING}
        name = max(of_name, key=lambda name: len(trained(name, dataset, "mobilenetv2")))
        tables = [
            pd.read_parquet(paths.RESULTS / name / "predictions" / dataset / "mobilenetv2" / f"{part}.parquet")
            for part in ("fp32", f"ptq-{engine}.fake-quant", f"qat-{engine}.fake-quant")
        ]
        before, ptq, qat = (np.mean([brier(t[t["seed"] == seed]) for seed in of_name[name]]) for t in tables)
        assert share[dataset] == pytest.approx(1 - (qat - before) / (ptq - before), abs=1e-6)


def test_forms_after_training_are_those_of_the_stored_predictions():
    table = protocol.by_conversion(results.Results("pretrained-qat", paths.RESULTS / "pretrained-qat"))
    assert len(table) and table["mended"].notna().all()
    for row in table.to_dict("records"):
        folder = paths.RESULTS / "pretrained-qat" / "predictions" / row["dataset"] / "mobilenetv2"
        files = {"fake-quant": ".fake-quant", "converted": "", "as-trained": ".as-trained"}
        files = {"fp32": "fp32"} | {name: row["regime"] + suffix for name, suffix in files.items()}
        tables = {name: pd.read_parquet(folder / f"{file}.parquet") for name, file in files.items()}
        score = {name: brier(t[t["seed"].astype(str) == row["seed"]]) for name, t in tables.items()}
        for name in list(files)[1:]:
            assert row[name] == pytest.approx(score[name] - score["fp32"], abs=1e-9)


def trained(name, dataset, backbone, engine="fbgemm"):
    """Seeds that a result folder holds quantization-aware training of."""
    path = paths.RESULTS / name / "predictions" / dataset / backbone / f"qat-{engine}.fake-quant.parquet"
    return sorted(pd.read_parquet(path, columns=["seed"])["seed"].unique()) if path.is_file() else []


def brier(frame):
    probability = frame.filter(regex="^p_").to_numpy()
    return ((probability - np.eye(probability.shape[1])[frame["label"]]) ** 2).sum(1).mean()
