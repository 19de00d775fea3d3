"""Tables beside the paper's and beyond it: numbers against hand calculation, and what a reader is shown."""

import math
import re
from html import unescape

import fixtures.results as fixtures
import numpy as np
import pandas as pd
import pytest

from medq import advise, results, tables
from medq.errors import UserError
from medq.results import CELL, load, published, scores

CELL_OPTIONS = {"dataset": "BrainMRI", "backbone": "resnet50", "regime": "ptq-fbgemm"}
OPTIONS = dict.fromkeys(("worst_layers", "cell_numbers", "cell_classes"), CELL_OPTIONS)


def row(frame, **keys):
    """The one row of a table with these keys."""
    for key, value in keys.items():
        frame = frame[frame[key] == value]
    return frame.iloc[0] if len(frame) == 1 else pytest.fail(f"{len(frame)} rows have {keys}")


@pytest.fixture(scope="module")
def paper():
    return published()


# --- the paper's four -----------------------------------------------------------------------------


def test_table1_holds_ours_beside_the_papers(full):
    t = tables.table1(full)
    assert list(dict.fromkeys(zip(t["dataset"], t["metric"])))[:2] == [("BrainMRI", "ece"), ("BrainMRI", "brier")]
    assert list(dict.fromkeys(t["regime"]))[:6] == tables.PAPER_REGIMES
    own = scores(full, "ece", form="fake-quant")
    own = own[(own["dataset"] == "ChestXray") & (own["regime"] == "qat-fbgemm")]["value"].mean()
    entry = row(t, dataset="ChestXray", metric="ece", regime="qat-fbgemm")
    assert entry["ours"] == pytest.approx(own) and entry["paper"] == 0.0296 and entry["state"] == ""
    assert math.isnan(row(t, dataset="ChestXray", metric="ece", regime="fp32-continued")["paper"])


def test_table1_of_the_paper_itself_is_its_own(paper):
    t = tables.table1(paper)
    t = t[t["regime"].isin(tables.PAPER_REGIMES)]
    assert len(t) == 36 and (t["ours"] == t["paper"]).all()


def test_table1_says_what_a_mean_lacks_and_where_an_engine_is_wrong(gaps):
    fake, real = (tables.table1(gaps, form=s) for s in ("fake-quant", "converted"))
    lacks = row(fake, dataset="BrainMRI", metric="ece", regime="ptq-qnnpack")["state"]
    assert lacks.startswith("7 of 8 backbones (ConvNeXt-T unsupported: failed to create add")
    skin = {"dataset": "SkinCancer", "metric": "brier", "regime": "ptq-qnnpack"}
    assert row(fake, **skin)["state"] == "" and row(real, **skin)["state"] == f"{tables.DISAGREES}: MobileNetV2"


def test_table2_is_the_median_within_the_family(full):
    t = tables.table2(full)
    ms = [fixtures.FP32_MS[b] * 32**0.9 / fixtures.SPEEDUP[b] for b in fixtures.BACKBONES[:6]]
    entry = row(t, dataset="ChestXray", family="cnn", engine="fbgemm", quantity="p50_ms")
    assert entry["ours"] == pytest.approx(np.median(ms)) and entry["paper"] == 272
    assert (entry["low"], entry["high"]) == pytest.approx((min(ms), max(ms)))
    ratio = row(t, dataset="SkinCancer", family="transformer", engine="qnnpack", quantity="against_fbgemm")
    assert ratio["ours"] == pytest.approx(1 / 25) and ratio["paper"] == pytest.approx(3 / 33)


def test_table3_of_one_dataset_and_of_all(full):
    from sklearn.metrics import average_precision_score

    t = tables.table3(full, dataset="ChestXray")
    assert list(dict.fromkeys(t["regime"])) == ["fp32", "ptq-fbgemm", "qat-fbgemm"] and len(t) == 3 * 6
    p = full.predictions("ChestXray", "resnet50", "ptq-fbgemm")
    expected = average_precision_score(p["label"] == 2, p["p_Viral Pneumonia"])
    entry = row(t, **{"class": "Viral Pneumonia", "metric": "auprc", "regime": "ptq-fbgemm"})
    assert entry["ours"] == pytest.approx(expected, abs=1e-6) and entry["paper"] == 0.918
    whole = tables.table3(full)
    assert len(whole) == 14 * 6
    melanoma = row(whole, **{"dataset": "SkinCancer", "class": "mel", "metric": "auroc", "regime": "qat-fbgemm"})
    assert melanoma["paper"] == 0.90
    assert tables.table3(full, dataset="ChestXray", backbone="vit_base")["paper"].isna().all()
    with pytest.raises(UserError, match="BrainMRI"):
        tables.table3(full, dataset="Brain")


def test_table4_speedups_sizes_and_tails(full):
    t = tables.table4(full)
    for backbone in fixtures.BACKBONES:
        of = {r["quantity"]: r for r in t[t["backbone"] == backbone].to_dict("records")}
        assert of["speedup"]["ours"] == pytest.approx(fixtures.SPEEDUP[backbone])
        assert of["best_speedup"]["ours"] == pytest.approx(fixtures.SPEEDUP[backbone] / 1.35)
        assert of["size_ratio"]["ours"] == pytest.approx(of["size_ratio"]["paper"])
        assert of["int8_tail"]["ours"] == pytest.approx(1.05)
        assert of["speedup"]["low"] < of["speedup"]["ours"] < of["speedup"]["high"]
    paper_of = t.set_index(["backbone", "quantity"])["paper"]
    assert paper_of["densenet121", "int8_tail"] == pytest.approx(14.6 / 12.3)
    assert paper_of["swin_tiny", "speedup"] == 1.12 and paper_of["vit_base", "fp32_p50"] == 37.7


def test_table4_says_what_was_not_timed(full):
    cut = fixtures.bent(full, latency=lambda t: t[~((t["backbone"] == "vit_base") & t["regime"].str.startswith("ptq"))])
    t = tables.table4(cut).query("backbone == 'vit_base'").set_index("quantity")
    assert math.isnan(t["ours"]["speedup"]) and t["state"][["speedup", "fp32_p50"]].tolist() == ["not timed", ""]


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
    first = tables.changes(alone, ["brier"]).iloc[0]
    s = scores(full, "brier").query("dataset == @first.dataset and backbone == @first.backbone").set_index("regime")
    a, b = s.loc[first["regime"]], s.loc["fp32"]
    down = math.hypot(a["value"] - a["low"], b["high"] - b["value"])
    assert first["low"] == pytest.approx(first["value"] - down) and first["interval"] == "independent"
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
    assert first["patched"] == pytest.approx(first["simulated"])
    assert len(t) == 3 * 8 * 4 and (t.loc[t["gap"].isna(), "note"] != "").all()


def test_ablation_names_the_smallest_change_that_collapses(full):
    t = tables.smallest_change(full).set_index(["dataset", "backbone"])
    assert t.loc[("BrainMRI", "resnet18"), "changes"] == "calibration images not normalised"
    assert t.loc[("BrainMRI", "resnet18"), "n_changes"] == 1
    one = lambda a: a[~(a["recipe"] == "not-normalised")]  # noqa: E731
    t = tables.smallest_change(fixtures.bent(full, ablation=one)).set_index(["dataset", "backbone"])
    assert t.loc[("BrainMRI", "mobilenetv2"), "changes"] == "weights per-tensor"
    assert t.loc[("BrainMRI", "resnet18"), "changes"].startswith("none of 2 recipes")
    assert math.isnan(t.loc[("BrainMRI", "resnet18"), "n_changes"])


def test_ablation_prefers_fewer_changes_and_sees_a_mismatched_engine(full):
    def twice(a):
        worse = a[a["recipe"] == "not-normalised"].assign(recipe="both", weights="per-tensor", auprc=0.0)
        other = a[a["recipe"] == "default"].assign(recipe="other", run_engine="qnnpack", auprc=0.1)
        return pd.concat([a[a["recipe"] != "not-normalised"], worse, other])

    t = tables.smallest_change(fixtures.bent(full, ablation=twice)).set_index(["dataset", "backbone"])
    row = t.loc[("BrainMRI", "resnet18")]
    assert (row["recipe"], row["changes"]) == ("other", "run under qnnpack")


def test_a_model_whose_probabilities_alone_break_has_collapsed(full):
    def miscalibrated(a):
        worse = a["recipe"].eq("minmax") & a["backbone"].eq("resnet18")
        return a[a["recipe"] != "not-normalised"].assign(brier=a["brier"] + 0.2 * worse, ece_top_label=0.0)

    t = tables.smallest_change(fixtures.bent(full, ablation=miscalibrated)).set_index(["dataset", "backbone"])
    row = t.loc[("BrainMRI", "resnet18")]
    assert row["recipe"] == "minmax" and row["brier"] - row["brier_before"] == pytest.approx(0.21)


def test_ptq_and_qat_are_compared_with_the_same_observers_and_batch_norm(full):
    assert tables.equal_recipe(full).empty
    equal = full.ablation[full.ablation["recipe"] == "minmax"].assign(recipe="as-in-training")
    both = fixtures.bent(full, ablation=lambda a: pd.concat([a, equal[equal["backbone"] == "resnet18"]]))
    row = tables.equal_recipe(both).set_index(["dataset", "backbone", "engine"]).loc["BrainMRI", "resnet18", "fbgemm"]
    brier = scores(full, "brier", form="fake-quant").set_index(CELL)["value"].loc["BrainMRI", "resnet18"]
    assert (row["fp32"], row["qat"]) == (brier["fp32"], brier["qat-fbgemm"])
    assert row["ptq_equal"] - row["ptq"] == pytest.approx(0.01)


def test_a_recipe_reproduces_table_1_only_in_all_six_cells_at_once(full, paper):
    t = tables.recipes_against_table1(full)
    assert not t["reproduces"].any() and t["cells"].eq(3).all() and t["distance"].is_monotonic_increasing
    table1 = paper.metrics[paper.metrics["backbone"] == "mean"].set_index(["dataset", "regime", "metric"])["value"]
    like = pd.concat([full.ablation, full.ablation.assign(engine="qnnpack", run_engine="qnnpack")], ignore_index=True)
    for metric in ("ece", "brier"):
        own = scores(full, metric).query("regime == 'fp32'").set_index(["dataset", "backbone"])["value"]
        for k, r in like[like["recipe"] == "minmax"].iterrows():
            rise = table1[r["dataset"], f"ptq-{r['engine']}", metric] - table1[r["dataset"], "fp32", metric]
            like.loc[k, metric] = own[r["dataset"], r["backbone"]] + rise

    t = tables.recipes_against_table1(fixtures.bent(full, ablation=like))
    assert t.loc[t["reproduces"], "recipe"].tolist() == ["minmax"]
    assert t.iloc[0]["distance"] == pytest.approx(0, abs=1e-9)
    converted = like.assign(brier=like["brier"].mask(like["form"] == "converted", 2.0))  # Table 1 is simulated
    assert tables.recipes_against_table1(fixtures.bent(full, ablation=converted))["reproduces"].any()
    one = (like["recipe"] == "minmax") & (like["dataset"] == "ChestXray")
    off = fixtures.bent(full, ablation=like.assign(brier=like["brier"] + 0.2 * one))
    assert not tables.recipes_against_table1(off)["reproduces"].any()


def test_the_leak_is_what_changes_on_copied_images_beyond_the_others(tmp_path):
    """100 of 300 test images have a copy in their fold's training. Without copies these lose 0.3 and all images 0.1 more."""
    ids, twin = [f"i{k}" for k in range(300)], np.arange(300) < 100
    rng = np.random.default_rng(0)
    for name, p in (("r", 0.8 + 0.1 * twin), ("r-deduplicated", 0.7 - 0.1 * twin)):
        folder, p = tmp_path / name, p + rng.uniform(-0.02, 0.02, 300)
        frame = pd.DataFrame({"image_id": ids, "fold": np.arange(300) % 2, "label": 0, "p_a": p, "p_b": 1 - p})
        for backbone in ("resnet18", "resnet50"):
            (folder / "predictions" / "BrainMRI" / backbone).mkdir(parents=True)
            frame.to_parquet(folder / "predictions" / "BrainMRI" / backbone / "fp32.parquet")
        cells = [("BrainMRI", b, "fp32", 0, "done", "", 1.0, 1, "", "") for b in ("resnet18", "resnet50")]
        for file, rows in (("cells.csv", cells), ("metrics.csv", [])):
            pd.DataFrame(rows, columns=results.SCHEMA[file]).to_csv(folder / file, index=False)
    copies = [(f"{name}{k}", k, "near", True, 0) for name in "it" for k in range(100)]
    # i200 is in fold 0, its copy in fold 1's training
    copies += [(f"{name}200", 200, "near", True, 0) for name in "it"]
    for part, columns, rows in (
        ("audit", ["image_id", "group_id", "kind", "spans", "label"], copies),
        ("trained_on", ["fold", "image_id"], [(k % 2, f"t{k}") for k in range(100)] + [(1, "t200")]),
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


def test_remedies_share_of_the_gap_to_fp32_on_the_same_images(full):
    t = tables.remedies(full).set_index(["dataset", "backbone", "remedy"])
    row = t.loc[("SkinCancer", "mobilenetv2", "worst-3-in-fp32")]
    own = full.remedies.query("dataset == 'SkinCancer' and backbone == 'mobilenetv2'").set_index("remedy")["ece"]
    assert row["ece_closed"] == pytest.approx((own["worst-3-in-fp32"] - own["none"]) / (own["fp32"] - own["none"]))
    assert row["slowdown"] == pytest.approx(1.3) and "none" not in t.index.get_level_values("remedy")
    assert t.loc[("SkinCancer", "mobilenetv2", "temperature"), "auprc_closed"] == pytest.approx(0)
    gone = fixtures.bent(full, remedies=lambda r: r[r["remedy"] != "fp32"])
    assert tables.remedies(gone)["ece_closed"].isna().all()


@pytest.mark.parametrize("metric, better", [("auprc", -0.001), ("auprc", 0.1), ("ece", -0.1), ("brier", -0.1)])
def test_remedies_give_no_share_where_ptq_is_better_than_fp32_or_as_good(full, metric, better):
    def turned(r):
        goal = r[r["remedy"] == "fp32"].set_index(["dataset", "backbone"])[metric]
        ptq = [goal[key] + better for key in zip(r["dataset"], r["backbone"])]
        return r.assign(**{metric: r[metric].where(r["remedy"] != "none", pd.Series(ptq, index=r.index))})

    assert tables.remedies(full)[f"{metric}_closed"].notna().any()
    assert tables.remedies(fixtures.bent(full, remedies=turned))[f"{metric}_closed"].isna().all()


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
            own, others = row[["p50_ms", "brier"]], group[["p50_ms", "brier"]].drop(k)
            assert row["pareto"] is not any((o <= own).all() and (o < own).any() for _, o in others.iterrows())
    assert t["pareto"].any() and not t["pareto"].all()


def test_what_is_recommended_is_what_advice_ships_at_the_sizes_that_were_timed():
    brain = fixtures.world(datasets=("BrainMRI",))
    t = tables.recommended(brain)
    chosen = [advise.decide(brain, advise.Limits(batch_size=n)).query("ship and speedup == speedup") for n in (1, 32)]
    assert len(t) == sum(map(len, chosen)) > 8 and list(t["batch_size"].unique()) == [1, 32]
    one = fixtures.bent(brain, peers=lambda p: p[(p["batch_size"] == 1) & (p["backbone"] == "resnet18")])
    row = tables.recommended(one)
    assert len(row) == 1 and row.iloc[0]["batch_size"] == 1
    shipped = advise.decide(one).query("ship and backbone == 'resnet18'").iloc[0]
    assert row.iloc[0]["ship"] == results.title(shipped["candidate"])
    assert row.iloc[0]["speedup"] == shipped["speedup"] > 1
    assert tables.recommended(fixtures.bent(brain, peers=lambda p: p.iloc[:0])).empty


def test_runtimes_are_averaged_over_folds():
    full = fixtures.world(datasets=("BrainMRI",))
    p = full.peers
    two = fixtures.bent(full, peers=pd.concat([p, p.assign(fold="1", p50_ms=3 * p["p50_ms"], ece=p["ece"] + 0.1)]))
    once, both = tables.peers(full), tables.peers(two)
    assert len(both) == len(once)
    np.testing.assert_allclose(both["p50_ms"], 2 * once["p50_ms"])
    np.testing.assert_allclose(both["ece"], once["ece"] + 0.05)
    assert len(advise.decide(two)) == len(advise.decide(full))
    lacking = fixtures.bent(two, peers=lambda p: p[(p["fold"] == "0") | (p["runtime"] != "openvino")])  # of fold 1
    pd.testing.assert_frame_equal(tables.peers(lacking), once)


def test_worst_layers(gaps):
    worst = tables.worst_layers(gaps, "BrainMRI", "resnet18", "ptq-fbgemm")
    layers = gaps.layers[(gaps.layers["dataset"] == "BrainMRI") & (gaps.layers["backbone"] == "resnet18")]
    assert len(worst) == 3 and worst["sqnr_db"].iloc[0] == layers["sqnr_db"].min()


def test_speedups_mark_the_best_baseline(full):
    t = tables.speedups(full)
    best = t[t["best"]]
    assert len(t) == 24 and set(best["baseline"]) == {"fused"} and len(best) == 8


@pytest.mark.parametrize("study", ["peers", "ablation", "remedies", "calibration_size"])
def test_models_of_a_study_that_are_not_the_grids_are_remarked(full, study):
    full = fixtures.bent(full, metrics=lambda t: t.assign(fold="0"))
    m = full.metrics.query("metric == 'auprc' and `class` == '' and form != 'fake-quant' and recipe in ('default', '')")
    grid = m.set_index(["dataset", "backbone", "regime", "fold"])["value"]

    def like_the_grid(t, moved=0.0):
        if study != "calibration_size":
            t = t.assign(regime="ptq-" + t["engine"] if study == "ablation" else "fp32")
        keys = t[["dataset", "backbone", "regime", "fold"]].astype(str)
        values = pd.Series([grid.get(tuple(k), 0.5) for k in keys.to_numpy()], index=t.index)
        return t.assign(auprc=values + moved * (t["dataset"] == "BrainMRI"))

    same, moved = (fixtures.bent(full, **{study: lambda t, d=d: like_the_grid(t, d)}) for d in (0.0, 0.01))
    assert tables.other_models(same, study) == "" and "1.0 points" in tables.other_models(moved, study)
    printed = {"peers": "peers", "ablation": "smallest_change", "remedies": "remedies"}
    if study in printed:
        assert tables.other_models(moved, study) in unescape(tables.show(printed[study], moved).html)


@pytest.mark.parametrize("stage, names", [("latency", ("table2", "table4")), ("peers", ("peers",))])
def test_timings_beside_other_work_are_remarked(full, stage, names):
    rows = [{"stage": stage, "backbone": b, "others": n} for b, n in (("resnet18", 0.9), ("vit_base", 0.24))]
    busy = fixtures.bent(full, conditions=lambda t: pd.DataFrame(rows, columns=t.columns))
    remark = tables.disturbed(busy, stage)
    assert "0.9 cores" in remark and "ResNet-18" in remark and "ViT-B" not in remark
    assert all(remark in unescape(tables.show(name, busy).html) for name in names)
    other = {"latency": "peers", "peers": "latency"}[stage]
    assert tables.disturbed(busy, other) == tables.disturbed(full, stage) == ""


def test_advice_names_the_fastest_that_passes_and_why_others_did_not(tmp_path):
    shape = {"datasets": ("BrainMRI",), "n": 40, "predictions": False, "omit": ("peers.csv",)}
    shape |= {"backbones": ("resnet18", "mobilenetv2"), "speedup": {"resnet18": 3.0, "mobilenetv2": 2.0}}
    good = load(fixtures.write(tmp_path / "good", ptq=0.0, qat=0.0, **shape))
    bad = load(fixtures.write(tmp_path / "bad", ptq=1.0, qat=1.0, **shape))
    refused = tables.advice(bad).set_index("backbone")
    assert not refused["ship"].str.startswith("INT8").any() and "INT8-PTQ" in refused.loc["mobilenetv2", "refused"]
    wide = tables.advice(good, advise.Limits(auprc_loss_pp=100, brier_rise=9, nll_rise=9))
    assert wide["ship"].str.startswith("INT8").all() and (wide["speedup"] > 1).all()
    assert "<details>" in tables.show("advice", bad).html


def test_optimism_of_selection_is_the_gap_to_the_neighbours(full):
    def made(h):
        accuracy = [0.5, 0.8, 0.9, 0.85, 0.8, 0.5, 0.6, 0.7]
        keys = {"dataset": "d", "backbone": "b", "regime": ["fp32"] * 5 + ["fp16"] * 3, "fold": "0"}
        return pd.DataFrame(keys | {"epoch": [1, 2, 3, 4, 5, 1, 2, 3], "accuracy": accuracy})

    frame = tables.selection(fixtures.bent(full, history=made))
    assert list(frame["regime"]) == ["fp32"], "the other's best epoch is its last: nothing to compare with"
    assert frame["optimism"].iloc[0] == pytest.approx(100 * (0.9 - (0.8 + 0.9 + 0.85) / 3))


# --- what a reader sees ---------------------------------------------------------------------------


def cell_texts(html):
    return [re.sub(r"<[^>]+>", " ", c) for c in re.findall(r"<td[^>]*>(.*?)</td>", html, re.S)]


def test_show_marks_what_differs_and_notes_what_is_missing(gaps):
    html = unescape(tables.show("table1", fixtures.as_the_paper(gaps)).html)
    assert html.count("<tr") == 7 and "<caption" not in html
    assert "≠" in html and "paper <strong>0.0054</strong>" in html
    assert re.search(r"<sup>a</sup>", html) and "a: 7 of 8 backbones (ConvNeXt-T unsupported" in html
    assert "⚠" not in html and "⚠" in tables.show("table1", gaps, form="converted").html


def test_table1_says_what_its_intervals_cover_and_what_a_calibrated_model_would_show(gaps):
    html = tables.show("table1", gaps).html
    assert "calibrated model" in html and "BrainMRI 0.0200" in html  # ece_floor of the fixture
    assert "The binned ECE has no interval" in html and "other images alone, not another training" in html
    several = fixtures.bent(gaps, intervals=gaps.intervals.assign(trainings=3))
    assert "other images and another training" in tables.show("table1", several).html


def test_levels_are_compared_only_where_the_protocol_is_the_papers(gaps):
    for name, options in (("table1", {}), ("table3", {"dataset": "BrainMRI"})):
        assert "≠" in tables.show(name, fixtures.as_the_paper(gaps), **options).html
        own = tables.show(name, gaps, **options).html
        assert "≠" not in own and "ImageNet" in own and "paper" in own
    assert "≠" in tables.show("table4", gaps).html, "ratios of times can be compared whatever was trained"


def test_show_says_unsupported_in_the_cell():
    cells = tuple(("BrainMRI", b, "ptq-qnnpack") for b in fixtures.BACKBONES)
    none = fixtures.world(datasets=("BrainMRI",), n=60, predictions=False, unsupported=cells)
    texts = cell_texts(tables.show("table1", none).html)
    assert sum("unsupported" in t for t in texts) == 2
    assert not any("nan" in t.lower() for t in texts)


def test_a_mark_appears_exactly_where_the_paper_lies_outside(full):
    t = tables.table1(full)
    t["paper"] = t["ours"]
    look = tables.Look("x", rows=("dataset", "metric"), across="regime")
    assert "≠" not in tables.to_html(t, look)
    t.loc[(t["dataset"] == "BrainMRI") & (t["metric"] == "brier") & (t["regime"] == "fp16"), "paper"] = 9.0
    assert len(re.findall(r'class="[^"]*outside', tables.to_html(t, look))) == 1


def test_every_note_has_a_letter_of_its_own_beyond_26(paper):
    names = {"backbone": [f"b{k}" for k in range(60)], "state": [f"note {k}" for k in range(60)]}
    t = pd.DataFrame(names).assign(quantity="x", ours=1.0, low=math.nan, high=math.nan, paper=math.nan)
    html = tables.to_html(t, tables.Look("x", rows=("backbone",), across="quantity"))
    letters = re.findall(r"<sup>(\w+)</sup>", html)
    assert len(set(letters)) == 60 and letters[25:28] == ["z", "aa", "ab"]
    assert all(f"{mark}: note {k}." in html for k, mark in enumerate(letters))


def test_show_escapes_what_comes_from_results():
    shape = {"datasets": ("BrainMRI",), "backbones": ("resnet18",), "n": 60, "predictions": False}
    evil = fixtures.world(**shape, failed=(("BrainMRI", "resnet18", "ptq-fbgemm"),))
    reasons = evil.cells["reason"].replace(".+", "<script>x</script>", regex=True)
    evil = fixtures.bent(evil, cells=evil.cells.assign(reason=reasons))
    for name in ("table1", "engine_check"):
        html = tables.show(name, evil).html
        assert "<script>" not in html and "&lt;script&gt;" in html


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_shows_full_gappy_and_empty_results(name, gaps, paper, tmp_path):
    for shown in (gaps, load(tmp_path), paper):
        options = OPTIONS.get(name, {})
        table = tables.show(name, shown, **options)
        assert table.caption and 'role="region"' in table.html and not re.search(r"\bnan\b", table.html)
        assert not isinstance(table.data.columns, pd.MultiIndex)
        table.data.to_csv(tmp_path / "x.csv", index=False)
        assert pd.read_csv(tmp_path / "x.csv").shape == table.data.shape
    if name not in (*tables.VARIANTS, "leak_effect", "versions", "conditions", "selection"):
        assert len(tables.data(name, gaps, **OPTIONS.get(name, {})))


@pytest.mark.parametrize("kind", tables.VARIANTS)
def test_what_was_trained_again_with_one_change_stands_beside_it(kind, tmp_path):
    few = {"datasets": ("BrainMRI",), "backbones": ("resnet18", "resnet50"), "n": 60}
    ours = load(fixtures.write(tmp_path / "ours", **few))
    assert tables.beside_variant(ours, kind).empty
    fixtures.write(tmp_path / f"ours-{kind}", **few | {"backbones": ("resnet18",)}, ptq=0.0)
    frame = tables.beside_variant(ours, kind)
    assert set(frame["backbone"]) == {"resnet18"} and set(frame["regime"]) > {"fp32", "ptq-fbgemm"}
    entry = row(frame, regime="ptq-fbgemm", metric="AUPRC")
    assert entry["effect"] == pytest.approx(entry["as_in_the_paper"] - entry["changed"]) and entry["effect"] < -0.05
    assert (frame[frame["regime"] == "fp32"]["effect"].abs() < 1e-12).all()
    assert tables.data(kind, ours).equals(frame)


def test_unknown_data_is_refused(full):
    with pytest.raises(UserError, match="table1"):
        tables.data("table9", full)


def test_an_interval_is_printed_below_its_value():
    ends = {"gain_low": [-1.0, math.nan], "gain_high": [0.25, math.nan]}
    frame = pd.DataFrame({"backbone": ["x", "y"], "gain": [-0.5, 2.0]} | ends)
    frame = frame.assign(value=3.0, low=2.0, high=4.0, band_low=7.0, band_high=8.0)
    html = tables.to_html(frame, tables.Look(formats={None: "{:.2f}"}))
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)', html)
    assert heads == ["Backbone", "Gain", "Value", "Band low", "Band high"]
    odd = pd.DataFrame({"low": [1.0], "high": [2.0], "name": ["x"], "note": [None]})
    assert "<span>" not in tables.to_html(odd, tables.Look()) and "–</td>" in tables.to_html(odd, tables.Look())
    assert "-0.50<span>(-1.00 to 0.25)</span>" in html and "2.00</td>" in html and "3.00<span>(2.00 to 4.00)" in html
