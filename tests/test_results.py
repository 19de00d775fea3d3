"""Reading result folders: what is there, what is missing, and what the banner may say."""

import json

import fixtures.results as fixtures
import pandas as pd
import pytest

from medq import figures, paths, results, tables
from medq.errors import UserError
from medq.results import SCHEMA, Results, load, means, scores, timings


def small(folder, **files):
    """A result folder with the given tables, columns filled from SCHEMA."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        file = f"{name}.csv"
        pd.DataFrame(rows, columns=SCHEMA[file][: len(rows[0])]).to_csv(folder / file, index=False)
    return load(folder)


# --- files ----------------------------------------------------------------------------------------


def test_an_empty_folder_reads_as_empty_tables(tmp_path):
    r = load(tmp_path)
    for file, columns in SCHEMA.items():
        table = getattr(r, file.split(".")[0])
        assert list(table.columns) == columns and table.empty, file
    assert r.provenance == {} and r.datasets == r.backbones == r.regimes == []
    assert r.status.empty and r.folds("BrainMRI").empty
    assert "no results here yet" in r.banner()
    p = r.predictions("BrainMRI", "resnet18", "fp32")
    assert p.empty and list(p.columns)[:3] == ["image_id", "fold", "label"] and "p_glioma" in p


def test_missing_numbers_are_missing_and_text_is_never_lost(tmp_path):
    row = ("D", "NA", "fp32", "default", "float", "0", "auprc", "None", "")
    r = small(tmp_path, metrics=[row, (*row[:7], "nan", "0.5")])
    assert r.metrics["backbone"].tolist() == ["NA", "NA"]
    assert r.metrics["class"].tolist() == ["None", "nan"]
    assert r.metrics["value"].isna().tolist() == [True, False]


def test_a_missing_value_column_reads_as_missing(tmp_path):
    pd.DataFrame({"dataset": ["D"], "backbone": ["b"], "regime": ["fp32"], "fold": [0], "status": ["done"]}).to_csv(
        tmp_path / "cells.csv", index=False
    )
    cells = load(tmp_path).cells
    assert cells["reason"].tolist() == [""] and cells["epochs"].isna().all()
    assert cells["fold"].tolist() == ["0"]


def table(file, without="", **entries):
    """A file of one row as text, with the given entries and without one column."""
    columns = [c for c in SCHEMA[file] if c != without]
    return ",".join(columns) + "\n" + ",".join(entries.get(c, "") for c in columns) + "\n"


@pytest.mark.parametrize(
    "file, text, said",
    [
        ("metrics.csv", "dataset,backbone,regime\nD,b,fp32\n", "'recipe'"),
        ("metrics.csv", "", "metrics.csv"),
        ("metrics.csv", table("metrics.csv", value="0.123456")[:-3], "metrics.csv: .*cut short"),
        ("metrics.csv", table("metrics.csv", value="1,5"), "metrics.csv: .*more entries"),
        ("metrics.csv", table("metrics.csv", value='"1,5"'), "'1,5' in row 1 of the column 'value' is not a number"),
        (
            "metrics.csv",
            table("metrics.csv", value="0.5") + "D,b,fp32,,,,,,abc\n",
            "'abc' in row 2 of the column 'value'",
        ),
        ("intervals.csv", table("intervals.csv", low="True"), "'True' in row 1 of the column 'low'"),
        ("metrics.csv", table("metrics.csv", without="value"), "lacks the column 'value'"),
        ("cells.csv", table("cells.csv", without="status"), "lacks the column 'status'"),
        ("latency.csv", table("latency.csv", without="batch_size"), "lacks the column 'batch_size'"),
        ("peers.csv", table("peers.csv", without="batch_size"), "lacks the column 'batch_size'"),
        ("bootstrap.csv", table("bootstrap.csv", without="p_value"), "lacks the column 'p_value'"),
        ("latency_raw.parquet", "no parquet", "latency_raw.parquet"),
        ("provenance.json", "{", "not valid JSON"),
        ("provenance.json", "[]", "must hold a JSON object"),
        *(
            ("provenance.json", json.dumps(value), f"provenance.json: {key}: ")
            for value, key in (
                ({"parameters": None}, "parameters"),
                ({"parameters": []}, "parameters"),
                ({"data": None}, "data"),
                *(({"parameters": {"datasets": wrong}}, "parameters.datasets") for wrong in (None, "BrainMRI")),
                ({"parameters": {"datasets": [1]}}, "parameters.datasets.0"),
                ({"data": {"D": {"n_images": "9"}}}, "data.D.n_images"),
                ({"parameters": {"backbones": [["a"]]}}, "parameters.backbones.0"),
                ({"studied": {"peers": [1]}}, "studied.peers.0"),
            )
        ),
    ],
)
def test_a_broken_file_is_named(tmp_path, file, text, said):
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        getattr(load(tmp_path), file.split(".")[0])
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / file}: ") and said.endswith("collect the results again.") and "\n" not in said


def test_a_file_of_a_header_alone_holds_numbers_none_the_less(tmp_path):
    for file in SCHEMA:
        empty = pd.DataFrame(columns=SCHEMA[file])
        empty.to_parquet(tmp_path / file) if file.endswith(".parquet") else empty.to_csv(tmp_path / file, index=False)
    (tmp_path / "absent").mkdir()
    there, absent = load(tmp_path), load(tmp_path / "absent")
    for name in (file.split(".")[0] for file in SCHEMA):
        assert getattr(there, name).dtypes.to_dict() == getattr(absent, name).dtypes.to_dict()
    assert tables.worst_layers(there, "BrainMRI", "resnet18", "ptq-fbgemm").empty


@pytest.mark.parametrize("size", [100, 0])
def test_broken_predictions_are_named(tmp_path, size):
    world = {"datasets": ("BrainMRI",), "backbones": ("resnet50",), "regimes": ("fp32",)}
    r = Results("r", fixtures.write(tmp_path / "r", n=20, **world))
    path = r.path / "predictions" / "BrainMRI" / "resnet50" / "fp32.parquet"
    path.write_bytes(path.read_bytes()[:size])
    for read in (
        lambda: r.predictions("BrainMRI", "resnet50", "fp32"),
        lambda: r.classes("BrainMRI"),
        lambda: figures.figure7(r),
    ):
        with pytest.raises(UserError, match="fp32.parquet: cannot be read.*collect the results again"):
            read()
    pd.DataFrame({"image_id": ["a"]}).to_parquet(path)
    with pytest.raises(UserError, match="fp32.parquet: lacks the column 'fold'"):
        r.predictions("BrainMRI", "resnet50", "fp32")


@pytest.mark.parametrize("text, said", [("image_id,label\n", "lacks the column 'group'"), ("image_id,la", "cut short")])
def test_broken_folds_are_named(tmp_path, text, said):
    (tmp_path / "folds").mkdir()
    (tmp_path / "folds" / "D.csv").write_text(text)
    with pytest.raises(UserError, match=f"D.csv: .*{said}"):
        load(tmp_path).folds("D")


# --- finding --------------------------------------------------------------------------------------


def test_current_follows_the_environment_then_reference_then_smoke(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.delenv("MEDQ_RESULTS", raising=False)
    for name in ("smoke", "reference", "own"):
        (tmp_path / name).mkdir()
    assert results.current().name == "smoke"
    (tmp_path / "reference" / "metrics.csv").write_text("x")
    assert results.current().name == "reference"
    monkeypatch.setenv("MEDQ_RESULTS", "own")
    assert results.current().path == (tmp_path / "own").resolve()
    monkeypatch.setenv("MEDQ_RESULTS", str(tmp_path / "smoke"))
    assert results.current().name == "smoke"
    monkeypatch.setenv("MEDQ_RESULTS", "nowhere")
    with pytest.raises(UserError, match="nowhere.*own, reference, smoke"):
        results.current()


# --- cells ----------------------------------------------------------------------------------------


def test_status_of_every_cell(gaps):
    assert gaps.status["status"].value_counts().to_dict() == {"done": 165, "unsupported": 1, "failed": 1, "missing": 1}
    assert gaps.state("BrainMRI", "convnext_tiny", "ptq-qnnpack")["reason"].startswith("failed to create add")
    assert gaps.state("SkinCancer", "vit_base", "qat-qnnpack")["status"] == "missing"
    wrong = gaps.state("SkinCancer", "mobilenetv2", "ptq-qnnpack")
    assert wrong["engine_agrees"] is False and wrong["note"] == "ReLU6 off by 6.0"
    assert gaps.state("SkinCancer", "mobilenetv2", "ptq-fbgemm")["engine_agrees"] is True
    assert gaps.state("no", "such", "cell")["status"] == "missing"


def test_status_over_folds(tmp_path):
    cells = [
        ("D", "b", "fp32", 0, "done", ""),
        ("D", "b", "fp32", 1, "failed", "died"),
        ("D", "b", "ptq-fbgemm", 0, "unsupported", "scale"),
        ("D", "b", "ptq-fbgemm", 1, "failed", "died"),
        ("D", "b", "qat-fbgemm", 0, "failed", "died"),
    ]
    r = small(tmp_path, cells=cells)
    states = {s["regime"]: s for s in r.status.to_dict("records")}
    assert states["fp32"]["status"] == "done"
    assert states["ptq-fbgemm"]["status"] == "unsupported" and states["ptq-fbgemm"]["reason"] == "scale"
    assert states["qat-fbgemm"]["status"] == "failed"


def test_what_the_profile_planned_counts_as_missing(tmp_path):
    planned = {"datasets": ["BrainMRI"], "backbones": ["vit_base", "resnet18"], "regimes": ["fp32"]}
    planned |= {"controls": ["fp32-continued"]}
    (tmp_path / "provenance.json").write_text(json.dumps({"parameters": planned}))
    r = load(tmp_path)
    assert r.backbones == ["resnet18", "vit_base"] and r.regimes == ["fp32", "fp32-continued"]
    assert r.status["status"].tolist() == ["missing"] * 4


def test_a_users_own_names_come_after_the_known_ones(tmp_path):
    cells = [(d, b, "fp32", 0, "done") for d in ("mine", "SkinCancer") for b in ("mynet", "vit_base")]
    r = small(tmp_path, cells=cells)
    assert r.datasets == ["SkinCancer", "mine"] and r.backbones == ["vit_base", "mynet"]
    assert results.title("mynet") == "mynet" and results.family("mynet") == "cnn"
    assert results.counterpart("mine") is None and results.counterpart("phantom-BrainMRI") == "BrainMRI"


# --- numbers --------------------------------------------------------------------------------------


def test_pooled_predictions_come_before_the_mean_over_folds(tmp_path):
    row = ("D", "b", "fp32", "default", "float")
    r = small(
        tmp_path,
        metrics=[(*row, f, "auprc", "", v) for f, v in (("0", 0.5), ("1", 0.7), ("pooled", 0.9))]
        + [(*row[:2], "fp16", *row[3:], f, "auprc", "", v) for f, v in (("0", 0.5), ("1", 0.7))],
    )
    s = scores(r, "auprc").set_index("regime")
    assert s["value"].to_dict() == {"fp32": 0.9, "fp16": pytest.approx(0.6)}


def test_stage_recipe_and_class_are_kept_apart(full, gaps):
    key = ("SkinCancer", "mobilenetv2", "ptq-qnnpack")
    value = {
        (form, recipe): scores(gaps, "brier", form=form, recipe=recipe).set_index(results.CELL)["value"].get(key)
        for form in ("converted", "fake-quant")
        for recipe in ("default", "mended")
    }
    assert value["converted", "default"] != value["fake-quant", "default"] == value["converted", "mended"]
    assert value["fake-quant", "mended"] is None
    macro = scores(full, "auprc").set_index(results.CELL)["value"]
    classes = [scores(full, "auprc", klass=c).set_index(results.CELL)["value"] for c in full.classes("ChestXray")]
    cell = ("ChestXray", "resnet50", "fp32")
    assert macro[cell] == pytest.approx(sum(c[cell] for c in classes) / 3)


def test_scores_are_those_of_the_stored_predictions(full):
    from sklearn.metrics import roc_auc_score

    cell = ("BrainMRI", "densenet121", "ptq-fbgemm")
    p = full.predictions(*cell)
    expected = roc_auc_score(p["label"], p.filter(regex="^p_"), multi_class="ovr", average="macro")
    assert scores(full, "auroc").set_index(results.CELL).loc[cell, "value"] == pytest.approx(expected, abs=1e-6)


def test_means_and_their_two_kinds_of_spread(gaps):
    m = means(gaps, "brier", form="fake-quant").set_index(["dataset", "regime"])
    cells = scores(gaps, "brier", form="fake-quant")
    own = cells[(cells["dataset"] == "BrainMRI") & (cells["regime"] == "ptq-qnnpack")]["value"]
    row = m.loc[("BrainMRI", "ptq-qnnpack")]
    assert len(row["backbones"]) == 7 and "convnext_tiny" not in row["backbones"]
    assert row["value"] == pytest.approx(own.mean()) and row["between_std"] == pytest.approx(own.std(ddof=1))
    assert row["low"] < row["value"] < row["high"]


def test_timings_are_medians_over_datasets_of_one_baseline(tmp_path):
    rows = [
        (d, "resnet18", "fp32", baseline, "", "cpu", 1, 2, 300, ms, ms)
        for d, ms in (("a", 1), ("b", 5), ("c", 3))
        for baseline in ("eager", "fused")
    ] + [("", "resnet18", "fp32", "eager", "", "cuda", 1, 2, 300, 9, 9)]
    r = small(tmp_path, latency=rows)
    t = timings(r, 1)
    assert len(t) == 1 and t["p50_ms"].tolist() == [3]
    assert timings(r, 32).empty


# --- banner ---------------------------------------------------------------------------------------


def test_the_banner_tells_what_the_numbers_are_not(full, gaps):
    said = full.banner()
    parts = (
        "64 × 64 pixels; the paper used 224|from scratch|at most 2,000 to train on|fixed split|fold 0 of 5|2026-11-23|"
    )
    parts += (
        "150 of the release's 7,023 images|Example CPU, 2 cores, with VNNI, no GPU|0123456789|168 of 168 cells done|"
    )
    assert [part for part in f"{parts}Timings at 224 × 224".split("|") if part not in said] == []
    assert "phantom" not in said
    said = gaps.banner()
    assert "**1 unsupported**, **1 failed**, **1 missing**" in said
    assert "In 1 cell the engine's kernels" in said


def test_the_banner_of_phantoms_and_of_the_papers_protocol(tmp_path):
    said = fixtures.world(phantoms=True, predictions=False, n=60, backbones=("resnet18",)).banner()
    assert "Generated phantoms, not medical images" in said and "paper's dataset that it stands for" in said
    (tmp_path / "provenance.json").write_text(json.dumps({"parameters": {"image_size": 224, "weights": "imagenet"}}))
    said = Results("r", tmp_path).banner()
    assert "as in the paper" in said and "used 224" not in said and "not recorded" in said
