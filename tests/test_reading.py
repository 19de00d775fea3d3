"""Readings: computed from the numbers, silent about nothing, and plain where there is nothing to read."""

import re

import fixtures.results as fixtures
import pandas as pd
import pytest

from medq import reading
from medq.results import load, published, scores


@pytest.mark.parametrize("name", reading.READINGS)
def test_every_reading_is_a_few_plain_sentences(name, gaps, tmp_path):
    for results in (gaps, published()):
        said = reading.READINGS[name](results, published())
        assert said.endswith(".") and len(said) > 30 and not re.search(r"\bnan\b|\binf\b|_", said), said
    if name != "found":
        assert "missing" in reading.READINGS[name](load(tmp_path)).lower()


def test_numbers_are_those_of_the_tables(full):
    said = reading.table4(full)
    assert "1.05 (EfficientNet-B0) to 5.62 (DenseNet-121)" in said and "slower than it on 2 of 8" in said
    assert "Rank correlation of the speed-ups with the paper's: +0.98" in said
    assert "QNNPACK reaches 0.04 times FBGEMM's throughput (the paper's 0.07 to 0.10)" in reading.table2(full)
    assert reading.coverage(full) == "Of 168 cells, 168 done."


def test_a_separate_training_is_no_cost_of_precision(full):
    """FP16 is trained on its own: with one seed its difference from FP32 is not counted, with several it is."""
    said = reading.summary(full)
    assert "FP16 was trained apart and once" in said and not re.search(r"FP16 \d+ of", said)
    assert re.search(r"INT8-PTQ \(FBGEMM\) \d+ of 24", said)
    several = reading.summary(fixtures.bent(full, bootstrap=lambda b: b.assign(trainings=3)))
    assert re.search(r"FP16 \d+ of 24", several) and "trained apart" not in several


def test_changes_compare_backbones_that_have_both(full):
    """A regime that lacks the best backbone is not worse for that."""
    best = "swin_tiny"
    cut = fixtures.bent(full, metrics=lambda m: m[~((m["backbone"] == best) & (m["regime"] == "fp16"))])
    s = scores(cut, "auprc")
    s = s[s["dataset"] == "SkinCancer"].pivot(index="backbone", columns="regime", values="value")
    change = 100 * (s["fp16"] - s["fp32"]).dropna().mean()
    assert abs(100 * (s["fp16"].mean() - s["fp32"].mean())) > 1 > abs(change)
    assert f"FP16 by {min(change, *_others(cut)):+.1f}" in reading.figure5(cut)


def _others(results):
    s = scores(results, "auprc").pivot(index=["dataset", "backbone"], columns="regime", values="value")
    change = 100 * (s["fp16"] - s["fp32"]).groupby("dataset").mean()
    return change[["BrainMRI", "ChestXray"]]


def test_what_is_doubtful_is_said(gaps):
    assert "3 averaged over fewer backbones" in reading.figure1(gaps)
    assert "1 from kernels that disagree with their own simulation" in reading.figure1(gaps)
    assert "MobileNetV2 under INT8-PTQ (QNNPACK)" in reading.engine_check(gaps)
    assert "With the operator mended" in reading.engine_check(gaps)
    said = reading.coverage(gaps)
    assert "1 unsupported" in said and "1 missing" in said and "scale ratio out of range" in said


def test_found_counts_verdicts_and_names_what_the_paper_refutes_itself(full):
    from medq import claims

    count = claims.summary(claims.evaluate(full))
    said = reading.found(full)
    assert (
        f"support {count['supported']}, contradict {count['contradicted']} and leave {count['not testable']} open"
    ) in said
    assert "The paper's own tables speak against 3 of its claims" in said
    assert "*Tails stay within 1.02 to 1.15*" in said


def test_a_model_that_the_default_recipe_collapses_is_named_with_its_best_recipe(full):
    def worse(a):
        hit = (a["dataset"] == "BrainMRI") & (a["backbone"] == "resnet18") & (a["recipe"] == "default")
        return a.assign(auprc=a["auprc"].where(~hit, 0.3))

    said = reading.collapse(fixtures.bent(full, ablation=worse))
    fp32 = scores(full, "auprc").set_index(["dataset", "backbone", "regime"])["value"]["BrainMRI", "resnet18", "fp32"]
    assert f"ResNet-18 under fbgemm on BrainMRI loses {100 * (fp32 - 0.3):.1f} points of AUPRC by the default" in said
    assert "by the default recipe already" not in reading.collapse(full)


@pytest.mark.parametrize("study", ["peers", "ablation", "remedies", "calibration_size"])
def test_models_of_a_study_that_are_not_the_grids_are_said(full, study):
    full = fixtures.bent(full, metrics=lambda t: t.assign(fold="0"))
    m = full.metrics.query("metric == 'auprc' and `class` == '' and form != 'fake-quant' and recipe in ('default', '')")
    grid = m.set_index(["dataset", "backbone", "regime", "fold"])["value"]

    def like_the_grid(t, moved=0.0):
        regime = (
            ("ptq-" + t["engine"]) if study == "ablation" else t["regime"] if study == "calibration_size" else "fp32"
        )
        keys = t.assign(regime=regime)[["dataset", "backbone", "regime", "fold"]].astype(str)
        values = pd.Series([grid.get(tuple(k), 0.5) for k in keys.to_numpy()], index=t.index)
        return t.assign(auprc=values + moved * (t["dataset"] == "BrainMRI"))

    same, moved = (fixtures.bent(full, **{study: lambda t, d=d: like_the_grid(t, d)}) for d in (0.0, 0.01))
    assert reading.other_models(same, study) == ""
    said = reading.other_models(moved, study)
    assert re.search(r"The models of (\d+) of the \d+ cells", said) and "by up to 1.0 points" in said
    page = {
        "peers": reading.peers,
        "ablation": reading.collapse,
        "remedies": reading.remedies,
        "calibration_size": reading.figure4,
    }[study]
    assert said.strip() in page(moved) and "trained again" not in page(same)


@pytest.mark.parametrize(
    "stage, names", [("latency", ("table2", "table4", "figure2", "figure6")), ("peers", ("peers",))]
)
def test_timings_beside_other_work_are_said(full, stage, names):
    rows = [{"stage": stage, "backbone": b, "others": n} for b, n in (("resnet18", 0.9), ("vit_base", 0.24))]
    busy = fixtures.bent(full, conditions=lambda t: pd.DataFrame(rows, columns=t.columns))
    for name in names:
        assert getattr(reading, name)(busy, published()).endswith(
            ". **Timed beside other work**, which kept up to 0.9 cores busy: ResNet-18; these milliseconds may be too long."
        )
    other = {"latency": "peers", "peers": "latency"}[stage]
    assert reading.disturbed(busy, other) == reading.disturbed(full, stage) == ""
