"""The committed results: metrics are those of the committed predictions, folds those of the predictions' images."""

import json
from functools import cache

import numpy as np
import pandas as pd
import pytest

from medq import artefacts, metrics, paths, results

REFERENCE = paths.RESULTS / "reference"


@pytest.fixture(scope="module")
def reference():
    if not (REFERENCE / "metrics.csv").is_file():
        pytest.skip("no results/reference in this checkout")
    return results.load(REFERENCE)


def predictions():
    """Of `results/reference`, and of `results/pretrained` and its variants, whose files hold several training seeds."""
    folders = [REFERENCE, *sorted(paths.RESULTS.glob("pretrained*"))]
    return [path for folder in folders for path in sorted((folder / "predictions").glob("*/*/*.parquet"))]


def peer_predictions():
    return sorted((REFERENCE / "predictions").glob("*/*/peers/*.parquet"))


@cache
def stored(folder):
    """{(dataset, backbone, regime, form, recipe, fold, seed): values by metric and class} of its metrics.csv."""
    table = pd.read_csv(folder / "metrics.csv", keep_default_na=False, dtype={"fold": str, "seed": str})
    table = table.assign(value=pd.to_numeric(table["value"], errors="coerce"), seed=table.get("seed", ""))
    keys = ["dataset", "backbone", "regime", "form", "recipe", "fold", "seed"]
    return {key: rows.set_index(["metric", "class"])["value"] for key, rows in table.groupby(keys)}


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in predictions()}), ids=lambda p: p.relative_to(paths.RESULTS).as_posix()
)
def test_metrics_are_those_of_the_predictions(folder):
    for path in sorted(folder.glob("*.parquet")):
        frame = pd.read_parquet(path)
        regime, _, variant = path.name.removesuffix(".parquet").partition(".")
        classes = [name.removeprefix("p_") for name in frame if name.startswith("p_")]
        form = "fake-quant" if variant == "fake-quant" else "converted" if regime[:3] in ("ptq", "qat") else "float"
        recipe = variant if variant in ("mended", "as-trained") else "default"
        for (fold, seed), part in frame.assign(seed=frame.get("seed", "")).groupby(["fold", "seed"]):
            key = (*folder.parts[-2:], regime, form, recipe, str(fold), str(seed))
            values = stored(folder.parents[2])[key]
            again = metrics.summary(part["label"].to_numpy(), part.filter(like="p_").to_numpy(), classes)
            again = again.set_index(["metric", "class"])["value"]
            assert set(values.index) == set(again.index) and len(values) > 20, path
            np.testing.assert_allclose(values.reindex(again.index), again, rtol=0, atol=1e-12, err_msg=str(path))


def test_metrics_of_other_runtimes_are_those_of_their_predictions(reference):
    rows = reference.peers.drop_duplicates(["dataset", "backbone", "runtime", "precision", "fold"])
    assert len(rows) == len(peer_predictions())
    for row in rows.to_dict("records"):
        name = f"{row['runtime']}-{row['precision']}.parquet"
        frame = pd.read_parquet(REFERENCE / "predictions" / row["dataset"] / row["backbone"] / "peers" / name)
        frame = frame[frame["fold"] == int(row["fold"])]
        again = metrics.summary(frame["label"].to_numpy(), frame.filter(like="p_").to_numpy())
        again = again[again["class"] == ""].set_index("metric")["value"]
        for metric in ("auroc", "auprc", "ece", "ece_top_label", "brier"):
            assert row[metric] == pytest.approx(again[metric], rel=0, abs=1e-12), (row["backbone"], name, metric)


@pytest.mark.parametrize(
    "table, raw, keys",
    [
        ("latency", "latency_raw", ["backbone", "regime", "baseline", "batch_size"]),
        ("peers", "peers_raw", ["dataset", "backbone", "runtime", "precision", "batch_size"]),
    ],
)
def test_percentiles_are_those_of_the_stored_batch_times(reference, table, raw, keys):
    stored, times = getattr(reference, table), getattr(reference, raw)
    grouped = times.groupby(keys)["ms"]
    again = (
        grouped.median()
        .rename("again")
        .to_frame()
        .assign(n=grouped.size(), mean=grouped.mean(), p90=grouped.quantile(0.9), tail=grouped.quantile(0.99))
    )
    both = stored.set_index(keys).join(again)
    assert len(both) == len(stored) > 20 and both["n"].notna().all()
    np.testing.assert_allclose(both["p50_ms"], both["again"], rtol=1e-12)
    if table == "latency":
        np.testing.assert_allclose(both["mean_ms"], both["mean"], rtol=1e-12)
        np.testing.assert_allclose(both["p90_ms"].dropna(), both.loc[both["p90_ms"].notna(), "p90"], rtol=1e-12)
    shown = both["p99_ms"].notna()
    assert (shown == (both["n"] >= 368)).all()  # the smallest sample that bounds it
    np.testing.assert_allclose(both.loc[shown, "p99_ms"], both.loc[shown, "tail"], rtol=1e-12)


@cache
def folds(path):
    """Fold and label of each image."""
    table = pd.read_csv(path, dtype={"image_id": str}).set_index("image_id")
    assert table.index.is_unique
    return table[["fold", "label"]]


def test_predictions_are_of_the_held_out_part():
    for path in [*predictions(), *peer_predictions()]:
        frame = pd.read_parquet(path, columns=["image_id", "fold", "label"])
        name, _, dataset, *_ = path.relative_to(paths.RESULTS).parts
        assigned = folds(paths.RESULTS / name / "folds" / f"{dataset}.csv").reindex(frame["image_id"])
        assert (assigned.to_numpy() == frame[["fold", "label"]].to_numpy()).all(), path


def test_finished_cells_have_predictions_and_the_provenance_says_what_they_are(reference):
    done = reference.cells[reference.cells["status"] == "done"]
    missing = [
        tuple(row)
        for row in done[["dataset", "backbone", "regime"]].itertuples(index=False)
        if not (REFERENCE / "predictions" / row.dataset / row.backbone / f"{row.regime}.parquet").is_file()
    ]
    assert missing == []
    banner = reference.banner()
    assert "64" in banner and "scratch" in banner.lower()


@pytest.mark.parametrize("path", sorted(paths.RESULTS.glob("*/checksums.json")), ids=lambda path: path.parent.name)
def test_every_file_is_as_it_was_collected(path):
    sums = json.loads(path.read_text(encoding="utf-8"))
    assert {name: artefacts.sha256(path.parent / name) for name in sums} == sums
    assert {"records.json", "metrics.csv", "cells.csv", "provenance.json"} <= sums.keys()


def test_the_conditions_of_every_timing_are_stored(reference):
    stored = reference.conditions.set_index(["stage", "dataset", "backbone"])
    timed = {("latency", "", b) for b in reference.latency["backbone"]}
    timed |= {("peers", *pair) for pair in reference.peers[["dataset", "backbone"]].itertuples(index=False)}
    assert set(stored.index) == timed and stored.index.is_unique and len(timed) > 8
    assert (stored["threads"] == stored["cores"].str.split().str.len()).all()
    assert stored[["others", "load_before", "load_after", "seconds"]].notna().all(axis=None)
    assert stored["instructions"].str.contains("avx512_vnni").all()
