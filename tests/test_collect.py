"""Collecting: tables that are a function of finished cells alone, from a batch that is half done, damaged or mixed."""

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from medq import artefacts, bootstrap, cli, collect, evaluate, paths, provenance, results, stages
from medq.errors import UserError
from medq.groups import connected

CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
SIX = ("fp32", "fp16", "ptq-fbgemm", "ptq-qnnpack", "qat-fbgemm", "qat-qnnpack", "fp32-continued")
PARAMETERS = {
    "profile": "made",
    "datasets": ["BrainMRI"],
    "backbones": ["resnet50", "resnet18"],
    "regimes": list(SIX[:6]),
    "controls": ["fp32-continued"],
    "image_size": 64,
    "weights": "none",
    "subset": {"train": None, "held_out": None},
    "deduplicate": False,
    "seed": 42,
    "bootstrap": {"resamples": 128},
    "latency": {"image_size": 224},
}
N, WRITTEN, LATER = 60, "2026-11-01T10:00:00+00:00", "2026-11-02T10:00:00+00:00"


def ids(fold=0):
    return [f"Testing/{k}" for k in range(fold * N, fold * N + N)]


def probabilities(*names, n=N):
    rng = np.random.default_rng(sum(map(ord, "".join(map(str, names)))))
    logits = rng.normal(size=(n, 4)) + 1.5 * np.eye(4)[np.arange(n) % 4]
    return (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)


def manifest(folder, written=WRITTEN, parameters=(), **facts):
    artefacts.write_json(
        folder / "manifest.json",
        {
            "parameters": PARAMETERS | dict(parameters),
            "written": written,
            "versions": {"torch": "2.13.0"},
            "platform": "Linux",
            "cpu": {"model": "A CPU", "cores": 2, "instructions": ["avx512_vnni"]},
            "gpu": None,
            "commit": {"hash": "ab" * 20, "modified": False},
            "n_train": 100,
            "n_held_out": N,
            **facts,
        },
    )


def finish(folder, files=None, **facts):
    """Complete a folder with what lies in it, or some of its files."""
    made = [p.name for p in folder.iterdir() if p.name not in (artefacts.DONE, artefacts.FAILED)]
    artefacts.finish(folder, files or made, **{"key": "key", "inputs": {"images": "key-data"}} | facts)
    return folder


def add_cell(
    runs, backbone, regime, fold=0, status="done", written=WRITTEN, parameters=(), start="key-fp32", seed="", **facts
):
    """A finished cell with made-up predictions."""
    folder = runs / "BrainMRI" / backbone / regime / (f"seed{seed}" if seed else "") / f"fold{fold}"
    shutil.rmtree(folder, ignore_errors=True)
    int8 = regime.startswith(("ptq", "qat"))
    names = ["predictions.parquet"] + (["predictions.fake-quant.parquet"] if int8 else [])
    for name in names if status == "done" else ():
        made = probabilities(backbone, regime, name, fold, seed)
        artefacts.write_parquet(folder / name, evaluate.table(ids(fold), fold, np.arange(N) % 4, made, CLASSES))
    if not regime.startswith("ptq"):
        history = {"epoch": [0, 1], "train_loss": [1.0, 0.5], "train_accuracy": [0.5, 0.6], "accuracy": [0.4, 0.7]}
        artefacts.write_csv(folder / "history.csv", pd.DataFrame(history | {"seconds": 1.0}))
        artefacts.write_csv(folder / "trained_on.csv", pd.DataFrame({"image_id": [f"Training/{k}" for k in range(80)]}))
    manifest(folder, written, parameters, **{key: facts.pop(key) for key in ("loaded",) if key in facts})
    inputs = {"images": "key-data"} | ({"starts from": start} if regime not in ("fp32", "fp16") else {})
    return finish(folder, status=status, key=f"key-{regime}", inputs=inputs, train_seconds=2.0, epochs=2, **facts)


def add_study(runs, folder, file, rows):
    """A finished study of ResNet-18 whose only table is that of `rows`."""
    folder = runs / "BrainMRI" / "resnet18" / folder / "fold0"
    rows = pd.DataFrame({"dataset": "BrainMRI", "backbone": "resnet18", "fold": 0, **rows})
    artefacts.write_csv(folder / file, rows)
    manifest(folder)
    return finish(folder)


SOME = [
    ("resnet18", "fp32"),
    ("resnet18", "fp16"),
    ("resnet18", "ptq-fbgemm"),
    ("resnet18", "ptq-qnnpack"),
    ("resnet18", "qat-fbgemm"),
    ("resnet50", "fp32"),
]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder with the `runs` of a batch with `SOME` of its cells, and `out`, collected from it; tests copy them."""
    folder = tmp_path_factory.mktemp("first")
    collect.collect(build(folder, SOME), folder / "out")
    return folder


@pytest.fixture
def made(first, tmp_path):
    """The runs folder of a batch with `SOME` of its cells, that a test may spoil."""
    return shutil.copytree(first / "runs", tmp_path / "runs") / "made"


@pytest.fixture
def out(first, tmp_path):
    """The results collected from `made` as it is at first."""
    return shutil.copytree(first / "out", tmp_path / "out")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The collected results of a whole batch: two backbones, every regime."""
    runs = build(tmp_path_factory.mktemp("whole"), [(b, r) for b in ("resnet18", "resnet50") for r in SIX])
    left_out, found = collected(runs)
    assert left_out == {}
    return found


def build(folder, cells):
    """The runs folder of a batch: one fold, and two held-out images with a twin on the training side."""
    runs = folder / "runs" / "made"
    data = runs / "BrainMRI" / "data"
    data.mkdir(parents=True)
    train = [f"Training/{k}" for k in range(80)]
    names, sizes = [*train, *ids(), *ids(1)], (80, N, N)
    frame = pd.DataFrame({"image_id": names, "label": np.arange(len(names)) % 4, "group": names})
    artefacts.write_csv(data / "folds.csv", frame.assign(fold=np.repeat([-1, 0, 1], sizes)))
    copies = [
        (f"{part}/{k}", k, kind, True, k % 4)
        for k, kind in ((3, "identical"), (8, "near"))
        for part in ("Testing", "Training")
    ]
    copies += [("Testing/9", 2, "near", False, 0), ("Testing/10", 2, "near", False, 0)]
    columns = ["image_id", "group_id", "kind", "spans", "label"]
    artefacts.write_csv(data / "audit.csv", pd.DataFrame(copies, columns=columns))
    images(runs, "f00")
    for backbone, regime in cells:
        add_cell(runs, backbone, regime)
    return runs


def images(runs, fingerprint, key="key-data"):
    """Record which images the batch was made from."""
    manifest(runs / "BrainMRI" / "data", fingerprint=fingerprint, n_images=200)
    finish(runs / "BrainMRI" / "data", key=key, inputs={})


def collected(runs, name="out"):
    out = runs.parent.parent / name
    return collect.collect(runs, out), results.load(out)


def test_all_tables_follow_the_schema(found):
    for name in "cells metrics intervals bootstrap silent flips leak history".split():
        frame = pd.read_csv(found.path / f"{name}.csv")
        assert list(frame.columns) == results.SCHEMA[f"{name}.csv"] and len(frame) > 0
    assert len(found.cells) == 14 and set(found.status["status"]) == {"done"}
    assert "200 of the release's 7,023 images" in found.banner() and "A CPU" in found.banner()
    assert {"n_train": 100, "n_held_out": N}.items() <= found.provenance["data"]["BrainMRI"].items()


@pytest.fixture
def seeded(tmp_path):
    """Two seeds of one backbone, of which the first has no QAT, and one seed of another."""
    runs = build(tmp_path, [])
    for backbone, seeds in (("resnet18", (42, 7)), ("resnet50", (42,))):
        for seed in seeds:
            for regime in ("fp32", "ptq-fbgemm", "qat-fbgemm")[: 3 if seed == 7 else 2]:
                loaded = {"file": f"{backbone}.pth", "sha256": "ab", "replaced": ["fc.bias"], "resampled": []}
                add_cell(runs, backbone, regime, seed=seed, parameters={"seeds": [42, 7]}, loaded=loaded)
    return runs


def test_of_several_seeds_each_stands_in_the_tables_and_their_mean_is_what_pages_read(seeded):
    left_out, found = collected(seeded)
    assert not left_out
    stored = pd.read_csv(found.path / "metrics.csv", dtype={"seed": str}, keep_default_na=False)
    keys = {"backbone": "resnet18", "regime": "ptq-fbgemm", "form": "fake-quant", "fold": "pooled", "metric": "brier"}
    rows = stored[(stored[list(keys)] == pd.Series(keys)).all(axis=1) & (stored["class"] == "")].set_index("seed")
    predictions = pd.read_parquet(found.path / "predictions/BrainMRI/resnet18/ptq-fbgemm.fake-quant.parquet")
    brier = {}
    for seed, frame in predictions.groupby("seed"):
        truth, probability = frame["label"].to_numpy(), frame.filter(regex="^p_").to_numpy()
        brier[str(seed)] = float(((probability - np.eye(4)[truth]) ** 2).sum(1).mean())
    assert rows["value"].drop("mean").to_dict() == pytest.approx(brier) and brier["7"] != brier["42"]
    mean, spread = np.mean(list(brier.values())), np.std(list(brier.values()), ddof=1)
    assert rows.loc["mean", ["value", "seed_std"]].astype(float).tolist() == pytest.approx([mean, spread])
    score = results.scores(found, "brier", form="fake-quant").set_index(["backbone", "regime"])
    assert score.loc[("resnet18", "ptq-fbgemm"), "value"] == pytest.approx(mean)
    assert set(found.predictions("BrainMRI", "resnet18", "fp32")["fold"]) == {0}
    assert len(found.predictions("BrainMRI", "resnet18", "fp32")) == N


def test_a_regime_is_compared_with_fp32_of_its_own_seed(seeded):
    _, found = collected(seeded)
    fp32, qat = (
        pd.read_parquet(found.path / f"predictions/BrainMRI/resnet18/{regime}.parquet").query("seed == 7")
        for regime in ("fp32", "qat-fbgemm")
    )
    before, after = (frame.filter(regex="^p_").to_numpy() for frame in (fp32, qat))
    row = found.flips.query("backbone == 'resnet18' and regime_b == 'qat-fbgemm'").iloc[0]
    assert row["flipped"] == (before.argmax(1) != after.argmax(1)).sum() > 0
    row = found.bootstrap.query("backbone == 'resnet18' and method_a == 'fp32' and method_b == 'qat-fbgemm'")
    truth = np.eye(4)[fp32["label"]]
    expected = ((before - truth) ** 2).sum(1).mean() - ((after - truth) ** 2).sum(1).mean()
    row = row.query("metric == 'brier'").iloc[0]
    assert row["delta_pp"] == pytest.approx(100 * expected) and row["trainings"] == 1


def test_results_of_several_seeds_can_be_added_to(seeded):
    _, found = collected(seeded)
    weights = found.provenance["weights"]
    assert {name: facts["file"] for name, facts in weights.items()} == {b: f"{b}.pth" for b in ("resnet18", "resnet50")}
    before = contents(found.path)
    shutil.rmtree(seeded / "BrainMRI" / "resnet18" / "qat-fbgemm")
    left_out, again = collected(seeded)
    assert again.provenance["weights"] == weights and contents(again.path) == before and not left_out


def test_numbers_are_those_of_the_predictions(found):
    table = found.predictions("BrainMRI", "resnet18", "ptq-fbgemm")
    truth, probability = table["label"].to_numpy(), table.filter(regex="^p_").to_numpy()
    expected = np.mean([average_precision_score(truth == c, probability[:, c]) for c in range(4)])
    cell = "backbone == 'resnet18' and regime == 'ptq-fbgemm' and form == 'converted'"
    chosen = found.metrics.query(f"{cell} and metric == 'auprc'")
    values = chosen[chosen["class"] == ""].set_index("fold")["value"]
    assert values["0"] == values["pooled"] == pytest.approx(expected, abs=1e-12)


def test_intervals_and_differences_are_those_of_the_bootstrap(found):
    a, b = (found.predictions("BrainMRI", "resnet50", regime) for regime in ("fp32", "qat-fbgemm"))
    arrays = [frame.filter(regex="^p_").to_numpy().astype(float) for frame in (a, b)]
    audit = pd.read_csv(found.path / "audit" / "BrainMRI.csv", dtype={"image_id": str})
    groups = connected(a["image_id"], audit)  # near-duplicates are drawn together
    assert len(set(groups)) < len(groups)
    options = {"n_resamples": 128, "seed": 42, "groups": groups}
    expected = bootstrap.paired(a["label"].to_numpy(), *arrays, "brier", **options)
    rows = found.bootstrap.query("backbone == 'resnet50' and metric == 'brier'").set_index(["method_a", "method_b"])
    assert_is(rows.loc["fp32", "qat-fbgemm"], expected)
    alone = bootstrap.interval(a["label"].to_numpy(), arrays[0], "brier", **options)
    row = found.intervals.query("backbone == 'resnet50' and regime == 'fp32' and metric == 'brier'")
    row = row[row["class"] == ""].iloc[0]
    assert (row["value"], row["low"], row["high"]) == pytest.approx((alone.value, alone.low, alone.high))
    assert {"all", "resnet18", "resnet50"} == set(found.bootstrap["backbone"])
    pairs = (
        "fp32:ptq-fbgemm fp32:qat-qnnpack ptq-fbgemm:qat-fbgemm fp32:fp16 fp32:fp32-continued fp32-continued:qat-fbgemm"
    )
    pairs += " fp32:ptq-fbgemm.fake-quant ptq-fbgemm.fake-quant:qat-fbgemm.fake-quant qat-fbgemm.fake-quant:qat-fbgemm"
    assert set(pairs.split()) <= set(found.bootstrap["method_a"] + ":" + found.bootstrap["method_b"])
    tested = found.bootstrap.dropna(subset="p_value")
    assert (tested["p_holm"] >= tested["p_value"]).all() and (tested["p_value"] > 0).all()
    forms = found.intervals.query("regime == 'qat-fbgemm' and metric == 'brier'")["form"]
    assert set(forms) == {"fake-quant", "converted"}
    assert (found.intervals.query("metric == 'ece_floor'")["low"] > 0).all()
    mean = found.intervals.query("backbone == 'mean' and regime == 'fp32' and metric == 'auprc'")
    assert mean[mean["class"] == ""]["between_std"].notna().all()


def assert_is(row, expected):
    """A row of bootstrap.csv against a `PairedDifference`."""
    numbers = tuple(row[["delta_pp", "low_pp", "high_pp", "p_value"]])
    assert numbers == pytest.approx((expected.delta, expected.low, expected.high, expected.p_value))


def test_the_leak_leaves_out_images_with_a_copy_on_the_training_side(found):
    counts = found.leak.groupby("subset")["n"].unique()
    assert counts.map(list).to_dict() == {"all": [N], "without-identical": [N - 1], "without-twins": [N - 2]}


def test_an_older_result_goes_and_a_readme_stays(made):
    out = made.parent.parent / "out"
    (out / "predictions" / "gone").mkdir(parents=True)
    (out / "README.md").write_text("how it was made")
    (out / "peers.csv").write_text("old")
    collected(made)
    assert (out / "README.md").read_text() == "how it was made"
    assert not (out / "predictions" / "gone").exists() and not (out / "peers.csv").exists()
    assert not list(out.parent.glob(".out*"))


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda f: (f / "done.json").unlink(), "no completion record"),
        (lambda f: (f / "done.json").write_text('{"status": '), "no completion record"),
        (lambda f: (f / "predictions.parquet").write_bytes(b"PAR1"), "predictions.parquet does not match its checksum"),
        (lambda f: (f / "predictions.parquet").unlink(), "predictions.parquet is missing"),
        (lambda f: fail(f, "the kernel died"), "the kernel died"),
    ],
)
def test_what_is_not_finished_is_left_out_and_named(made, tmp_path, spoil, reason, capsys):
    spoil(made / "BrainMRI" / "resnet18" / "qat-fbgemm" / "fold0")
    assert cli.main(["collect", str(made), str(tmp_path / "out")]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(said) == 1 and f"left out BrainMRI/resnet18/qat-fbgemm/fold0: {reason}" in said[0]
    states = results.load(tmp_path / "out").status.set_index(["backbone", "regime"])["status"]
    assert states["resnet18", "qat-fbgemm"] == ("failed" if "kernel" in reason else "missing")
    assert all(states[cell] == "done" for cell in SOME if cell != ("resnet18", "qat-fbgemm"))


def fail(folder, reason):
    """Leave what a batch leaves of a cell that failed."""
    (folder / artefacts.DONE).unlink(missing_ok=True)
    artefacts.write_json(folder / artefacts.FAILED, {"reason": reason})


@pytest.mark.parametrize(
    "facts, shown",
    [
        ({"status": "unsupported", "reason": "no add"}, {"status": "unsupported", "reason": "no add"}),
        ({"engine_agrees": False, "engine_note": "off by 6.0"}, {"engine_agrees": False, "note": "off by 6.0"}),
    ],
)
def test_unsupported_cells_and_engines_that_disagree_are_marked(made, facts, shown):
    add_cell(made, "resnet18", "ptq-qnnpack", **facts)
    assert shown.items() <= collected(made)[1].state("BrainMRI", "resnet18", "ptq-qnnpack").items()


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda runs: add_cell(runs, "resnet18", "fp16", parameters={"image_size": 224}, written="2026"), "image_size"),
        (
            lambda runs: add_cell(runs, "resnet18", "qat-fbgemm", start="key-older"),
            "checkpoint that is no longer there",
        ),
        (lambda runs: shutil.rmtree(runs / "BrainMRI" / "resnet18" / "fp32"), "FP32 checkpoint"),
    ],
)
def test_cells_that_do_not_belong_together_are_never_mixed(made, spoil, said):
    spoil(made)
    left_out, _ = collected(made)
    assert left_out and all(said in reason for reason in left_out.values())


def test_folds_are_pooled_in_order(made):
    for regime in ("fp32", "ptq-fbgemm"):
        add_cell(made, "resnet18", regime, fold=1)
    _, found = collected(made)
    table = found.predictions("BrainMRI", "resnet18", "fp32")
    assert table["fold"].tolist() == [0] * N + [1] * N and table["image_id"].is_unique
    assert set(found.metrics.query("regime == 'fp32' and backbone == 'resnet18'")["fold"]) == {"0", "1", "pooled"}
    # the mean is over backbones that saw the same images; both are of size one here, the comparison needs both regimes
    assert not found.bootstrap.query("backbone == 'resnet18' and method_b == 'ptq-fbgemm'").empty
    assert found.bootstrap.query("backbone == 'resnet18' and method_b == 'fp16'").empty


def test_a_study_of_several_regimes_stays_whole(made):
    key = {"view": "", "method": "CAM", "grid": 7, "n": 9, "measure": "overlap", "value": 0.5, "low": 0.4, "high": 0.6}
    several = {"regime": ["ptq-fbgemm", "ptq-fbgemm", "qat-fbgemm"], "form": ["fake-quant", "converted", "converted"]}
    folder = add_study(made, "attention", "attention.csv", key | several)
    first = collected(made)[1].attention
    assert first["form"].tolist() == several["form"]
    shutil.rmtree(folder.parent)
    pd.testing.assert_frame_equal(collected(made)[1].attention, first)


MACHINE = {"threads": 2, "interop_threads": 1, "cores": [0, 1], "governor": None, "others": 0.1, "seconds": 60.5}
MACHINE |= {"load_before": [1.0, 2.0, 3.0], "load_after": [1.504, 2.0, 3.0]}
RUNTIMES = ("pytorch-fp32", "openvino-int8", "onnxruntime-int8")


def add_peers(runs, backbone="resnet18", fold=0):
    """A finished comparison of runtimes with made-up predictions and times."""
    folder = runs / "BrainMRI" / backbone / "peers" / f"fold{fold}"
    rows = []
    for name in RUNTIMES:
        table = evaluate.table(ids(fold), fold, np.arange(N) % 4, probabilities(backbone, name, fold), CLASSES)
        artefacts.write_parquet(folder / f"predictions.{name}.parquet", table)
        row = {"dataset": "BrainMRI", "backbone": backbone, "fold": fold, "p50_ms": 2.0 + fold}
        row |= dict(zip(("runtime", "precision"), name.split("-")))
        rows += [row | {"batch_size": n} for n in (1, 32)]
    artefacts.write_csv(folder / "peers.csv", pd.DataFrame(rows, columns=results.SCHEMA["peers.csv"]))
    raw = pd.DataFrame([row | {"batch": k, "ms": 1.5 + k} for row in rows for k in range(3)])
    artefacts.write_parquet(folder / "peers_raw.parquet", raw[results.SCHEMA["peers_raw.parquet"]])
    manifest(folder, machine=MACHINE | {"others": 0.1 + fold})
    return finish(folder)


def test_other_runtimes_are_compared_with_the_model_they_run(made):
    _, before = collected(made, "before")
    add_peers(made)
    left_out, found = collected(made)
    assert left_out == {} and len(found.peers) == 6 and len(found.peers_raw) == 18
    folder = found.path / "predictions" / "BrainMRI" / "resnet18" / "peers"
    a, b = (pd.read_parquet(folder / f"{name}.parquet") for name in RUNTIMES[:2])
    arrays = [frame.filter(regex="^p_").to_numpy().astype(float) for frame in (a, b)]
    groups = connected(a["image_id"], pd.read_csv(found.path / "audit" / "BrainMRI.csv", dtype={"image_id": str}))
    expected = bootstrap.paired(a["label"].to_numpy(), *arrays, "brier", n_resamples=128, seed=42, groups=groups)
    rows = found.bootstrap[found.bootstrap["method_a"] == "pytorch-fp32"]
    assert set(rows["method_b"]) == set(RUNTIMES[1:]) and len(rows) == 2 * 2 * len(bootstrap.TESTED)
    assert_is(rows[(rows["method_b"] == RUNTIMES[1]) & (rows["metric"] == "brier")].iloc[0], expected)
    others = found.bootstrap[found.bootstrap["method_a"] != "pytorch-fp32"]  # corrected apart
    pd.testing.assert_frame_equal(others.reset_index(drop=True), before.bootstrap)
    assert found.classes("BrainMRI") == list(CLASSES)


def contents(folder):
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "provenance.json")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.mark.parametrize("folds", [(1,), (0, 1)])
def test_other_runtimes_are_kept_from_an_earlier_sitting(made, folds):
    for fold in folds:
        add_peers(made, fold=fold)
    collected(made)
    out = made.parent.parent / "out"
    before = contents(out)
    assert len(results.load(out).peers) == 6 * len(folds)
    conditions = results.load(out).conditions
    assert conditions["fold"].tolist() == [str(fold) for fold in folds]
    assert conditions["others"].tolist() == [0.1 + fold for fold in folds]
    said = conditions.drop(columns=["fold", "others"]).drop_duplicates().to_dict("records")
    expected = {"stage": "peers", "dataset": "BrainMRI", "backbone": "resnet18", "threads": 2, "interop_threads": 1}
    expected |= {"cores": "0 1", "governor": "", "load_before": 1.0, "load_after": 1.5, "seconds": 60.5, "cpu": "A CPU"}
    assert said == [expected | {"instructions": "avx512_vnni", "commit": "ab" * 20, "written": WRITTEN}]
    shutil.rmtree(made / "BrainMRI" / "resnet18" / "peers")
    assert collect.collect(made, out) == {} and contents(out) == before
    for fold in folds:  # measured again, it takes the place of what was kept
        add_peers(made, fold=fold)
    assert collect.collect(made, out) == {} and contents(out) == before


def test_a_part_of_a_batch_is_added_to_a_grid(made, out, capsys):
    before = (out / "metrics.csv").read_bytes()
    add_peers(made)
    add_cell(made, "resnet18", "fp32", written="2026-11-02T10:00:00+00:00", parameters={"seed": 43})  # not asked for
    assert cli.main(["collect", str(made), str(out), "--only", "stage=peers", "backbone=resnet18"]) == 0
    assert (out / "metrics.csv").read_bytes() == before and len(results.load(out).peers) == 6
    for words, said in (
        (["stage=peer"], "did you mean 'peers'"),
        (["regime=fp32"], "key of --only"),
        (["stage"], "write it as"),
        (["stage=latency"], "fits nothing"),
    ):
        assert cli.main(["collect", str(made), str(out), "--only", *words]) == 2
        assert said in capsys.readouterr().err


def test_a_part_of_a_batch_removes_nothing(made):
    out = made.parent.parent / "out"
    add_peers(made)
    collect.collect(made, out)
    before = contents(out)
    for name in ("resnet50", "resnet18/fp16", "resnet18/qat-fbgemm", "resnet18/ptq-qnnpack", "resnet18/peers"):
        shutil.rmtree(made / "BrainMRI" / name)
    assert collect.collect(made, out) == {} and contents(out) == before
    retrained(made)  # what starts from the model that it would replace was not made again
    left_out = {f"BrainMRI/resnet18/{regime}/fold0" for regime in ("fp32", "ptq-fbgemm")}
    assert set(collect.collect(made, out)) == left_out and contents(out) == before
    for regime in ("qat-fbgemm", "ptq-qnnpack"):
        add_cell(made, "resnet18", regime)
    assert collect.collect(made, out) == {} and contents(out) != before
    assert len(results.load(out).cells) == len(SOME) and len(results.load(out).peers) == 6


def retrained(made, shift=1e-6):
    """The FP32 cell of ResNet-18 with other predictions than before."""
    folder = made / "BrainMRI" / "resnet18" / "fp32" / "fold0"
    table = pd.read_parquet(folder / "predictions.parquet")
    table["p_glioma"] += np.float32(shift)
    artefacts.write_parquet(folder / "predictions.parquet", table)
    finish(folder, key="key-fp32", train_seconds=2.0, epochs=2)


def test_cells_are_added_without_the_model_they_start_from_only_if_it_is_the_kept_one(made, out):
    before = contents(out)
    only = {"stage": ["quantize"], "backbone": ["resnet18"]}
    assert collect.collect(made, out, only=only) == {} and contents(out) == before
    retrained(made)
    add_peers(made)
    left_out = collect.collect(made, out, only=only)
    assert len(left_out) == 3 and all("another FP32 model" in reason for reason in left_out.values())
    assert collect.collect(made, out, only={"stage": ["peers"]}) == {}  # a study says so on its page
    assert len(results.load(out).peers) == 6


@pytest.mark.parametrize("there", [True, False])
def test_a_study_of_another_model_is_added_where_the_batch_has_no_model_of_its_own(made, out, there):
    finish(add_peers(made), inputs={"images": "key-data", "starts from": "another key"})
    if not there:
        shutil.rmtree(made / "BrainMRI" / "resnet18" / "fp32")
    left_out = collect.collect(made, out, only={"stage": ["peers"]} if not there else None)
    assert len(results.load(out).peers) == (0 if there else 6)
    assert list(left_out) == (["BrainMRI/resnet18/peers/fold0"] if there else [])


def test_a_part_of_a_batch_says_what_it_left_out_and_touches_nothing_else(made):
    out = made.parent.parent / "out"
    failed = made / "BrainMRI" / "resnet50" / "qat-fbgemm" / "fold0"
    fail(failed, "the loss is not finite in epoch 3")
    collect.collect(made, out)
    before = (out / "cells.csv").read_bytes()
    assert b"the loss is not finite" in before
    shutil.rmtree(failed)
    add_peers(made)
    fail(made / "BrainMRI" / "resnet50" / "peers" / "fold0", "boom")
    fail(made / "BrainMRI" / "resnet50" / "fp16" / "fold0", "not asked for")
    other = made / "ChestXray" / "data"  # images of another dataset have changed meanwhile: not asked for
    shutil.copytree(made / "BrainMRI" / "data", other)
    assert collect.collect(made, out, only={"stage": ["peers"]}) == {"BrainMRI/resnet50/peers/fold0": "boom"}
    assert (out / "cells.csv").read_bytes() == before and not (out / "folds" / "ChestXray.csv").exists()


@pytest.mark.parametrize("what", ["peers", "fp16"])
@pytest.mark.parametrize("key, value", [("image_size", 32), ("train", {"epochs": 99}), ("seed", 7)])
def test_what_is_new_must_have_the_settings_and_the_budget_of_what_stays(made, out, what, key, value):
    before = contents(out)
    shutil.rmtree(made / "BrainMRI" / "resnet50")
    if what == "peers":
        folder = add_peers(made)
        manifest(folder, LATER, {key: value})
        finish(folder)
    else:
        add_cell(made, "resnet18", what, written=LATER, parameters={key: value})
    left_out = collect.collect(made, out, only={"stage": ["peers"]} if what == "peers" else None)
    assert key in left_out[f"BrainMRI/resnet18/{what}/fold0"] and contents(out) == before


@pytest.mark.parametrize("name", ["qat-fbgemm", "diagnosis-qat-fbgemm", "attention", "diagnosis-fbgemm", "ptq-fbgemm"])
def test_settings_of_training_with_quantization_are_compared_where_they_are_read(name):
    part = SimpleNamespace(name=f"BrainMRI/resnet18/{name}/fold0", run={"parameters": {"qat": {"epochs": 3}}})
    part.stage = stages.stage_of(part.name)
    assert collect._differing(part, {"qat": {"epochs": 5}}) == (
        "" if name.endswith(("ptq-fbgemm", "s-fbgemm")) else "qat"
    )


@pytest.mark.parametrize("only, n", [({"stage": ["peers"]}, 1), (None, 6)])
def test_what_was_made_from_other_images_than_what_stays_is_not_added(made, out, only, n):
    before = contents(out)
    add_peers(made)
    shutil.rmtree(made / "BrainMRI" / "resnet50")
    images(made, "f01")
    left_out = collect.collect(made, out, only=only)
    assert len(left_out) == n and all("other images" in reason for reason in left_out.values())
    assert contents(out) == before


def test_what_failed_then_and_is_finished_but_not_asked_for_stays_failed(made):
    out = made.parent.parent / "out"
    folder = made / "BrainMRI" / "resnet50" / "fp16" / "fold0"
    fail(folder, "boom")
    collect.collect(made, out)
    before = (out / "cells.csv").read_bytes()
    add_cell(made, "resnet50", "fp16")
    add_peers(made)
    collect.collect(made, out, only={"stage": ["peers"]})
    assert (out / "cells.csv").read_bytes() == before and b"boom" in before


def test_a_study_alone_can_be_added_to(made):
    add_peers(made)
    out = made.parent.parent / "out"
    assert collect.collect(made, out, only={"stage": ["peers"]}) == {}
    assert results.load(out).cells.empty and len(results.load(out).peers) == 6
    assert collect.collect(made, out) == {}
    assert len(results.load(out).cells) == len(SOME) and len(results.load(out).peers) == 6


def test_the_banner_names_the_machine_of_the_grid_and_of_a_study_from_elsewhere(made, out):
    folder = add_peers(made)
    manifest(folder, LATER, cpu={"model": "Another CPU", "cores": 4, "instructions": []})
    finish(folder)
    for _ in range(2):  # it stays so when something else is collected afterwards
        assert collect.collect(made, out, only={"stage": ["peers"]}) == {}
        said = results.load(out).banner()
        assert "Measured on A CPU, 2 cores" in said
        assert "Measured on Another CPU, 4 cores, without VNNI, no GPU: other runtimes." in said
        assert "2 machines" not in said
        collect.collect(made, out, only={"stage": ["finetune"]})


def test_tables_without_a_column_of_folds_take_it_from_their_path(made):
    for backbone in ("resnet18", "resnet50"):
        add_peers(made, backbone)
    folder = made / "BrainMRI" / "resnet18" / "peers" / "fold0"
    artefacts.write_csv(folder / "peers.csv", pd.read_csv(folder / "peers.csv").drop(columns="fold"))
    raw = pd.read_parquet(folder / "peers_raw.parquet")
    artefacts.write_parquet(folder / "peers_raw.parquet", raw.drop(columns="fold"))
    finish(folder)
    _, found = collected(made)
    assert found.peers["backbone"].unique().tolist() == PARAMETERS["backbones"]  # in the profile's order
    assert set(found.peers["fold"]) == {"0"} and set(found.peers_raw["fold"]) == {"0"} and len(found.peers) == 12


def test_nothing_that_may_be_taken_is_a_sentence(made):
    images(made, "f00", key="other")
    with pytest.raises(UserError, match="made from other images"):
        collect.collect(made, made.parent.parent / "out")
    assert not (made.parent.parent / "out").exists()


def test_a_folder_of_no_stage_stops_nothing(made):
    shutil.copytree(made / "BrainMRI" / "resnet18" / "fp32", made / "BrainMRI" / "resnet18" / "fp32-longer")
    collected(made)
    collect.collect(made, made.parent.parent / "out", only={"backbone": ["resnet18"]})


def test_nothing_finished_and_no_folder_are_sentences(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="no finished cell"):
        collect.collect(tmp_path / "runs", tmp_path / "out")
    with pytest.raises(UserError, match="no such folder"):
        collect.collect(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failure_while_writing_leaves_the_old_results(made, out, monkeypatch):
    before = (out / "metrics.csv").read_bytes()
    monkeypatch.setattr(collect, "_provenance", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        collected(made)
    assert (out / "metrics.csv").read_bytes() == before
    assert not list(out.parent.glob(".out*"))


def test_a_kill_between_the_two_renames_loses_nothing(made, out):
    (out / "README.md").write_text("mine", encoding="utf-8")
    # where the old tables lie meanwhile
    left, another = out.parent / ".out.abcd_123.old", out.parent / ".out.b.abcd_123.old"
    another.mkdir()
    left.mkdir()
    out.rename(left / "results")
    collected(made)
    assert (out / "README.md").read_text(encoding="utf-8") == "mine" and not left.exists()
    assert another.is_dir()  # of the folder out.b, not ours


def test_the_profile_is_the_cells_own_not_todays_file(found):
    assert found.provenance["parameters"] == PARAMETERS and found.provenance["written"] == WRITTEN
    assert set(found.bootstrap["n_resamples"]) == {128}
    assert json.loads((found.path / "provenance.json").read_text())["profile"] == "made"


def test_a_grid_made_in_several_sittings_is_the_grid_made_in_one(tmp_path):
    cells = [(b, r) for b in ("resnet18", "resnet50") for r in SIX]
    study = {"regime": "ptq-fbgemm", "n_calibration": [16, 32], "subset": 0, "auprc": [0.1 + 0.2, 1 / 3]}
    made = {}
    for name, some in (("whole", cells), ("first", cells[:7]), ("second", cells[7:])):
        made[name] = build(tmp_path / name, some)
        if name != "second":
            add_study(made[name], "calibration_size-fbgemm", "calibration_size.csv", study)
    _, whole = collected(made["whole"])
    out = tmp_path / "out"
    assert collect.collect(made["first"], out) == {}
    shutil.rmtree(made["second"] / "BrainMRI" / "data")
    assert collect.collect(made["second"], out) == {}
    for path in sorted(whole.path.rglob("*.*")):
        other = out / path.relative_to(whole.path)
        assert other.read_bytes() == path.read_bytes(), path.name
    assert not [p for p in out.rglob("*") if "earlier" in p.parts]
    assert len(results.load(out).cells) == 14


def test_what_a_new_run_holds_replaces_what_was_kept(made, out):
    before = results.load(out).cells
    shutil.rmtree(made / "BrainMRI" / "resnet50")
    reason = "no half precision here"
    add_cell(made, "resnet18", "fp16", status="unsupported", reason=reason, written=LATER)
    assert collect.collect(made, out) == {}
    after = results.load(out).cells
    assert len(after) == len(before)
    assert after[after["regime"] == "fp16"]["reason"].item() == reason
    assert not (out / "predictions" / "BrainMRI" / "resnet18" / "fp16.parquet").exists()


def test_a_folder_that_is_no_result_folder_cannot_be_added_to(made):
    out = made.parent.parent / "out"
    out.mkdir()
    (out / "cells.csv").write_text("dataset\n")
    with pytest.raises(UserError, match="another one"):
        collect.collect(made, out)
    assert (out / "cells.csv").read_text() == "dataset\n"


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    """(batch, result folder) that a test must copy before it spoils them."""
    runs = build(tmp_path_factory.mktemp("standing"), SOME[:3])
    add_cell(runs, "resnet18", "ptq-qnnpack", status="unsupported", reason="no add")
    add_peers(runs)
    assert collected(runs)[0] == {}
    return runs, runs.parent.parent / "out"


def spoil(path, change):
    """Change the bytes of a file, or remove it where there is no change."""
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()


def test_tables_are_made_again_from_what_the_folder_keeps(standing):
    _, out = standing
    before = contents(out)
    assert cli.main(["collect", str(out), str(out)]) == 0 and contents(out) == before


KEPT = "predictions/BrainMRI/resnet18/fp32.parquet predictions/BrainMRI/resnet18/peers/openvino-int8.parquet"
KEPT += " folds/BrainMRI.csv audit/BrainMRI.csv trained_on/BrainMRI.csv cells.csv peers_raw.parquet history.csv"


@pytest.mark.parametrize("file", f"{KEPT} provenance.json records.json checksums.json".split())
@pytest.mark.parametrize("change", [lambda data: data[:-3], lambda data: data[: data[:-1].rfind(b"\n") + 1], None])
def test_a_damaged_folder_is_not_added_to(standing, tmp_path, file, change, capsys):
    runs, out = (shutil.copytree(path, tmp_path / path.name) for path in standing)
    spoil(out / file, change)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert cli.main(["collect", str(runs), str(out)]) == 2
    found = capsys.readouterr().err
    assert found.startswith(f"medq: {out / file}: ") and "another one" in found and found.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("change", [lambda data: data[: data[:-1].rindex(b"\n") + 1], None])
def test_a_table_that_lost_rows_is_not_read(standing, tmp_path, change):
    out = shutil.copytree(standing[1], tmp_path / "out")
    spoil(out / "metrics.csv", change)
    with pytest.raises(UserError, match="metrics.csv"):
        _ = results.load(out).metrics


# --- what a user can get wrong ----------------------------------------------------------------------------------------


def test_tables_never_take_the_place_of_the_batch_or_of_a_file(tmp_path, monkeypatch, capsys):
    runs, file = tmp_path / "runs" / "made", tmp_path / "file"
    add_cell(runs, "resnet18", "fp32")
    file.write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for results_folder, said in (
        (runs, "holds the batch itself"),
        (".", "holds the batch itself"),
        (file, "is a file"),
        (file / "below", "cannot be written"),
    ):
        assert cli.main(["collect", str(runs), str(results_folder)]) == 2
        assert said in capsys.readouterr().err and sorted(tmp_path.rglob("*")) == before


def test_the_folder_of_all_batches_is_not_a_batch(tmp_path):
    add_cell(tmp_path / "runs" / "made", "resnet18", "fp32")
    with pytest.raises(UserError, match="holds no finished cell.*runs/<profile>"):
        collect.collect(tmp_path / "runs", tmp_path / "results")


@pytest.mark.parametrize("record", ['{"status": "done"}', '{"status": "done", "files": []}', "[]", "{", ""])
def test_a_damaged_record_leaves_its_cell_out(tmp_path, record):
    folder = add_cell(tmp_path / "made", "resnet18", "fp32")
    (folder / "done.json").write_text(record)
    with pytest.raises(UserError, match="resnet18/fp32/fold0: no completion record"):
        collect.collect(tmp_path / "made", tmp_path / "results")


def test_a_commit_is_modified_by_code_and_not_by_results(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert provenance.commit() is None
    (tmp_path / "results").mkdir()
    for name in ("code.py", "results/cells.csv"):
        (tmp_path / name).write_text("a\n")
    for words in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm a"):
        subprocess.run(["git", "-C", str(tmp_path), *words.split()], check=True)
    found = []
    for name in ("results/cells.csv", "code.py"):
        (tmp_path / name).write_text("b\n")
        found.append(provenance.commit()["modified"])
    assert found == [False, True]
