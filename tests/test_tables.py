"""Tables beside the paper's and beyond it: numbers against hand calculation, and what a reader is shown."""

import math
import re
from html import unescape

import fixtures.results as fixtures
import numpy as np
import pandas as pd
import pytest

from medq import advise, reading, results, tables
from medq.errors import UserError
from medq.results import CELL, load, published, scores

TABLES = [
    tables.table1,
    tables.table2,
    tables.table3,
    tables.table4,
    tables.engine_check,
    tables.ablation,
    tables.ablation_means,
    tables.remedies,
    tables.attention,
    tables.silent,
    tables.flips,
    tables.leak,
    tables.qat_control,
    tables.peers,
    tables.coverage,
]


@pytest.fixture(scope="module")
def paper():
    return published()


# --- the paper's four -----------------------------------------------------------------------------


def test_table1_holds_ours_beside_the_papers(full, paper):
    t = tables.table1(full, paper)
    assert list(t.index)[:2] == [("BrainMRI", "ece"), ("BrainMRI", "brier")] and len(t) == 6
    assert list(dict.fromkeys(t.columns.get_level_values(0)))[:6] == tables.PAPER_REGIMES
    own = scores(full, "ece", form="fake-quant")
    own = own[(own["dataset"] == "ChestXray") & (own["regime"] == "qat-fbgemm")]["value"].mean()
    entry = t.loc[("ChestXray", "ece"), "qat-fbgemm"]
    assert entry["ours"] == pytest.approx(own) and entry["paper"] == 0.0296 and entry["state"] == ""
    assert math.isnan(t.loc[("ChestXray", "ece"), ("fp32-continued", "paper")])


def test_table1_of_the_paper_itself_is_its_own(paper):
    t = tables.table1(paper, paper)
    assert (t.xs("ours", axis=1, level=1).iloc[:, :6] == t.xs("paper", axis=1, level=1).iloc[:, :6]).all(axis=None)


def test_table1_says_what_a_mean_lacks_and_where_an_engine_is_wrong(gaps, paper):
    fake, real = (tables.table1(gaps, paper, form=s) for s in ("fake-quant", "converted"))
    said = fake.loc[("BrainMRI", "ece"), ("ptq-qnnpack", "state")]
    assert said.startswith("7 of 8 backbones (ConvNeXt-T unsupported: failed to create add")
    skin = ("SkinCancer", "brier"), ("ptq-qnnpack", "state")
    assert fake.loc[skin] == "" and real.loc[skin] == f"{tables.DISAGREES}: MobileNetV2"


def test_table2_is_the_median_within_the_family(full, paper):
    t = tables.table2(full, paper)
    ms = [fixtures.FP32_MS[b] * 32**0.9 / fixtures.SPEEDUP[b] for b in fixtures.BACKBONES[:6]]
    entry = t.loc[("ChestXray", "cnn", "fbgemm"), "p50_ms"]
    assert entry["ours"] == pytest.approx(np.median(ms)) and entry["paper"] == 272
    assert (entry["low"], entry["high"]) == pytest.approx((min(ms), max(ms)))
    ratio = t.loc[("SkinCancer", "transformer", "qnnpack"), "against_fbgemm"]
    assert ratio["ours"] == pytest.approx(1 / 25) and ratio["paper"] == pytest.approx(3 / 33)


def test_table3_in_both_layouts(full, paper, tmp_path):
    from sklearn.metrics import average_precision_score

    wide = tables.table3(full, paper, "ChestXray")
    assert list(wide.index) == ["fp32", "ptq-fbgemm", "qat-fbgemm"] and wide.shape[1] == 6 * 5
    p = full.predictions("ChestXray", "resnet50", "ptq-fbgemm")
    expected = average_precision_score(p["label"] == 2, p["p_Viral Pneumonia"])
    assert wide.loc["ptq-fbgemm", ("Viral Pneumonia auprc", "ours")] == pytest.approx(expected, abs=1e-6)
    assert wide.loc["ptq-fbgemm", ("Viral Pneumonia auprc", "paper")] == 0.918
    tall = tables.table3(full, paper)
    assert len(tall) == 14
    assert tall.loc[("SkinCancer", "mel"), ("qat-fbgemm auroc", "paper")] == 0.90
    other = tables.table3(full, paper, "ChestXray", backbone="vit_base")
    assert other.xs("paper", axis=1, level=1).isna().all(axis=None) and other.attrs["notes"]
    with pytest.raises(UserError, match="BrainMRI"):
        tables.table3(full, paper, "Brain")
    with pytest.raises(UserError, match="holds no dataset yet; run `medq collect` first"):
        tables.table3(load(tmp_path), paper, "BrainMRI")


def test_table4_speedups_sizes_and_tails(full, paper):
    t = tables.table4(full, paper)
    for backbone in fixtures.BACKBONES:
        row = t.loc[backbone]
        assert row["speedup"]["ours"] == pytest.approx(fixtures.SPEEDUP[backbone])
        assert row["best_speedup"]["ours"] == pytest.approx(fixtures.SPEEDUP[backbone] / 1.35)
        assert row["size_ratio"]["ours"] == pytest.approx(row["size_ratio"]["paper"])
        assert row["int8_tail"]["ours"] == pytest.approx(1.05)
        assert row["speedup"]["low"] < row["speedup"]["ours"] < row["speedup"]["high"]
    assert t.loc["densenet121", ("int8_tail", "paper")] == pytest.approx(14.6 / 12.3)
    assert t.loc["swin_tiny", ("speedup", "paper")] == 1.12 and t.loc["vit_base", ("fp32_p50", "paper")] == 37.7


def test_table4_says_what_was_not_timed(full, paper):
    cut = fixtures.bent(full, latency=lambda t: t[~((t["backbone"] == "vit_base") & t["regime"].str.startswith("ptq"))])
    row = tables.table4(cut, paper).loc["vit_base"]
    assert math.isnan(row["speedup"]["ours"]) and row["speedup"]["state"] == "not timed"
    assert row["fp32_p50"]["state"] == ""


# --- differences ----------------------------------------------------------------------------------


def test_changes_are_the_paired_bootstraps_turned_to_the_metrics_own_unit(full):
    c = tables.changes(full).set_index(["dataset", "backbone", "regime", "metric"])
    value = scores(full, "ece").set_index(CELL)["value"]
    cell = ("ChestXray", "resnet50")
    row = c.loc[(*cell, "ptq-fbgemm", "ece")]
    assert row["value"] == pytest.approx(value[(*cell, "ptq-fbgemm")] - value[(*cell, "fp32")])
    b = full.bootstrap.set_index(["dataset", "backbone", "method_a", "method_b", "metric"])
    stored = b.loc[("ChestXray", "all", "fp32", "ptq-fbgemm", "auprc")]
    mean = c.loc[("ChestXray", "mean", "ptq-fbgemm", "auprc")]
    assert (100 * mean["low"], 100 * mean["high"]) == pytest.approx((-stored["high_pp"], -stored["low_pp"]))
    assert mean["interval"] == "paired" and "fp32" not in c.index.get_level_values("regime")


def test_changes_without_a_bootstrap_add_the_variances_of_both_cells(full):
    alone = fixtures.bent(full, bootstrap=lambda b: b.iloc[:0])
    row = tables.changes(alone, ["brier"]).iloc[0]
    s = scores(full, "brier").query("dataset == @row.dataset and backbone == @row.backbone").set_index("regime")
    a, b = s.loc[row["regime"]], s.loc["fp32"]
    down = math.hypot(a["value"] - a["low"], b["high"] - b["value"])
    assert row["low"] == pytest.approx(row["value"] - down) and row["interval"] == "independent"
    assert (tables.changes(alone, ["brier"]).query("backbone == 'mean'")["interval"] == "").all()


def test_a_change_compares_backbones_that_have_both(full):
    cut = fixtures.bent(full, metrics=lambda m: m[~((m["backbone"] == "swin_tiny") & (m["regime"] == "fp16"))])
    c = tables.changes(cut, ["auprc"]).query("dataset == 'SkinCancer' and regime == 'fp16'")
    own = c[c["backbone"] != "mean"]
    assert "swin_tiny" not in set(own["backbone"]) and len(own) == 7
    assert c[c["backbone"] == "mean"]["value"].item() == pytest.approx(own["value"].mean())


# --- beyond the paper -----------------------------------------------------------------------------


def test_engine_check_puts_the_wrong_engine_first(gaps):
    t = tables.engine_check(gaps)
    first = t.iloc[0]
    assert (first["backbone"], first["agrees"], first["note"]) == ("mobilenetv2", "NO", "ReLU6 off by 6.0")
    assert first["gap"] == pytest.approx(first["converted"] - first["simulated"]) and first["gap"] > 0
    assert first["mended"] == pytest.approx(first["simulated"])
    assert len(t) == 3 * 8 * 4 and (t.loc[t["gap"].isna(), "note"] != "").all()


def test_ablation_names_the_smallest_change_that_collapses(full):
    t = tables.ablation(full).set_index(["dataset", "backbone"])
    assert t.loc[("BrainMRI", "resnet18"), "changes"] == "calibration images not normalised"
    assert t.loc[("BrainMRI", "resnet18"), "n_changes"] == 1
    one = lambda a: a[~(a["recipe"] == "not-normalised")]  # noqa: E731
    t = tables.ablation(fixtures.bent(full, ablation=one)).set_index(["dataset", "backbone"])
    assert t.loc[("BrainMRI", "mobilenetv2"), "changes"] == "weights per-tensor"
    assert t.loc[("BrainMRI", "resnet18"), "changes"].startswith("none of 2 recipes")
    assert math.isnan(t.loc[("BrainMRI", "resnet18"), "n_changes"])


def test_ablation_prefers_fewer_changes_and_sees_a_mismatched_engine(full):
    def twice(a):
        worse = a[a["recipe"] == "not-normalised"].assign(recipe="both", weights="per-tensor", auprc=0.0)
        other = a[a["recipe"] == "default"].assign(recipe="other", run_engine="qnnpack", auprc=0.1)
        return pd.concat([a[a["recipe"] != "not-normalised"], worse, other])

    row = (
        tables.ablation(fixtures.bent(full, ablation=twice))
        .set_index(["dataset", "backbone"])
        .loc[("BrainMRI", "resnet18")]
    )
    assert (row["recipe"], row["changes"]) == ("other", "run under qnnpack")


def test_ablation_means_are_nearest_to_the_paper_first(full, paper):
    t = tables.ablation_means(full, paper)
    group = t[t["dataset"] == "BrainMRI"]
    assert group["distance"].is_monotonic_increasing and group["n_backbones"].eq(6).all()
    row = group.iloc[0]
    a = full.ablation
    own = a[(a["dataset"] == "BrainMRI") & (a["recipe"] == row["recipe"]) & (a["form"] == "converted")]
    assert row["ece"] == pytest.approx(own["ece"].mean()) and row["paper_ece"] == 0.2516
    assert row["distance"] == pytest.approx(math.hypot(row["ece"] - 0.2516, row["brier"] - 0.5287))


def test_a_recipe_reproduces_table_1_only_in_all_six_cells_at_once(full, paper):
    t = tables.recipes_against_table1(full, paper)
    assert not t["reproduces"].any() and t["cells"].eq(3).all() and t["distance"].is_monotonic_increasing
    table1 = paper.metrics[paper.metrics["backbone"] == "mean"].set_index(["dataset", "regime", "metric"])["value"]
    fp32 = {
        m: scores(full, m).query("regime == 'fp32'").set_index(["dataset", "backbone"])["value"]
        for m in ("ece", "brier")
    }

    def like_the_paper(a):
        both = pd.concat([a, a.assign(engine="qnnpack", run_engine="qnnpack")], ignore_index=True)
        for metric, own in fp32.items():
            for k, r in both[both["recipe"] == "minmax"].iterrows():
                rise = table1[r["dataset"], f"ptq-{r['engine']}", metric] - table1[r["dataset"], "fp32", metric]
                both.loc[k, metric] = own[r["dataset"], r["backbone"]] + rise
        return both

    t = tables.recipes_against_table1(fixtures.bent(full, ablation=like_the_paper), paper)
    assert t.loc[t["reproduces"], "recipe"].tolist() == ["minmax"] and t.iloc[0]["distance"] == pytest.approx(
        0, abs=1e-9
    )
    one_off = like_the_paper(full.ablation)
    one_off.loc[(one_off["recipe"] == "minmax") & (one_off["dataset"] == "ChestXray"), "brier"] += 0.2
    t = tables.recipes_against_table1(fixtures.bent(full, ablation=one_off), paper)
    assert not t["reproduces"].any()


def test_the_leak_is_what_changes_on_copied_images_beyond_the_others(tmp_path):
    """100 of 300 test images have a copy in training. Without copies these lose 0.3 and all images 0.1 more."""
    ids, twin = [f"i{k}" for k in range(300)], np.arange(300) < 100
    rng = np.random.default_rng(0)
    for name, p in (("r", 0.8 + 0.1 * twin), ("r-deduplicated", 0.7 - 0.1 * twin)):
        folder = tmp_path / name
        frame = pd.DataFrame({"image_id": ids, "fold": 0, "label": 0, "p_a": p + rng.uniform(-0.02, 0.02, 300)})
        for backbone in ("resnet18", "resnet50"):
            (folder / "predictions" / "BrainMRI" / backbone).mkdir(parents=True)
            frame.assign(p_b=1 - frame["p_a"]).to_parquet(
                folder / "predictions" / "BrainMRI" / backbone / "fp32.parquet"
            )
        cells = [("BrainMRI", b, "fp32", 0, "done", "", 1.0, 1, "", "") for b in ("resnet18", "resnet50")]
        for file, rows in (("cells.csv", cells), ("metrics.csv", [])):
            pd.DataFrame(rows, columns=results.SCHEMA[file]).to_csv(folder / file, index=False)
    copies = [(f"i{k}", k, "near", True, 0) for k in range(100)] + [(f"t{k}", k, "near", True, 0) for k in range(100)]
    for part, columns, rows in (
        ("audit", ["image_id", "group_id", "kind", "spans", "label"], copies),
        ("trained_on", ["fold", "image_id"], [(0, f"t{k}") for k in range(100)]),
    ):
        (tmp_path / "r" / part).mkdir()
        pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "r" / part / "BrainMRI.csv", index=False)
    row = tables.leak_effect(load(tmp_path / "r")).iloc[0]
    assert (row["backbones"], row["twins"], row["others"]) == (2, 100, 200)
    expected = 2 * ((0.4**2 - 0.1**2) - (0.3**2 - 0.2**2))
    assert row["effect"] == pytest.approx(expected, abs=0.01) and row["low"] < expected < row["high"]
    assert tables.leak_effect(load(tmp_path / "r-deduplicated")).empty


def test_attention_has_a_row_per_model(full):
    t = tables.attention(full).set_index(["dataset", "backbone", "model"])
    assert len(t) == 3 * 6 * 4 and set(t["n"]) == {150}
    own = full.attention.set_index([*CELL, "form", "measure"]).loc["BrainMRI", "resnet50", "ptq-fbgemm", "converted"]
    row = t.loc["BrainMRI", "resnet50", "INT8-PTQ (FBGEMM), integer"]
    for measure in ("rank_correlation", "relation"):
        assert row[measure] == own["value"][measure] and row[f"{measure}_low"] == own["low"][measure]
    twice = pd.concat([full.attention, full.attention.assign(fold="1", value=full.attention["value"] + 0.04)])
    t = tables.attention(fixtures.bent(full, attention=twice)).set_index(["dataset", "backbone", "model"])
    both = t.loc["BrainMRI", "resnet50", "INT8-PTQ (FBGEMM), integer"]
    assert both["overlap"] == pytest.approx(row["overlap"] + 0.02) and both["n"] == 300


def test_remedies_share_of_the_gap(full):
    t = tables.remedies(full).set_index(["dataset", "backbone", "remedy"])
    row = t.loc[("SkinCancer", "mobilenetv2", "worst-3-in-fp32")]
    assert row["ece_closed"] == pytest.approx(0.6) and row["slowdown"] == pytest.approx(1.3)
    assert t.loc[("SkinCancer", "mobilenetv2", "temperature"), "auprc_closed"] == pytest.approx(0)
    assert "none" not in t.index.get_level_values("remedy")


def test_remedies_give_no_share_where_there_is_no_gap(full):
    fp32 = scores(full, "auprc").set_index(CELL)["value"]

    def sound(r):
        goal = [fp32[d, b, "fp32"] for d, b in zip(r["dataset"], r["backbone"])]
        return r.assign(auprc=r["auprc"].where(r["remedy"] != "none", pd.Series(goal, index=r.index) - 0.001))

    t = tables.remedies(fixtures.bent(full, remedies=sound))
    assert t["auprc_closed"].isna().all() and t["ece_closed"].notna().any()


@pytest.mark.parametrize("metric, better", [("auprc", 0.1), ("ece", -0.1), ("brier", -0.1)])
def test_remedies_give_no_share_where_ptq_is_better_than_fp32(full, metric, better):
    def turned(r):
        goal = r[r["remedy"] == "fp32"].set_index(["dataset", "backbone"])[metric]
        ptq = [goal[key] + better for key in zip(r["dataset"], r["backbone"])]
        return r.assign(**{metric: r[metric].where(r["remedy"] != "none", pd.Series(ptq, index=r.index))})

    assert tables.remedies(full)[f"{metric}_closed"].notna().any()
    assert tables.remedies(fixtures.bent(full, remedies=turned))[f"{metric}_closed"].isna().all()


def test_remedies_are_held_against_fp32_on_the_same_images(full):
    row = tables.remedies(full).set_index([*CELL, "remedy"]).iloc[0]
    own = full.remedies[(full.remedies["dataset"] == "BrainMRI") & (full.remedies["backbone"] == "resnet18")]
    own = own.set_index("remedy")["ece"]
    closed = (own["temperature"] - own["none"]) / (own["fp32"] - own["none"])
    assert row["ece_closed"] == pytest.approx(closed)
    gone = fixtures.bent(full, remedies=lambda r: r[r["remedy"] != "fp32"])
    assert tables.remedies(gone)["ece_closed"].isna().all()


def test_silent_flips_and_leak(full):
    s = tables.silent(full)
    assert s["sensitivity_change"].is_monotonic_increasing
    assert s.iloc[0]["class"] == "vasc" and s.iloc[0]["sensitivity_change"] == pytest.approx(-0.18)
    two = fixtures.bent(full, flips=lambda f: pd.concat([f, f.assign(fold="1", flipped=30)]))
    f = tables.flips(two).iloc[0]
    assert (f["flipped"], f["n"], f["share"]) == (42, 300, 0.14)
    leak = tables.leak(full)
    assert len(leak) == 8 and np.allclose(leak["effect"], 0.012)
    assert np.allclose(leak["all"] - leak["without_identical"], 0.004)


def test_qat_control_splits_the_gain(full):
    t = tables.qat_control(full)
    assert len(t) == 24 and np.allclose(t["training_on"] + t["awareness"], t["qat"] - t["fp32"])


def test_peers_front_against_brute_force(full):
    t = tables.peers(full)
    assert set(t["batch_size"]) == {1, 32} and len(t) == len(full.peers)
    for _, group in t.groupby(["dataset", "backbone", "batch_size"]):
        for k, row in group.iterrows():
            others = group.drop(k)
            beaten = any(
                o["p50_ms"] <= row["p50_ms"]
                and o["ece"] <= row["ece"]
                and (o["p50_ms"], o["ece"]) != (row["p50_ms"], row["ece"])
                for _, o in others.iterrows()
            )
            assert row["pareto"] is not beaten
    assert t["pareto"].any() and not t["pareto"].all()


def test_what_is_recommended_is_what_advice_ships_at_the_sizes_that_were_timed(full):
    t = tables.recommended(full)
    assert len(t) == 48 and list(t["batch_size"].unique()) == [1, 32]
    one = fixtures.bent(
        full, peers=lambda p: p[(p["batch_size"] == 1) & (p["backbone"] == "resnet18") & (p["dataset"] == "BrainMRI")]
    )
    row = tables.recommended(one)
    assert len(row) == 1 and row.iloc[0]["batch_size"] == 1
    shipped = advise.decide(one).query("ship and dataset == 'BrainMRI' and backbone == 'resnet18'").iloc[0]
    assert (
        row.iloc[0]["ship"] == results.title(shipped["candidate"]) and row.iloc[0]["speedup"] == shipped["speedup"] > 1
    )
    assert tables.recommended(fixtures.bent(full, peers=lambda p: p.iloc[:0])).empty
    assert "**missing**" not in reading.peers(fixtures.bent(full, peers=lambda p: p.assign(p50_ms=math.nan)))


def test_runtimes_are_averaged_over_folds(full):
    two = fixtures.bent(
        full, peers=lambda p: pd.concat([p, p.assign(fold="1", p50_ms=3 * p["p50_ms"], ece=p["ece"] + 0.1)])
    )
    once, both = tables.peers(full), tables.peers(two)
    assert len(both) == len(once)
    np.testing.assert_allclose(both["p50_ms"], 2 * once["p50_ms"])
    np.testing.assert_allclose(both["ece"], once["ece"] + 0.05)
    assert len(advise.decide(two)) == len(advise.decide(full))
    lacking = fixtures.bent(
        two, peers=lambda p: p[(p["fold"] == "0") | (p["runtime"] != "openvino")]
    )  # fold 1 is not whole
    pd.testing.assert_frame_equal(tables.peers(lacking), once)


def test_what_a_runtime_lacks_is_named_with_the_model_and_the_batch_size(full):
    def without(p):
        gone = (p["dataset"] == "ChestXray") & (p["backbone"] == "resnet18") & (p["runtime"] == "openvino")
        half = (
            (p["dataset"] == "BrainMRI")
            & (p["backbone"] == "vit_base")
            & (p["batch_size"] == 32)
            & (p["runtime"] == "onnxruntime")
        )
        return p[~gone & ~half]

    said = reading.peers(fixtures.bent(full, peers=without))
    assert "Not measured for ResNet-18 on ChestXray: OpenVINO FP32 and OpenVINO INT8." in said
    assert "Not measured for ViT-B on BrainMRI at batch 32: ONNX Runtime FP32 and ONNX Runtime INT8." in said
    assert "Not measured" not in reading.peers(full)


def test_coverage_and_worst_layers(gaps):
    t = tables.coverage(gaps)
    assert t.loc[("BrainMRI", "convnext_tiny"), "ptq-qnnpack"] == "unsupported" and t.shape == (24, 7)
    worst = tables.worst_layers(gaps, "BrainMRI", "resnet18", "ptq-fbgemm")
    layers = gaps.layers[(gaps.layers["dataset"] == "BrainMRI") & (gaps.layers["backbone"] == "resnet18")]
    assert len(worst) == 3 and worst["sqnr_db"].iloc[0] == layers["sqnr_db"].min()


def test_speedups_mark_the_best_baseline(full):
    t = tables.speedups(full)
    best = t[t["best"]]
    assert len(t) == 24 and set(best["baseline"]) == {"fused"} and len(best) == 8


# --- what a reader sees ---------------------------------------------------------------------------


def cell_texts(html):
    return [re.sub(r"<[^>]+>", " ", c) for c in re.findall(r"<td[^>]*>(.*?)</td>", html, re.S)]


def test_show_marks_what_differs_and_notes_what_is_missing(gaps, paper):
    html = unescape(tables.show(tables.table1(gaps, paper)))
    assert html.count("<tr") == 7 and "<caption" not in html
    assert "≠" in html and "the paper's value lies outside our 95 % interval" in html
    assert "paper <strong>0.0054</strong>" in html
    assert re.search(r"<sup>a</sup>", html) and "a: 7 of 8 backbones (ConvNeXt-T unsupported" in html
    assert "⚠" not in html and "⚠" in tables.show(tables.table1(gaps, paper, form="converted"))


def test_show_says_unsupported_in_the_cell(full, paper):
    none = fixtures.world(
        datasets=("BrainMRI",),
        n=60,
        predictions=False,
        unsupported=tuple(("BrainMRI", b, "ptq-qnnpack") for b in fixtures.BACKBONES),
    )
    texts = cell_texts(tables.show(tables.table1(none, paper)))
    assert sum("unsupported" in t for t in texts) == 2
    assert not any("nan" in t.lower() for t in texts)


def test_a_mark_appears_exactly_where_the_paper_lies_outside(full, paper):
    t = tables.table1(full, paper)
    inside = t.copy()
    for regime in tables.PAPER_REGIMES:
        inside[(regime, "paper")] = inside[(regime, "ours")]
    inside.attrs = t.attrs
    assert "≠" not in tables.show(inside)
    inside.loc[("BrainMRI", "ece"), ("fp16", "paper")] = 9.0
    assert len(re.findall(r'class="[^"]*outside', tables.show(inside))) == 1


def test_show_escapes_what_comes_from_results(paper):
    evil = fixtures.world(
        datasets=("BrainMRI",),
        backbones=("resnet18",),
        n=60,
        predictions=False,
        failed=(("BrainMRI", "resnet18", "ptq-fbgemm"),),
    )
    evil = fixtures.bent(
        evil, cells=lambda c: c.assign(reason=c["reason"].where(c["reason"] == "", "<script>x</script>"))
    )
    for table in (tables.table1(evil, paper), tables.engine_check(evil)):
        html = tables.show(table, caption=True)
        assert "<script>" not in html and "&lt;script&gt;" in html


@pytest.mark.parametrize("table", TABLES, ids=lambda f: f.__name__)
def test_every_table_shows_full_gappy_and_empty_results(table, gaps, paper, tmp_path):
    for results in (gaps, load(tmp_path), paper):
        frame = table(results)
        assert frame.attrs["caption"]
        html = tables.show(frame, caption=True)
        assert 'role="region"' in html and not re.search(r"\bnan\b", html)
        assert len(re.findall(r"<td", html)) >= len(frame)


@pytest.mark.parametrize("kind", tables.VARIANTS)
def test_what_was_trained_again_with_one_change_stands_beside_it(kind, tmp_path):
    few = {"datasets": ("BrainMRI",), "backbones": ("resnet18", "resnet50"), "n": 60}
    ours = load(fixtures.write(tmp_path / "ours", **few))
    assert tables.beside_variant(ours, kind).empty
    assert "missing" in reading.beside_variant(ours, kind)
    fixtures.write(tmp_path / f"ours-{kind}", **few | {"backbones": ("resnet18",)}, ptq=0.0)
    frame = tables.beside_variant(ours, kind)
    assert set(frame["backbone"]) == {"resnet18"} and set(frame["regime"]) > {"fp32", "ptq-fbgemm"}
    row = frame[(frame["regime"] == "ptq-fbgemm") & (frame["metric"] == "AUPRC")].iloc[0]
    assert row["effect"] == pytest.approx(row["as_in_the_paper"] - row["changed"]) and row["effect"] < -0.05
    assert (frame[frame["regime"] == "fp32"]["effect"].abs() < 1e-12).all()
    assert tables.VARIANTS[kind] in reading.beside_variant(ours, kind)
    assert tables.data(kind, ours).equals(frame)


@pytest.mark.parametrize("name", [name for name in tables.DATA if name not in tables.VARIANTS])
def test_the_numbers_behind_everything_can_be_downloaded(name, full, tmp_path):
    frame = tables.data(name, full)
    assert len(frame) and not isinstance(frame.columns, pd.MultiIndex)
    frame.to_csv(tmp_path / "x.csv", index=False)
    assert pd.read_csv(tmp_path / "x.csv").shape == frame.shape
    assert tables.data(name, load(tmp_path)).empty


def test_unknown_data_is_refused(full):
    with pytest.raises(UserError, match="table1"):
        tables.data("table9", full)
