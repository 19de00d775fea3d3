import math
import subprocess
import sys
from argparse import Namespace

import pandas as pd
import pytest
from fixtures.results import bent, world

from medq import advise
from medq.advise import Limits, decide
from medq.cli import main
from medq.errors import UserError
from medq.results import SCHEMA, Results


def brain():
    """The world like the paper's, of one dataset."""
    return world(datasets=("BrainMRI",))


def made(tmp_path, **tables):
    """A result folder of one dataset and backbone with the given rows per file."""
    for file, rows in tables.items():
        pd.DataFrame(rows, columns=SCHEMA[f"{file}.csv"]).to_csv(tmp_path / f"{file}.csv", index=False)
    return Results("made", tmp_path)


def cells(*regimes, status="done", reason=""):
    return [
        {"dataset": "D", "backbone": "resnet18", "regime": r, "fold": 0, "status": status, "reason": reason}
        for r in regimes
    ]


def timed(regime, p50, high=None, baseline=""):
    return {
        "dataset": "",
        "backbone": "resnet18",
        "regime": regime,
        "baseline": baseline,
        "device": "cpu",
        "batch_size": 1,
        "p50_ms": p50,
        "p50_high": high or p50,
        "size_mb": 1.0,
    }


def compared(regime, auprc, brier, reference="fp32"):
    """Bootstrap rows: (delta, low, high) of the reference minus the regime, in points."""
    return [
        {
            "dataset": "D",
            "backbone": "resnet18",
            "method_a": reference,
            "method_b": regime,
            "metric": metric,
            "delta_pp": d,
            "low_pp": low,
            "high_pp": high,
        }
        for metric, (d, low, high) in (("auprc", auprc), ("brier", brier), ("nll", brier))
    ]


SAFE = ((0.1, -0.1, 0.3), (-0.1, -0.3, 0.1))  # loses 0.1 points, Brier and NLL rise by 0.001


def row_of(table, candidate):
    return table[table["candidate"] == candidate].iloc[0]


def test_the_fastest_that_passes_is_shipped(tmp_path):
    results = made(
        tmp_path,
        cells=cells("fp32", "ptq-fbgemm", "qat-fbgemm"),
        latency=[timed("fp32", 10.0, baseline="eager"), timed("ptq-fbgemm", 2.0), timed("qat-fbgemm", 3.0)],
        bootstrap=compared("ptq-fbgemm", *SAFE) + compared("qat-fbgemm", *SAFE),
    )
    table = decide(results)
    assert table.loc[table["ship"], "candidate"].tolist() == ["ptq-fbgemm"]
    assert row_of(table, "ptq-fbgemm")["speedup"] == pytest.approx(5)
    assert row_of(table, "ptq-fbgemm")["brier_rise"] == pytest.approx(0.001)


def test_an_interval_that_reaches_over_the_limit_fails_and_less_confidence_lets_it_pass(tmp_path):
    results = made(
        tmp_path,
        cells=cells("fp32", "ptq-fbgemm"),
        latency=[timed("fp32", 10.0, baseline="eager"), timed("ptq-fbgemm", 2.0)],
        bootstrap=compared("ptq-fbgemm", (0.8, 0.4, 1.2), SAFE[1]),
    )
    strict = decide(results)
    assert strict.loc[strict["ship"], "candidate"].tolist() == ["fp32"]
    assert row_of(strict, "ptq-fbgemm")["auprc_loss_bound_pp"] == pytest.approx(0.8 + 0.4 * 1.6449 / 1.9600, abs=1e-4)
    assert "at worst 1.14 points" in row_of(strict, "ptq-fbgemm")["why"]
    lax = decide(results, Limits(confidence=0.7))
    assert lax.loc[lax["ship"], "candidate"].tolist() == ["ptq-fbgemm"]


def test_the_bound_of_a_rise_comes_from_the_lower_end_of_fp32_minus_regime(tmp_path):
    results = made(
        tmp_path,
        cells=cells("fp32", "ptq-fbgemm"),
        latency=[timed("fp32", 9.0, baseline="eager"), timed("ptq-fbgemm", 2)],
        bootstrap=compared("ptq-fbgemm", SAFE[0], (-0.5, -3.0, 0.1)),
    )
    row = row_of(decide(results, Limits(confidence=0.975)), "ptq-fbgemm")
    assert row["brier_rise_bound"] == pytest.approx(0.03) and row["passes"] is False


@pytest.mark.parametrize("end", [1, 2])
def test_a_bound_that_is_not_known_does_not_pass(tmp_path, end):
    auprc = tuple(math.nan if k == end else value for k, value in enumerate(SAFE[0]))
    results = made(
        tmp_path,
        cells=cells("fp32", "ptq-fbgemm"),
        latency=[timed("fp32", 10.0, baseline="eager"), timed("ptq-fbgemm", 2.0)],
        bootstrap=compared("ptq-fbgemm", auprc, SAFE[1]),
    )
    row = row_of(decide(results), "ptq-fbgemm")
    assert row["passes"] is None and "AUPRC loses 0.10 points, of unknown confidence" in row["why"]


def test_a_budget_counts_with_its_bound_and_the_best_baseline_of_fp32_counts(tmp_path):
    results = made(
        tmp_path,
        cells=cells("fp32", "qat-fbgemm"),
        latency=[
            timed("fp32", 10.0, baseline="eager"),
            timed("fp32", 4.0, baseline="fused"),
            timed("qat-fbgemm", 3.0, high=9.0),
        ],
        bootstrap=compared("qat-fbgemm", *SAFE),
    )
    table = decide(results, Limits(latency_ms=5))
    assert table.loc[table["ship"], "candidate"].tolist() == ["fp32"]
    assert row_of(table, "fp32")["p50_ms"] == 4
    assert "Latency is 3.0 ms, at worst 8.0 ms" in row_of(table, "qat-fbgemm")["why"]
    none = decide(results, Limits(latency_ms=1))
    assert not none["ship"].any()


def test_what_was_not_measured_does_not_pass_and_says_so(tmp_path):
    results = made(
        tmp_path,
        cells=cells("fp32", "ptq-fbgemm", "ptq-qnnpack") + cells("qat-fbgemm", status="unsupported", reason="no add"),
        latency=[timed("fp32", 10.0, baseline="eager"), timed("ptq-fbgemm", 2.0)],
    )
    table = decide(results)
    assert row_of(table, "ptq-fbgemm")["passes"] is None and "AUPRC not measured" in row_of(table, "ptq-fbgemm")["why"]
    assert "Latency not measured" in row_of(table, "ptq-qnnpack")["why"]
    assert (
        row_of(table, "qat-fbgemm")["passes"] is False and row_of(table, "qat-fbgemm")["why"] == "unsupported: no add"
    )
    assert table.loc[table["ship"], "candidate"].tolist() == ["fp32"]


def test_runtimes_compete_on_their_speed_up_in_their_own_run(tmp_path):
    def peer(runtime, precision, p50, auprc=0.9, ece=0.02):
        return {
            "dataset": "D",
            "backbone": "resnet18",
            "runtime": runtime,
            "precision": precision,
            "batch_size": 1,
            "auprc": auprc,
            "ece": ece,
            "p50_ms": p50,
            "p50_high": p50,
            "p99_ms": p50,
        }

    results = made(
        tmp_path,
        cells=cells("fp32"),
        latency=[timed("fp32", 40.0, baseline="eager")],
        bootstrap=compared("openvino-int8", (0.3, 0.1, 0.5), SAFE[1], reference="pytorch-fp32")
        + compared("onnxruntime-int8", SAFE[0], (-3.0, -4.0, -2.0), reference="pytorch-fp32"),
        peers=[
            peer("pytorch", "fp32", 4.0),
            peer("openvino", "int8", 0.5, auprc=0.897),
            peer("onnxruntime", "int8", 0.4, ece=0.05),
        ],
    )
    table = decide(results)
    chosen = table[table["ship"]].iloc[0]
    assert chosen["candidate"] == "openvino int8" and chosen["p50_ms"] == pytest.approx(5.0)
    assert chosen["auprc_loss_bound_pp"] == pytest.approx(0.3 + 0.2 * 1.6449 / 1.96, abs=1e-3)
    assert "Brier rises by 0.0300" in row_of(table, "onnxruntime int8")["why"]
    paired = made(tmp_path, bootstrap=compared("openvino-int8", (0.3, 0.1, 1.5), SAFE[1], reference="pytorch-fp32"))
    assert row_of(decide(paired), "openvino int8")["passes"] is False


def test_what_is_faster_and_better_calibrated_but_fails_a_limit_is_named(tmp_path):
    results = made(
        tmp_path,
        cells=cells("fp32", "ptq-fbgemm", "qat-fbgemm"),
        latency=[timed("fp32", 10.0, baseline="eager"), timed("ptq-fbgemm", 2.0), timed("qat-fbgemm", 3.0)],
        bootstrap=compared("ptq-fbgemm", (3.0, 2.0, 4.0), (0.5, 0.3, 0.7)) + compared("qat-fbgemm", *SAFE),
    )
    shipped = decide(results).query("ship").iloc[0]
    assert (shipped["candidate"], shipped["beaten_by"]) == ("qat-fbgemm", "ptq-fbgemm")
    assert decide(results, Limits(auprc_loss_pp=5.0)).query("ship").iloc[0]["beaten_by"] == ""


def test_nothing_is_recommended_for_a_model_that_names_the_largest_class_or_guesses(tmp_path):
    folder = tmp_path / "predictions" / "D" / "resnet18"
    folder.mkdir(parents=True)
    labels = [0] * 66 + [1] * 34
    pd.DataFrame({"image_id": range(100), "fold": 0, "label": labels, "p_a": 0.6, "p_b": 0.4}).to_parquet(
        folder / "fp32.parquet"
    )
    cell = {"dataset": "D", "backbone": "resnet18", "regime": "fp32", "form": "float", "class": "", "recipe": "default"}
    for accuracy, low, auroc, reason in (
        (0.66, 0.57, 0.8, "naming the largest class"),
        (0.70, 0.61, 0.8, "naming the largest class"),
        (0.80, 0.72, 0.5, "chance"),
        (0.80, 0.72, 0.8, ""),
    ):
        scores = {"accuracy": (accuracy, low), "auroc": (auroc, math.nan)}
        results = made(
            tmp_path,
            cells=cells("fp32", "ptq-fbgemm"),
            metrics=[cell | {"fold": "pooled", "metric": m, "value": v} for m, (v, _) in scores.items()],
            intervals=[cell | {"metric": m, "value": v, "low": w, "high": 1.0} for m, (v, w) in scores.items()],
            latency=[timed("fp32", 10.0, baseline="eager"), timed("ptq-fbgemm", 2.0)],
            bootstrap=compared("ptq-fbgemm", *SAFE),
        )
        table = decide(results)
        assert table["ship"].any() == (not reason) and reason in table["why"].iloc[0]
        assert ("nothing: FP32 is no better than" in advise.text(table, Limits())) == bool(reason)


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


@pytest.mark.parametrize(
    "wrong",
    [{"confidence": 1.0}, {"confidence": 0.2}, {"latency_ms": 0.0}, {"brier_rise": math.nan}, {"batch_size": 0}],
)
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        Limits(**wrong)


def test_the_command_prints_decisions_and_writes_a_table(tmp_path, capsys):
    assert main(["advise", str(brain().path), "--max-latency-ms", "10", "--csv", str(tmp_path / "out.csv")]) == 0
    said = capsys.readouterr().out
    assert "BrainMRI, ResNet-18: ship" in said and "DenseNet-121: nothing passes" in said
    assert set(advise.COLUMNS) == set(pd.read_csv(tmp_path / "out.csv").columns)
    assert main(["advise", str(tmp_path / "absent")]) == 2
    assert main(["advise", str(tmp_path)]) == 2
    assert main(["advise", str(brain().path), "--confidence", "2"]) == 2
    assert "confidence must be" in capsys.readouterr().err
    assert main(["advise", str(brain().path), "--csv", str(tmp_path)]) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.startswith("medq: --csv") and "Is a directory" in found.err


def test_a_place_where_no_table_can_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path, said in ((tmp_path, "Is a directory"), (tmp_path / "file" / "x.csv", "file"), ("", "names no file")):
        with pytest.raises(UserError, match=said) as error:
            advise.run(Namespace(results=world().path, csv=str(path), **vars(Limits())))
        assert str(error.value).startswith("--csv") and "MEDQ" not in str(error.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_advising_needs_no_torch():
    code = (
        "import sys, medq.advise as a; from medq.results import load; a.decide(load(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(brain().path)], check=True)
