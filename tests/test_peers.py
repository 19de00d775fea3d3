import json

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures import resnet
from fixtures.resnet import needs, partition

from medq import artefacts, evaluate, metrics, peers
from medq.errors import UserError
from medq.quantize.engines import Unsupported
from medq.quantize.stage import float_model
from medq.results import SCHEMA

NATIVE = ["pytorch-fp32", "pytorch-fbgemm-int8"]
FOREIGN = ["onnxruntime-fp32", "onnxruntime-int8", "openvino-fp32", "openvino-int8"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(params, cell) of a ResNet-18 trained for a moment, in a folder of its own."""
    changes = {
        "calibration": {"images": 16, "sizes": [16]},
        "latency": {"image_size": 32, "seconds": 0.01, "warmup": 1, "batch_sizes": [2], "threads": 1},
    }
    with resnet.trained(tmp_path_factory.mktemp("runs"), peers, **changes) as (params, cell):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(peers, "BATCH", 2)
            yield params, cell.of("")


def compare(trained, names):
    params, cell = trained
    folder = peers.run(params, cell, names)
    table = pd.read_csv(folder / peers.TABLE)
    return params, cell, folder, table


def predictions(folder, name):
    """The stored probabilities of a runtime."""
    return pd.read_parquet(folder / f"predictions.{name}.parquet").filter(like="p_").to_numpy()


def test_pytorchs_own_engines_stand_in_the_same_table(trained):
    params, cell, folder, table = compare(trained, NATIVE)
    assert list(table.columns) == SCHEMA["peers.csv"] and len(table) == 2
    part = partition(params, cell.dataset, 0)
    exact = evaluate.probabilities(float_model(params, cell, part), part.images[part.held_out])
    np.testing.assert_allclose(predictions(folder, "pytorch-fp32"), exact, atol=1e-6)
    for row in table.to_dict("records"):
        p = predictions(folder, f"{row['runtime']}-{row['precision']}")
        assert row["auroc"] == pytest.approx(metrics.auroc(part.labels[part.held_out], p))
        assert row["ece"] == pytest.approx(metrics.expected_calibration_error(part.labels[part.held_out], p))
        assert 0 < row["p50_low"] <= row["p50_high"] and row["p50_ms"] > 0 and np.isnan(row["p99_ms"])
    raw = pd.read_parquet(folder / peers.RAW)
    assert list(raw.columns) == SCHEMA[peers.RAW]
    for (runtime, n), times in raw.groupby(["runtime", "batch_size"]):
        row = table[(table["runtime"] == runtime) & (table["batch_size"] == n)].iloc[0]
        assert np.median(times["ms"]) == pytest.approx(row["p50_ms"])
        assert list(times["batch"]) == list(range(len(times)))
    sizes = table.set_index("precision")["size_mb"]
    assert 3.5 < sizes["fp32"] / sizes["int8"] < 4.1


def test_what_is_stored_is_not_built_again(trained, monkeypatch):
    params, cell, folder, _ = compare(trained, NATIVE)

    def fail(*_):
        raise AssertionError("built again")

    monkeypatch.setattr(peers.finetune, "save_weights", fail)
    before = (folder / peers.TABLE).stat().st_mtime_ns
    assert peers.run(params, cell, NATIVE) == folder
    assert (folder / peers.TABLE).stat().st_mtime_ns == before


@needs("onnx", "onnxruntime", "openvino", "nncf")
def test_other_runtimes_compute_the_same_model(trained):
    params, cell, folder, table = compare(trained, [NATIVE[0], *FOREIGN])
    assert len(table) == 5
    read = {name: predictions(folder, name) for name in [NATIVE[0], *FOREIGN]}
    for name in FOREIGN:
        worst = np.abs(read[name] - read[NATIVE[0]]).max()
        assert worst < (1e-4 if name.endswith("fp32") else 0.2), name
        assert (worst > 1e-6) == name.endswith("int8"), name
    sizes = table.drop_duplicates(["runtime", "precision"]).set_index(["runtime", "precision"])["size_mb"]
    assert sizes["onnxruntime", "fp32"] / sizes["onnxruntime", "int8"] > 3.5
    assert sizes["openvino", "fp32"] / sizes["openvino", "int8"] > 3.5
    assert not list((folder / "models-32px").glob("*/*.float.onnx"))


def test_a_missing_package_or_a_converter_that_fails_leaves_a_reason_not_a_row(trained, monkeypatch):
    def broken(task, path):
        raise KeyError("no such\noperator")

    def refuse(task, path):
        raise Unsupported("no batch norm")

    more = (
        peers.Runtime("absent", "int8", ".bin", None, None, ("surely_not_installed",)),
        peers.Runtime("broken", "int8", ".bin", broken, None),
        peers.Runtime("refusing", "int8", ".bin", refuse, None),
    )
    monkeypatch.setattr(peers, "RUNTIMES", (peers.RUNTIMES[0], *more))
    params, cell = trained
    folder = peers.run(params, cell)
    absent = json.loads((folder / "done.json").read_text())["absent"]
    assert "surely_not_installed not installed: pip install" in absent["absent-int8"]
    assert absent["broken-int8"].startswith("KeyError") and absent["refusing-int8"] == "no batch norm"
    assert set(pd.read_csv(folder / peers.TABLE)["runtime"]) == {"pytorch"}
    with pytest.raises(
        UserError, match=r"^None of the runtimes could be run: .*absent-int8: surely_not_installed not in"
    ):
        peers.run(params, cell, ["absent-int8"])


def test_times_are_taken_at_the_size_that_the_profile_asks_for(trained, monkeypatch):
    params, cell = trained
    monkeypatch.setattr(peers.latency, "partition", partition)
    at_trained_size = pd.read_csv(peers.run(params, cell, NATIVE[:1]) / peers.TABLE)
    params = params.model_copy(update={"latency": params.latency.model_copy(update={"image_size": 48})})
    folder = peers.run(params, cell, NATIVE[:1])
    table = pd.read_csv(folder / peers.TABLE)
    assert set(table["image_size"]) == {48} and len(table) == 1 and artefacts.is_finished(folder)
    assert (table["p50_ms"] > 0).all()
    scores = ["auroc", "auprc", "ece", "brier"]
    pd.testing.assert_frame_equal(table[scores], at_trained_size[scores])


def test_a_runtime_that_cannot_run_a_batch_size_keeps_the_others(trained, monkeypatch):
    def load(task, path):
        if task.image_size == 48 and path.parent.name.startswith("late"):
            raise OSError("no compiler")

        def call(x):
            if len(x) > 2:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return torch.zeros(len(x), 4)

        return call

    more = (peers.Runtime(name, "int8", ".safetensors", peers.RUNTIMES[0].save, load) for name in ("narrow", "late"))
    monkeypatch.setattr(peers, "RUNTIMES", (peers.RUNTIMES[0], *more))
    monkeypatch.setattr(peers.latency, "partition", partition)
    params, cell = trained
    timing = params.latency.model_copy(update={"batch_sizes": [2, 4], "image_size": 48})
    folder = peers.run(params.model_copy(update={"latency": timing}), cell)
    table = pd.read_csv(folder / peers.TABLE)
    assert list(table.loc[table["runtime"] == "narrow", "batch_size"]) == [2] and len(table) == 3
    absent = artefacts.record(folder)["absent"]
    assert absent["late-int8"] == "OSError: no compiler" and "can't allocate" in absent["narrow-int8 at batch 4"]


def test_a_batch_of_another_size_is_padded_and_cut():
    seen = []

    def call(x):
        seen.append(len(x))
        return x * 2

    x = torch.arange(3.0).reshape(3, 1)
    assert torch.equal(peers.padded({1: call, 8: call}, x), x * 2) and seen == [8]
    assert torch.equal(peers.padded({1: call, 8: call}, x[:1]), x[:1] * 2) and seen == [8, 1]


def test_compiling_runtimes_are_compared_where_the_profile_compiles(trained):
    params, _ = trained
    names = {r.name for r in peers.chosen(params)}
    assert not any(name.startswith("inductor") for name in names) and "openvino-int8" in names
    baselines = [*params.latency.baselines, "compiled"]
    params = params.model_copy(update={"latency": params.latency.model_copy(update={"baselines": baselines})})
    assert {r.name for r in peers.chosen(params)} - names == {"inductor-fp32", "inductor-int8"}
    assert [r.name for r in peers.chosen(params, ["inductor-fp32"])] == ["inductor-fp32"]
