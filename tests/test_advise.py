import math
import subprocess
import sys

import pandas as pd
import pytest
from fixtures.results import bent, world

from medq import advise
from medq.advise import Limits, decide
from medq.cli import main
from medq.results import SCHEMA, Results


def brain():
    """The world like the paper's, of one dataset."""
    return world(datasets=("BrainMRI",))


def made(tmp_path, **tables):
    """A result folder of one dataset and backbone with the given rows per file."""
    for file, rows in tables.items():
        own = [{"dataset": "D", "backbone": "resnet18", **row} for row in rows]
        pd.DataFrame(own, columns=SCHEMA[f"{file}.csv"]).to_csv(tmp_path / f"{file}.csv", index=False)
    return Results("made", tmp_path)


def cells(*regimes, status="done", reason=""):
    return [{"regime": r, "fold": 0, "status": status, "reason": reason} for r in regimes]


def timed(regime, p50, high=None, baseline=""):
    row = {"dataset": "", "regime": regime, "baseline": baseline, "device": "cpu", "batch_size": 1, "size_mb": 1.0}
    return row | {"p50_ms": p50, "p50_high": high or p50}


def compared(regime, auprc, brier, reference="fp32"):
    """Bootstrap rows: (delta, low, high) of the reference minus the regime, in points."""
    ends, pair = ("delta_pp", "low_pp", "high_pp"), {"method_a": reference, "method_b": regime}
    return [
        pair | {"metric": metric} | dict(zip(ends, values))
        for metric, values in (("auprc", auprc), ("brier", brier), ("nll", brier))
    ]


SAFE = ((0.1, -0.1, 0.3), (-0.1, -0.3, 0.1))  # loses 0.1 points, Brier and NLL rise by 0.001
EAGER = timed("fp32", 10.0, baseline="eager")


def ptq(tmp_path, auprc=SAFE[0], brier=SAFE[1], **tables):
    """Results of FP32 and of a PTQ that is five times as fast, with these differences from FP32."""
    tables = {"latency": [EAGER, timed("ptq-fbgemm", 2.0)], "bootstrap": compared("ptq-fbgemm", auprc, brier)} | tables
    return made(tmp_path, cells=cells("fp32", "ptq-fbgemm"), **tables)


def row_of(table, candidate):
    return table[table["candidate"] == candidate].iloc[0]


def shipped(table):
    return table.loc[table["ship"], "candidate"].tolist()


def test_the_fastest_that_passes_is_shipped(tmp_path):
    results = made(
        tmp_path,
        cells=cells("fp32", "ptq-fbgemm", "qat-fbgemm"),
        latency=[EAGER, timed("ptq-fbgemm", 2.0), timed("qat-fbgemm", 3.0)],
        bootstrap=compared("ptq-fbgemm", *SAFE) + compared("qat-fbgemm", *SAFE),
    )
    table = decide(results)
    assert shipped(table) == ["ptq-fbgemm"]
    assert row_of(table, "ptq-fbgemm")["speedup"] == pytest.approx(5)
    assert row_of(table, "ptq-fbgemm")["brier_rise"] == pytest.approx(0.001)
    # A faster one that fails a limit, and is better calibrated, is named.
    worse = compared("ptq-fbgemm", (3.0, 2.0, 4.0), (0.5, 0.3, 0.7))
    results = made(tmp_path, bootstrap=worse + compared("qat-fbgemm", *SAFE))
    best = decide(results).query("ship").iloc[0]
    assert (best["candidate"], best["beaten_by"]) == ("qat-fbgemm", "ptq-fbgemm")
    assert decide(results, Limits(auprc_loss_pp=5.0)).query("ship").iloc[0]["beaten_by"] == ""


def test_an_interval_that_reaches_over_the_limit_fails_and_less_confidence_lets_it_pass(tmp_path):
    results = ptq(tmp_path, auprc=(0.8, 0.4, 1.2))
    strict = decide(results)
    assert shipped(strict) == ["fp32"]
    assert row_of(strict, "ptq-fbgemm")["auprc_loss_bound_pp"] == pytest.approx(0.8 + 0.4 * 1.6449 / 1.9600, abs=1e-4)
    assert "at worst 1.14 points" in row_of(strict, "ptq-fbgemm")["why"]
    assert shipped(decide(results, Limits(confidence=0.7))) == ["ptq-fbgemm"]
    # The bound of a rise comes from the lower end of FP32 minus regime.
    row = row_of(decide(ptq(tmp_path, brier=(-0.5, -3.0, 0.1)), Limits(confidence=0.975)), "ptq-fbgemm")
    assert row["brier_rise_bound"] == pytest.approx(0.03) and row["passes"] is False


@pytest.mark.parametrize("auprc", [(0.1, math.nan, 0.3), (0.1, -0.1, math.nan)])
def test_a_bound_that_is_not_known_does_not_pass(tmp_path, auprc):
    row = row_of(decide(ptq(tmp_path, auprc=auprc)), "ptq-fbgemm")
    assert row["passes"] is None and "AUPRC loses 0.10 points, of unknown confidence" in row["why"]


def test_a_budget_counts_with_its_bound_and_the_best_baseline_of_fp32_counts(tmp_path):
    fused = timed("fp32", 4.0, baseline="fused")
    results = ptq(tmp_path, latency=[EAGER, fused, timed("ptq-fbgemm", 3.0, high=9.0)])
    table = decide(results, Limits(latency_ms=5.0))
    assert shipped(table) == ["fp32"] and row_of(table, "fp32")["p50_ms"] == 4
    assert "Latency is 3.0 ms, at worst 8.0 ms" in row_of(table, "ptq-fbgemm")["why"]
    assert shipped(decide(results, Limits(latency_ms=1.0))) == []


def test_what_was_not_measured_does_not_pass_and_says_so(tmp_path):
    results = made(
        tmp_path,
        cells=cells("fp32", "ptq-fbgemm", "ptq-qnnpack") + cells("qat-fbgemm", status="unsupported", reason="no add"),
        latency=[EAGER, timed("ptq-fbgemm", 2.0)],
    )
    table = decide(results).set_index("candidate")
    assert table["passes"].to_dict() == {"fp32": True, "ptq-fbgemm": None, "ptq-qnnpack": None, "qat-fbgemm": False}
    assert "AUPRC not measured" in table["why"]["ptq-fbgemm"]
    assert "Latency not measured" in table["why"]["ptq-qnnpack"]
    assert table["why"]["qat-fbgemm"] == "unsupported: no add" and table["ship"]["fp32"]


def test_runtimes_compete_on_their_speed_up_in_their_own_run(tmp_path):
    def peer(runtime, precision, p50):
        row = {"runtime": runtime, "precision": precision, "batch_size": 1, "auprc": 0.9, "ece": 0.02}
        return row | {"p50_ms": p50, "p50_high": p50, "p99_ms": p50}

    results = made(
        tmp_path,
        cells=cells("fp32"),
        latency=[timed("fp32", 40.0, baseline="eager")],
        bootstrap=compared("openvino-int8", (0.3, 0.1, 0.5), SAFE[1], reference="pytorch-fp32")
        + compared("onnxruntime-int8", SAFE[0], (-3.0, -4.0, -2.0), reference="pytorch-fp32"),
        peers=[peer("pytorch", "fp32", 4.0), peer("openvino", "int8", 0.5), peer("onnxruntime", "int8", 0.4)],
    )
    table = decide(results)
    chosen = table[table["ship"]].iloc[0]
    assert chosen["candidate"] == "openvino int8" and chosen["p50_ms"] == pytest.approx(5.0)
    assert chosen["auprc_loss_bound_pp"] == pytest.approx(0.3 + 0.2 * 1.6449 / 1.96, abs=1e-3)
    assert "Brier rises by 0.0300" in row_of(table, "onnxruntime int8")["why"]
    paired = made(tmp_path, bootstrap=compared("openvino-int8", (0.3, 0.1, 1.5), SAFE[1], reference="pytorch-fp32"))
    assert row_of(decide(paired), "openvino int8")["passes"] is False


@pytest.mark.parametrize(
    "accuracy, low, auroc, reason",
    [
        (0.66, 0.57, 0.8, "naming the largest class"),
        (0.70, 0.61, 0.8, "naming the largest class"),
        (0.80, 0.72, 0.5, "chance"),
        (0.80, 0.72, 0.8, ""),
    ],
)
def test_nothing_is_recommended_for_a_model_that_names_the_largest_class_or_guesses(
    tmp_path, accuracy, low, auroc, reason
):
    folder = tmp_path / "predictions" / "D" / "resnet18"
    folder.mkdir(parents=True)
    images = {"image_id": range(100), "fold": 0, "label": [0] * 66 + [1] * 34, "p_a": 0.6, "p_b": 0.4}
    pd.DataFrame(images).to_parquet(folder / "fp32.parquet")
    cell = {"regime": "fp32", "form": "float", "class": "", "recipe": "default"}
    scores = [
        cell | {"metric": "accuracy", "value": accuracy, "low": low, "high": 1.0},
        cell | {"metric": "auroc", "value": auroc, "low": math.nan, "high": 1.0},
    ]
    results = ptq(tmp_path, metrics=[row | {"fold": "pooled"} for row in scores], intervals=scores)
    table = decide(results)
    assert table["ship"].any() == (not reason) and reason in table["why"].iloc[0]
    assert ("nothing: FP32 is not shown to be better than" in advise.text(table, Limits())) == bool(reason)


def test_in_a_world_like_the_papers_ptq_never_ships():
    table = decide(brain())
    assert not table[table["ship"]]["candidate"].str.startswith("ptq").any()
    assert table.groupby(["dataset", "backbone"])["ship"].sum().max() == 1
    assert list(table.columns) == advise.COLUMNS


def test_results_without_timings_or_peers_still_decide():
    results = bent(brain(), latency=lambda t: t.iloc[:0], peers=lambda t: t.iloc[:0])
    table = decide(results)
    assert table.loc[table["ship"], "candidate"].eq("fp32").all()
    assert "time not measured" in advise.text(table, Limits())


def test_the_command_prints_decisions_and_writes_a_table(tmp_path, capsys):
    own = str(brain().path)
    assert main(["advise", own, "--max-latency-ms", "10", "--csv", str(tmp_path / "out.csv")]) == 0
    said = capsys.readouterr().out
    assert "BrainMRI, ResNet-18: ship" in said and "DenseNet-121: nothing passes" in said
    assert set(advise.COLUMNS) == set(pd.read_csv(tmp_path / "out.csv").columns)
    for words, why in (
        ([str(tmp_path / "absent")], "absent"),
        ([str(tmp_path)], "no cells to decide on"),
        ([own, "--confidence", "1"], "limits: confidence: input should be less than 1, not '1.0'."),
        ([own, "--confidence", "0.2"], "limits: confidence"),
        ([own, "--max-latency-ms", "0"], "limits: latency_ms"),
        ([own, "--max-brier-rise", "nan"], "limits: brier_rise"),
        ([own, "--batch-size", "0"], "limits: batch_size"),
        ([own, "--csv", str(tmp_path)], "cannot be written (Is a directory); name another file."),
        ([own, "--csv", str(tmp_path / "out.csv" / "x.csv")], "--csv"),
        ([own, "--csv", ""], "csv: is empty"),
    ):
        assert main(["advise", *words]) == 2
        found = capsys.readouterr()
        assert found.out == "" and found.err.startswith("medq: ") and why in found.err and "MEDQ" not in found.err
    assert (tmp_path / "out.csv").is_file()


def test_advising_needs_no_torch():
    code = (
        "import sys, medq.advise as a; from medq.results import load; a.decide(load(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(brain().path)], check=True)
