"""Claims: each verdict turns when the results do, and nothing is decided that the results leave open."""

import json
import math
from functools import cache

import fixtures.results as fixtures
import numpy as np
import pandas as pd
import pytest

from medq import bootstrap, claims
from medq.claims import CONTRADICTED, OPEN, OUTSIDE, SUPPORTED, decisions
from medq.claims.evidence import Entry, around, both, contrast, exists, harm, judge, mean, minus, newcombe
from medq.claims.evidence import rank_correlation, spread_ratio, student, welch
from medq.regimes import INT8
from medq.results import LOWER_IS_BETTER, load, published, scores
from medq.timing import ENOUGH


@cache
def paper_world():
    """The world of the paper's text: PTQ collapses, everything else keeps. Only rows that claims look at."""

    def lean(table):
        keep = table["metric"].isin([*bootstrap.TESTED, "ece", "ece_top_label"])
        return table[keep & ((table["class"] == "") | (table["metric"] == "auprc"))]

    return fixtures.as_the_paper(fixtures.bent(fixtures.world(), metrics=lean, intervals=lean))


@cache
def sound():
    """A world where PTQ loses nothing."""
    return fixtures.as_the_paper(fixtures.world(n=100, ptq=0.0, qat=0.0, predictions=False))


@cache
def broken():
    """A world where FP16 and QAT lose as much as PTQ, and qnnpack much more."""
    return fixtures.as_the_paper(fixtures.world(n=100, fp16=0.6, qat=0.6, ptq=1.0, engine_gap=0.9, predictions=False))


def verdict(results, name):
    return claims.CLAIMS[name].find(results).verdict


def bend(base=paper_world, **tables):
    return lambda: fixtures.bent(base(), **tables)


def metric(change=lambda r: r["value"], base=paper_world, names=None, half=0.001, **more):
    """A world whose metrics, intervals and paired differences follow `change(row) -> value`.

    With `names` only macro averages of these metrics change.
    """

    def apply(table):
        keep = table["metric"].isin(names) & (table["class"] == "") if names else [True] * len(table)
        values = [change(r) if k else r["value"] for r, k in zip(table.to_dict("records"), keep)]
        return table.assign(value=values)

    def bounds(table):
        mean = table["backbone"] == "mean"
        cells = apply(table[~mean])
        own = cells[cells["class"] == ""].groupby(["dataset", "regime", "form", "metric"])["value"].mean().reset_index()
        table = pd.concat([cells, own.assign(backbone="mean", **{"class": ""})])
        return table.assign(low=table["value"] - half, high=table["value"] + half)

    def make():
        metrics = apply(base().metrics)
        tables = {
            "metrics": metrics,
            "intervals": bounds,
            "bootstrap": fixtures.compared(metrics, half, half, trainings=3),
        } | more
        return bend(base, **tables)()

    return make


def is_skin(row):
    return row["dataset"] == "SkinCancer"


PLACE = {b: k / 7 for k, b in enumerate(fixtures.BACKBONES)}  # from 0, the first, to 1, the last


def ladder(high, low, regimes=("ptq",)):
    """Backbones from `high` to `low` under the regimes, 0.9 elsewhere."""

    def value(r):
        return high + (low - high) * PLACE[r["backbone"]] if r["regime"].startswith(regimes) else 0.9

    return metric(value, names=("auroc", "auprc"))


def exact(results):
    """Raw times that repeat one number, so that a speed-up has an interval of no width."""
    raw = results.latency.loc[results.latency.index.repeat(ENOUGH)].reset_index(drop=True)
    raw = raw.assign(batch=raw.index % ENOUGH, ms=1000 * raw["batch_size"] / raw["throughput"])
    return raw[list(results.latency_raw.columns)]


def timed(factor=None, **edits):
    """A world with other throughputs (`factor(row)`) or other columns of latency.csv, raw times to match."""

    def make():
        r = paper_world()
        t = r.latency.copy()
        if factor:
            t["throughput"] *= [factor(row) for row in t.to_dict("records")]
        for column, value in edits.items():
            t[column] = [value(row) for row in t.to_dict("records")]
        changed = fixtures.bent(r, latency=t)
        return fixtures.bent(changed, latency_raw=exact(changed))

    return make


def is_int8(row):
    return row["regime"].startswith(("ptq", "qat"))


def only(*names, factor):
    """Throughput of INT8 on the named backbones times `factor`."""
    return timed(lambda r: factor if is_int8(r) and r["backbone"] in names else 1.0)


def sweep(change):
    return bend(calibration_size=lambda c: c.assign(auprc=[change(r) for r in c.to_dict("records")]))


def curve(row, level=0.97, wobble=0.0005, slope=0.0):
    """A curve at `level` with alternating subsets `wobble` apart and a slope per doubling."""
    return level + wobble * (row["subset"] in ("1", 1)) + slope * math.log2(row["n_calibration"] / 16)


def wobbling(which):
    """Curves of which some have much wider bands than the others, and the other way round."""
    return tuple(sweep(lambda r, w=w: curve(r, wobble=w[which(r)])) for w in ((0.001, 0.05), (0.05, 0.001)))


def pooled(first, second, delta, p):
    """The pooled bootstrap rows of a pair with this difference and p."""

    def change(b):
        hit = b["method_a"].str.startswith(first) & b["method_b"].str.startswith(second) & (b["backbone"] == "all")
        new = {"delta_pp": delta, "low_pp": delta - 0.5, "high_pp": delta + 0.5, "p_value": p, "p_holm": p}
        return b.assign(**{column: b[column].where(~hit, value) for column, value in new.items()})

    return bend(bootstrap=change)


def qat_fails_on(dataset):
    """ROC-AUC of 0.5 under QAT on a dataset."""

    def value(r):
        return 0.5 if r["dataset"] == dataset and r["regime"].startswith("qat") else r["value"]

    return metric(value, names=("auroc",))


def skin_levels(skin, rest, spread=0.001):
    """ROC-AUC around these levels; on SkinCancer backbones lie `spread` apart."""

    def value(r):
        level, width = (skin, spread) if is_skin(r) else (rest, 0.001)
        return level + (PLACE[r["backbone"]] - 0.5) * width

    return metric(value, names=("auroc",))


def rare(drop_rare, drop_rest):
    """AUPRC of 0.8 in classes of SkinCancer, less so much under PTQ."""
    drops = dict.fromkeys(("akiec", "df", "mel"), drop_rare) | dict.fromkeys(("bcc", "bkl", "nv", "vasc"), drop_rest)

    def value(r):
        if r["metric"] != "auprc" or r["class"] not in drops:
            return r["value"]
        return 0.8 - drops[r["class"]] * r["regime"].startswith("ptq")

    return metric(value)


def one_class_fails(r):
    """QAT loses AUPRC of one class and no ROC-AUC."""
    if r["metric"] == "auroc":
        return 0.9
    fails = r["metric"] == "auprc" and r["class"] == "df" and r["regime"].startswith("qat")
    return r["value"] - 0.2 * fails


def calibration_error(fp32, ptq, qat, simulated=None):
    """Half the Brier score and NLL of three kinds of regime; `simulated` for all fake-quantized models."""

    def value(r):
        level = {"ptq": ptq, "qat": qat}.get(r["regime"][:3], fp32)
        return 2 * (simulated if simulated and r["form"] == "fake-quant" else level)

    return metric(value, names=("nll", "brier"))


def sensitivity(drop, regimes=("ptq",), level=0.95):
    """INT8 models keep their accuracy and lose sensitivity in every class; 150 images, so 30 of a class are common."""

    def change(s):
        moved = s["regime"].str.startswith(regimes)
        return s.assign(sensitivity_reference=level, sensitivity=s["sensitivity"].where(~moved, level - drop))

    return metric(lambda r: 0.9, names=("accuracy",), silent=change)


def peers(loss):
    """Runtimes that lose so much Brier score in INT8 on every backbone."""

    def rows(b):
        ends = {"delta_pp": -100 * loss, "low_pp": -100 * loss - 1, "high_pp": -100 * loss + 1, "trainings": 1}
        own = b[(b["method_b"] == "ptq-fbgemm") & (b["metric"] == "brier") & (b["backbone"] != "all")]
        names = [own.assign(method_a="pytorch-fp32", method_b=f"{r}-int8", **ends) for r in ("onnxruntime", "openvino")]
        return pd.concat([b, *names], ignore_index=True)

    return bend(bootstrap=rows)


def qnnpack(factor, kind):
    """Throughput under qnnpack of a family times `factor`."""
    group = fixtures.TRANSFORMERS if kind == "transformer" else fixtures.BACKBONES[:6]
    return timed(lambda r: factor if r["regime"].endswith("qnnpack") and r["backbone"] in group else 1.0)


def best_of_the_paper(regime=None):
    """Brier scores as in Table 1, or with another regime best everywhere."""
    m = published().metrics.query("backbone == 'mean' and metric == 'brier'")
    known = m.set_index(["dataset", "regime"])["value"]

    def value(r):
        return 0.0005 if r["regime"] == regime else known.get((r["dataset"], r["regime"]), r["value"])

    return metric(value, names=("brier",), half=0.00001)


def without_calibration(slope):
    """A transformer whose AUPRC moves with a number of calibration images that it does not use."""
    moving = sweep(lambda r: curve(r, 0.97 - 6 * slope, slope=slope))
    return bend(moving, calibration_size=lambda c: c.assign(backbone="vit_base"))


UNDECIDABLE = ("skin-variable", "ptq-variance", "size-transformers", "tails")  # whatever the results of our own

# id: (world that supports it, world that contradicts it); of those undecidable, that seems to
TURNS = {
    "fp16-auroc": (metric(), metric(base=broken)),
    "fp16-auprc": (metric(), metric(base=broken)),
    "fp16-calibration": (metric(), metric(base=broken)),
    "saturated": (skin_levels(0.9, 0.995), skin_levels(0.9, 0.97)),
    "skin-harder": (skin_levels(0.9, 0.995), skin_levels(0.997, 0.9)),
    "skin-variable": (skin_levels(0.9, 0.995, 0.1), skin_levels(0.9, 0.995, 0.00001)),
    "ptq-auroc": (paper_world, sound),
    "ptq-auprc": (paper_world, sound),
    "ptq-variance": (paper_world, ladder(0.9, 0.5, ("fp32",))),
    "ptq-architecture": (paper_world, ladder(0.9, 0.9)),
    "ptq-interaction": (metric(), ladder(0.9, 0.5)),
    "qat-auroc": (paper_world, broken),
    "qat-cluster": (paper_world, broken),
    "qat-residual": (qat_fails_on("SkinCancer"), qat_fails_on("BrainMRI")),
    "engines-discrimination": (ladder(0.9, 0.9, ("ptq", "qat")), broken),
    "vulnerable": (paper_world, ladder(0.5, 0.9)),
    "ptq-calibration": (calibration_error(0.02, 0.3, 0.02), sound),
    "ptq-calibration-deployed": (calibration_error(0.02, 0.3, 0.02), sound),
    "qat-calibration": (calibration_error(0.02, 0.3, 0.02), broken),
    "qat-mitigates": (calibration_error(0.02, 0.3, 0.02), calibration_error(0.02, 0.3, 0.28)),
    "qat-skin": (calibration_error(0.02, 0.3, 0.06), calibration_error(0.02, 0.3, 0.29)),
    "conversion-keeps": (paper_world, broken),
    "best-regimes": (best_of_the_paper(), best_of_the_paper("ptq-fbgemm")),
    "precision-not-hardware": (calibration_error(0.02, 0.3, 0.02), calibration_error(0.02, 0.3, 0.02, simulated=0.02)),
    "resnet50-ptq": (calibration_error(0.02, 0.3, 0.02), calibration_error(0.02, 0.02, 0.02)),
    "resnet50-qat": (calibration_error(0.02, 0.3, 0.02), calibration_error(0.02, 0.3, 0.2)),
    "resnet50-robust": (ladder(0.9, 0.5), ladder(0.5, 0.9)),
    "rare-classes": (rare(0.3, 0.1), rare(0.1, 0.3)),
    "hidden": (metric(one_class_fails), metric(lambda r: 0.9)),
    "silent": (sensitivity(0.5), sensitivity(-0.4, level=0.5)),
    "bootstrap-ptq": (pooled("fp32", "ptq", 10, 0.001), pooled("fp32", "ptq", 0.1, 0.2)),
    "bootstrap-qat": (pooled("fp32", "qat", 0.1, 0.6), pooled("fp32", "qat", 1, 0.001)),
    "bootstrap-ptq-qat": (pooled("ptq", "qat", -10, 0.001), pooled("ptq", "qat", 10, 0.001)),
    "size-insensitive": (sweep(curve), sweep(lambda r: curve(r, level=0.8, slope=0.02))),
    "size-transformers": (without_calibration(0.0), without_calibration(0.05)),
    "size-skin-lower": tuple(sweep(lambda r, s=s: curve(r, s[not is_skin(r)])) for s in ((0.6, 0.9), (0.9, 0.6))),
    "size-skin-wider": wobbling(is_skin),
    "size-small-sets": wobbling(lambda r: r["n_calibration"] < 128),
    "size-light": wobbling(lambda r: r["backbone"] in ("mobilenetv2", "convnext_tiny", "efficientnet_b0")),
    "size-not-monotonic": (sweep(lambda r: curve(r, slope=-0.02)), sweep(lambda r: curve(r, level=0.8, slope=0.001))),
    "size-few-hundred": (sweep(curve), sweep(lambda r: curve(r, level=0.7, slope=0.03))),
    "cnn-engines-alike": (paper_world, qnnpack(0.1, "cnn")),
    "transformer-qnnpack-slow": (paper_world, qnnpack(25, "transformer")),
    "conversion-cnn": (paper_world, timed(convert_seconds=lambda r: 0.3 if is_int8(r) else math.nan)),
    "conversion-transformer": (paper_world, timed(convert_seconds=lambda r: 3.0 if is_int8(r) else math.nan)),
    "conversion-qat": (paper_world, timed(convert_seconds=lambda r: 30.0 if is_int8(r) else math.nan)),
    "qat-faster": (timed(), only("vit_base", factor=0.2)),
    "ptq-faster": (timed(), only("vit_base", factor=0.2)),
    "larger-gain": tuple(
        timed(lambda r, k=k: fixtures.FP32_MS[r["backbone"]] ** k if is_int8(r) else 1.0) for k in (3, -3)
    ),
    "tails": (paper_world, timed(p99_ms=lambda r: 2 * r["p50_ms"])),
    "tails-alike": (paper_world, timed(p99_ms=lambda r: r["p50_ms"] * (2 if is_int8(r) else 1.1))),
    "speedup-range": (timed(), only("resnet18", factor=5)),
    "speedup-architecture": (timed(), timed(lambda r: 1 / fixtures.SPEEDUP[r["backbone"]] if is_int8(r) else 1.0)),
    "vulnerable-gain-least": (timed(), only("swin_tiny", factor=0.1)),
    "neither": (timed(), only("mobilenetv2", factor=4)),
    "sizes": (paper_world, timed(size_mb=lambda r: 100.0)),
    "fp16-gpu": (
        timed(device=lambda r: "cuda", p50_ms=lambda r: 5.0 if r["regime"] == "fp16" else 9.0),
        timed(device=lambda r: "cuda", p50_ms=lambda r: 9.0 if r["regime"] == "fp16" else 5.0),
    ),
    "fp16-memory": (timed(size_mb=lambda r: 50.0 if r["regime"] == "fp16" else 100.0), paper_world),
    "other-frameworks": (peers(0.5), peers(0.0)),
}


def test_every_claim_has_worlds_that_turn_it():
    assert set(TURNS) == set(claims.CLAIMS)
    assert len(claims.CLAIMS) >= 55


@pytest.mark.parametrize("name", TURNS)
def test_a_verdict_turns_with_the_results(name):
    supports, contradicts = TURNS[name]
    expected = (OPEN, OPEN) if name in UNDECIDABLE else (SUPPORTED, CONTRADICTED)
    assert (verdict(supports(), name), verdict(contradicts(), name)) == expected


@pytest.mark.parametrize("name", UNDECIDABLE)
def test_a_claim_that_cannot_be_decided_says_why(name):
    assert claims.CLAIMS[name].needs == "any" and claims.CLAIMS[name].test.startswith("None: ")


@pytest.mark.parametrize("name", ["ptq-auroc", "qat-auroc", "saturated", "rare-classes", "resnet50-ptq"])
def test_wide_intervals_leave_a_claim_open(name):
    wide = metric(half=0.5)()
    assert verdict(wide, name) == OPEN


def test_evidence_names_runtimes_as_pages_do():
    finding = claims.CLAIMS["other-frameworks"].find(peers(0.5)())
    assert "ONNX Runtime INT8" in finding.evidence and "onnxruntime" not in finding.evidence


def test_models_trained_from_scratch_decide_nothing_about_the_papers_models():
    scratch = fixtures.world(n=100, ptq=0.0, qat=0.0, predictions=False)
    table = claims.evaluate(scratch).set_index("id")
    needs = {name for name, c in claims.CLAIMS.items() if c.needs == "pretrained"}
    assert {"saturated", "ptq-auroc", "ptq-calibration", "qat-mitigates"} <= needs
    assert set(table.index[table["verdict"] == OUTSIDE]) == needs
    assert table.loc["ptq-auroc", "evidence"] and table.loc["ptq-faster", "verdict"] == SUPPORTED


def test_a_claim_is_decided_by_the_folder_whose_protocol_can(tmp_path):
    from medq import results

    fixtures.write(tmp_path / "reference", n=60, ptq=0.0, predictions=False)
    alone = claims.evaluate(results.load(tmp_path / "reference")).set_index("id")
    assert set(alone["results"]) == {"reference"} and alone.loc["ptq-auroc", "verdict"] == OUTSIDE
    omit = ("latency.csv", "latency_raw.parquet")
    folder = fixtures.write(tmp_path / "pretrained", n=60, predictions=False, omit=omit)
    facts = json.loads((folder / "provenance.json").read_text())
    facts["parameters"] |= {"weights": "imagenet", "image_size": 224}
    (folder / "provenance.json").write_text(json.dumps(facts))
    table = claims.evaluate(results.load(tmp_path / "reference")).set_index("id")
    assert tuple(table.loc["ptq-auroc", ["verdict", "results"]]) == (SUPPORTED, "pretrained")
    assert "Models: ResNet-18, ResNet-50" in table.loc["ptq-auroc", "evidence"]
    assert "Models:" not in table.loc["ptq-faster", "evidence"]
    assert tuple(table.loc["ptq-faster", ["verdict", "results"]]) == (SUPPORTED, "reference")


@pytest.mark.parametrize(
    "name, turn, expected",
    [
        ("ptq-auroc", 0, OUTSIDE),  # a mean over the eight
        ("ptq-auroc", 1, OUTSIDE),
        ("conversion-keeps", 0, OUTSIDE),  # every model
        ("conversion-keeps", 1, CONTRADICTED),
        ("silent", 0, SUPPORTED),  # some model
        ("silent", 1, OUTSIDE),
        ("resnet50-ptq", 0, SUPPORTED),  # one that it names
        ("resnet50-ptq", 1, CONTRADICTED),
    ],
)
def test_few_backbones_decide_only_what_an_example_can(name, turn, expected):
    world = TURNS[name][turn]()

    def fewer(table):
        return table[table["backbone"].isin(["resnet50", "mobilenetv2", "all", "mean"])]

    few = bend(lambda: world, **dict.fromkeys(("cells", "metrics", "intervals", "bootstrap", "silent"), fewer))()
    found = claims.CLAIMS[name].find(few)
    assert found.verdict == expected
    assert (expected == OUTSIDE) == ("Measured on 2 of the paper's 8 backbones." in found.evidence)


def test_backbones_are_counted_where_a_test_looks():
    """Eight backbones have metrics, one of them a sweep and timings."""
    world = sweep(curve)()

    def one(table):
        return table[table["backbone"] == "resnet18"]

    lean = bend(lambda: world, calibration_size=one, latency=one)()
    for name in ("size-few-hundred", "size-skin-lower", "conversion-qat"):
        assert verdict(lean, name) == OUTSIDE
        assert "Measured on 1 of the paper's 8 backbones." in claims.CLAIMS[name].find(lean).evidence
    found = claims.CLAIMS["size-insensitive"].find(lean)  # of ResNet-18 and ResNet-50
    assert found.verdict == OPEN and "missing: " in found.evidence and "ResNet-50" in found.evidence


def test_a_backbone_of_ones_own_is_no_example():
    """Only a backbone that is not the paper's loses AUPRC under QAT."""
    bad = metric(lambda r: r["value"] - 0.5 * (r["backbone"] == "vit_base" and r["regime"].startswith("qat")))
    assert verdict(bad(), "qat-cluster") == CONTRADICTED

    def renamed(table):
        return table.assign(backbone=table["backbone"].replace("vit_base", "own"))

    other = bend(bad, **dict.fromkeys(("cells", "metrics", "intervals", "bootstrap"), renamed))()
    assert verdict(other, "qat-cluster") == SUPPORTED


def test_one_training_of_each_cannot_contradict_fp16():
    world = metric(base=broken)()
    assert verdict(world, "fp16-auroc") == CONTRADICTED
    once = bend(lambda: world, bootstrap=lambda b: b.assign(trainings=1))()
    assert verdict(once, "fp16-auroc") == OPEN and "once each" in claims.CLAIMS["fp16-auroc"].find(once).evidence


def test_a_large_p_value_does_not_contradict():
    """PTQ loses 10 points with an interval from -5 to 25: nothing is decided."""
    world = pooled("fp32", "ptq", 10, 0.2)()
    wide = bend(lambda: world, bootstrap=lambda b: b.assign(low_pp=b["delta_pp"] - 15, high_pp=b["delta_pp"] + 15))()
    assert verdict(wide, "bootstrap-ptq") == OPEN and verdict(wide, "bootstrap-qat") == OPEN


def test_kernels_that_disagree_with_their_simulation_are_no_evidence_about_precision():
    world = calibration_error(0.02, 0.3, 0.02, simulated=0.02)()
    assert verdict(world, "precision-not-hardware") == CONTRADICTED
    wrong = world.cells.assign(engine_agrees=np.where(world.cells["regime"].isin(INT8), "False", ""))
    assert verdict(bend(lambda: world, cells=wrong)(), "precision-not-hardware") == OPEN


def test_only_competent_models_fail_silently():
    world = sensitivity(0.5)()
    assert verdict(world, "silent") == SUPPORTED
    majority = metric(lambda r: 0.1, lambda: world, names=("accuracy",))()
    assert verdict(majority, "silent") == OPEN


def test_qat_is_silent_only_beyond_what_training_on_does():
    """Sensitivity falls by as much without quantization: the control, not FP32, is the reference of QAT."""

    def continued(s, lost):
        control = s[s["regime"] == "qat-fbgemm"].assign(regime="fp32-continued", form="float")
        return pd.concat([s, control.assign(sensitivity=s["sensitivity_reference"] - lost)])

    alone = sensitivity(0.5, ("qat",))
    assert verdict(bend(alone, silent=lambda s: continued(s, 0.5))(), "silent") != SUPPORTED
    assert verdict(bend(alone, silent=lambda s: continued(s, 0.0))(), "silent") == SUPPORTED


def test_draws_that_overlap_are_not_compared():
    """The bands narrow only where 512 and 1,024 of 1,200 images are drawn: that is overlap, not information."""
    pool = dict.fromkeys(("BrainMRI", "ChestXray", "SkinCancer"), {"n_train": 1200})

    def world(narrow_from):
        made = sweep(lambda r: curve(r, wobble=0.001 if r["n_calibration"] >= narrow_from else 0.05))()
        vars(made)["provenance"] = made.provenance | {"data": pool}
        return made

    assert verdict(world(512), "size-small-sets") != SUPPORTED
    assert verdict(world(128), "size-small-sets") == SUPPORTED


def test_without_results_nothing_is_decided(tmp_path):
    table = claims.evaluate(load(tmp_path))
    assert set(table["verdict"]) == {OPEN, OUTSIDE}
    assert table["evidence"].str.len().gt(10).all()


def test_a_missing_dataset_keeps_a_claim_about_all_from_being_supported():
    def without(table):
        return table[table["dataset"] != "ChestXray"]

    gone = bend(metrics=without, bootstrap=without, intervals=without)()
    assert verdict(paper_world(), "qat-auroc") == SUPPORTED
    found = claims.CLAIMS["qat-auroc"].find(gone)
    assert found.verdict == OPEN and "missing: ChestXray" in found.evidence


def test_phantoms_are_judged_in_the_name_of_what_they_stand_for():
    phantoms = fixtures.world(n=60, phantoms=True, predictions=False)
    table = claims.evaluate(phantoms).set_index("id")
    assert "phantom BrainMRI" in table.loc["ptq-auroc", "evidence"]
    assert table.loc["skin-harder", "verdict"] == OUTSIDE


def test_the_papers_own_tables_speak_for_and_against_it():
    table = claims.evaluate(published()).set_index("id")["verdict"]
    supported = {"ptq-calibration", "qat-calibration", "fp16-calibration", "qat-skin", "best-regimes", "speedup-range"}
    assert supported | {"transformer-qnnpack-slow"} <= set(table.index[table == SUPPORTED])
    # 14.6 / 12.3 and 9.6 / 8.1 lie above 1.15; Swin-T gains less than MobileNetV2; BKL and VASC lose more than DF
    assert set(table.index[table == CONTRADICTED]) == {"tails", "vulnerable-gain-least", "rare-classes"}


def test_the_table_is_complete_and_readable():
    table = claims.evaluate(paper_world())
    assert list(table.columns) == claims.COLUMNS and table["id"].is_unique
    assert set(table["verdict"]) <= set(claims.VERDICTS)
    for column in ("claim", "section", "quotation_short", "test", "evidence"):
        assert table[column].str.len().gt(0).all()
    assert not table["evidence"].str.contains("nan").any()

    known = table[table["low"].notna()]
    assert (known["low"] <= known["value"] + 1e-9).all() and (known["value"] <= known["high"] + 1e-9).all()


# --- rules ----------------------------------------------------------------------------------------


def test_judge():
    inside, across, outside = Entry("a", 1, 0.5, 1.5), Entry("b", 2, 1.5, 2.5), Entry("c", 3, 2.5, 3.5)
    assert judge([inside], low=0, high=2).verdict == SUPPORTED
    assert judge([inside, across], low=0, high=2).verdict == OPEN
    found = judge([inside, across, outside], low=0, high=2)
    assert (found.verdict, found.value) == (CONTRADICTED, 3)
    assert judge([inside, Entry("gone", math.nan)], low=0, high=2).verdict == OPEN
    assert judge([outside, Entry("gone", math.nan)], low=0, high=2).verdict == CONTRADICTED
    assert judge([Entry("point", 1)], low=0, high=2).verdict == OPEN
    assert judge([]).verdict == OPEN


def test_both_and_exists():
    yes, no, maybe = (judge([Entry("x", v, *b)], low=0) for v, b in ((1, (1, 1)), (-1, (-1, -1)), (1, (-1, 2))))
    assert both(yes, yes).verdict == SUPPORTED
    assert both(yes, maybe).verdict == OPEN and both(maybe, no).verdict == CONTRADICTED
    assert exists([Entry("a", 3, 2, 4), Entry("b", 0, -1, 1)], above=1).verdict == SUPPORTED
    assert exists([Entry("a", 0.5, 0, 0.9)], above=1).verdict == CONTRADICTED
    assert exists([Entry("a", 3, 0.5, 4)], above=1).verdict == OPEN


def test_the_level_is_corrected_for_the_number_of_looks():
    one = Entry("a", 3, 2.1, 3.9)
    assert judge([one], high=2).verdict == CONTRADICTED and exists([one], above=2).verdict == SUPPORTED
    many = [one, *(Entry(str(k), 1, 0.5, 1.5) for k in range(20))]
    assert judge(many, high=2).verdict == OPEN and exists(many, above=2).verdict == OPEN
    rng, wrong = np.random.default_rng(0), [0, 0]
    for _ in range(2000):  # 50 looks at a truth on the limit: a verdict is wrong in about 5 % of samples
        looks = [Entry("", v, v - 1.96, v + 1.96) for v in rng.normal(size=50)]
        wrong[0] += judge(looks, high=0).verdict == CONTRADICTED
        wrong[1] += exists(looks, above=0).verdict == SUPPORTED
    assert max(wrong) / 2000 < 0.04  # one side of 2.5 % each


def test_a_claim_in_several_parts_is_not_contradicted_more_often():
    """Six parts that all must hold, each true on its limit: one is contradicted in at most 2.5 % of samples."""
    rng, wrong = np.random.default_rng(0), np.zeros(2)
    for _ in range(2000):
        looks = [[Entry("", v, v - 1.96, v + 1.96) for v in rng.normal(size=2)] for _ in range(6)]
        wrong[0] += both(*(judge(part, low=0, parts=6) for part in looks)).verdict == CONTRADICTED
        wrong[1] += both(*(exists(part[:1], above=0, parts=6) for part in looks)).verdict == CONTRADICTED
    assert (wrong / 2000 < 0.04).all()


def test_a_rank_is_not_claimed_more_often_than_stated(monkeypatch):
    """Four of eight backbones surely lose more, three as much: it is not among the best three for sure."""
    rng, true, wrong = np.random.default_rng(0), {"resnet50": 0, "a": 0, "b": 0, "c": 0} | dict.fromkeys("defg", 99), 0
    for _ in range(2000):
        drawn = {b: Entry(b, v, v - 1.96, v + 1.96) for b, v in zip(true, rng.normal(list(true.values())))}
        monkeypatch.setattr(decisions, "_ptq_loss", lambda _, drawn=drawn: drawn)
        wrong += decisions.robust(None, backbone="resnet50", among=3).verdict == SUPPORTED
    assert wrong / 2000 < 0.035


def test_the_level_is_corrected_for_few_draws_too():
    """20 means of 3 draws each, all on the limit: scaled as normal, one in four samples would give a wrong verdict."""
    rng, wrong, normal = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        looks = [student(None, "", v) for v in rng.normal(size=(20, 3))]
        wrong += judge(looks, high=0).verdict == CONTRADICTED
        normal += judge([e._replace(df=math.inf) for e in looks], high=0).verdict == CONTRADICTED
    assert wrong / 1000 < 0.045 and normal / 1000 > 0.1


def test_engines_share_their_fp32_model_and_are_not_averaged_as_if_independent():
    """The mean of the same loss twice is as uncertain as one."""
    e = Entry("", 0.3, 0.2, 0.5)
    assert mean([e, e], same_images=True)[1:4] == pytest.approx((0.3, 0.2, 0.5))
    assert mean([e, e])[2] == pytest.approx(0.3 - 0.1 / math.sqrt(2))


def test_an_interaction_carries_the_errors_of_all_cells(monkeypatch):
    """The interval of what dataset and backbone leave unexplained, against draws of the losses."""
    rng, names = np.random.default_rng(0), (("A", "B"), ("x", "y", "z"))
    truth, error = rng.normal(size=(2, 3)), rng.uniform(0.1, 1, size=(2, 3))

    def cells(*_):
        keys = [(d, b, "ptq-fbgemm") for d in names[0] for b in names[1]]
        return {k: Entry("", v, v - s, v + s) for k, v, s in zip(keys, truth.ravel(), error.ravel())}

    monkeypatch.setattr(decisions, "harms", cells)
    monkeypatch.setattr(decisions, "regimes", lambda *_: ["ptq-fbgemm"])
    draws = truth + error * rng.normal(size=(200_000, 2, 3))
    rest = draws - draws.mean(axis=1, keepdims=True) - draws.mean(axis=2, keepdims=True)
    rest += draws.mean(axis=(1, 2), keepdims=True)
    found = decisions.interacts(None)
    assert [e.value for e in found] == pytest.approx(np.abs(rest.mean(axis=0)).ravel(), abs=0.01)
    assert [e.high - e.value for e in found] == pytest.approx(rest.std(axis=0).ravel(), rel=0.01)


def test_the_greatest_of_many_gains_is_corrected_for_having_been_chosen():
    """AUPRC of equal sizes differs by the noise of draws alone: the gap from the least to the most is no evidence."""
    rng = np.random.default_rng(0)
    noisy = sweep(lambda r: 0.97 + 0.01 * rng.normal())()
    found = decisions.curves(noisy, compare="each", datasets=["BrainMRI"], named=["resnet18"])
    assert len(found) == 42 and judge(found, high=0.0).verdict == OPEN


def test_intervals_against_scipy_and_simulation():
    from scipy import stats

    x = np.array([0.1, 0.3, 0.2, 0.5, 0.4])
    r = paper_world()
    e = student(r, "", x)
    assert (e.low, e.high) == pytest.approx(stats.t.interval(0.95, 4, x.mean(), stats.sem(x)))
    y = np.array([0.3, 0.5, 0.9])
    w, found = welch("", x, y), stats.ttest_ind(np.log(x), np.log(y), equal_var=False).confidence_interval()
    assert (w.low, w.high) == pytest.approx((np.exp(found.low), np.exp(found.high)))
    a, b = pd.Series([1, 2, 3, 4, 5, 6, 7, 8.0]), pd.Series([1, 3, 2, 4, 6, 5, 8, 7.0])
    assert rank_correlation(a, b, "").value == pytest.approx(stats.spearmanr(a, b).statistic)
    assert math.isnan(rank_correlation(a[:7], b[:7], "").low)
    s = spread_ratio(r, "", ("BrainMRI", "ptq-fbgemm"), ("BrainMRI", "fp32"))
    m = scores(r, "auroc").query("dataset == 'BrainMRI'").set_index("regime")["value"]
    assert s.value == pytest.approx(np.std(m["ptq-fbgemm"]) / np.std(m["fp32"])) and math.isnan(s.low)
    m = minus(Entry("", 5, 4, 6), Entry("", 2, 1, 3), "")
    assert (m.value, m.low, m.high) == pytest.approx((3, 3 - math.sqrt(2), 3 + math.sqrt(2)))
    # Newcombe (1998), table II, method 10: 56/70 and 48/80 differ by 0.2 (0.0524 to 0.3339); here n is common
    assert newcombe(56, 42, 70) == pytest.approx((0.2, 0.0488, 0.3396), abs=0.005)
    rng = np.random.default_rng(0)
    draws = rng.multivariate_normal([1.0, 0.4], [[0.04, 0.01], [0.01, 0.02]], size=200_000)
    lost, left = draws.T
    parts = [around("", v.mean(), 1.96 * v.std()) for v in (lost, left, left - lost)]
    c, expected = contrast(*parts, 0.5, ""), left - 0.5 * lost
    assert c.value == pytest.approx(expected.mean())
    assert (c.high - c.low) / 3.92 == pytest.approx(expected.std(), rel=0.01)


def test_harm_is_the_paired_bootstraps_for_every_form_and_positive_if_worse():
    r = paper_world()
    stored = r.bootstrap.query("method_a == 'fp32' and backbone == 'all' and dataset == 'BrainMRI'")
    stored = stored.set_index(["method_b", "metric"])
    for form, method in (("converted", "ptq-fbgemm"), ("fake-quant", "ptq-fbgemm.fake-quant")):
        for metric_ in ("auprc", "brier"):
            row = stored.loc[(method, metric_)]
            e = harm(r, metric_, "fp32", "ptq-fbgemm", "BrainMRI", form=form)
            ends = sorted((-1 if metric_ in LOWER_IS_BETTER else 1) * row[k] / 100 for k in ("low_pp", "high_pp"))
            assert e.value > 0 and (e.low, e.high) == pytest.approx(ends)
    unknown = harm(fixtures.bent(r, bootstrap=lambda b: b.iloc[:0]), "auprc", "fp32", "ptq-fbgemm", "BrainMRI")
    assert unknown.value > 0 and math.isnan(unknown.low)
