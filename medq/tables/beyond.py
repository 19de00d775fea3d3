"""Tables beyond the paper: engines, recipes, remedies, decisions, leaks, controls, other runtimes, coverage."""

import math

import numpy as np
import pandas as pd

from medq import regimes
from medq.results import CELL, CONTROL, LOWER_IS_BETTER, counterpart, means, peer_means, scores, title, variant
from medq.results import published as paper_results
from medq.tables.entries import by_key, captioned, cell_state

COLLAPSE = 0.10  # a recipe collapses a model if it costs this much AUPRC, or adds this much top-label ECE


def engine_check(results, metric="brier"):
    """Does each INT8 engine compute what the model's own simulation says? One row per INT8 cell, worst first.

    Columns: dataset, backbone, regime, agrees, fp32, simulated, converted, mended, gap (converted -
    simulated, in the direction of worse), worst_layer, max_steps (largest error of a kernel, in
    quantization steps), note.
    """
    simulated, converted = (by_key(scores(results, metric, form=s), CELL) for s in ("fake-quant", "converted"))
    mended = by_key(scores(results, metric, recipe="mended"), CELL)
    worst = results.layers.dropna(subset=["kernel_max_steps"]).sort_values("kernel_max_steps")
    layers = by_key(worst.drop_duplicates(CELL, keep="last"), CELL)
    sign, rows = 1 if metric in LOWER_IS_BETTER else -1, []
    for cell in results.status.to_dict("records"):
        key = tuple(cell[c] for c in CELL)
        if key[2] not in regimes.INT8:
            continue
        value = {
            n: f.get(key, {}).get("value", math.nan)
            for n, f in (("simulated", simulated), ("converted", converted), ("mended", mended))
        }
        layer = layers.get(key, {})
        rows.append(
            {
                **dict(zip(CELL, key)),
                "agrees": {True: "yes", False: "NO"}.get(cell["engine_agrees"], ""),
                "fp32": converted.get((*key[:2], "fp32"), {}).get("value", math.nan),
                **value,
                "gap": sign * (value["converted"] - value["simulated"]),
                "worst_layer": layer.get("layer", ""),
                "max_steps": layer.get("kernel_max_steps", math.nan),
                "note": cell["note"] or cell_state(results, *key),
            }
        )
    columns = [*CELL, "agrees", "fp32", "simulated", "converted", "mended", "gap", "worst_layer", "max_steps", "note"]
    frame = pd.DataFrame(rows, columns=columns).sort_values("gap", ascending=False, kind="stable")
    return captioned(
        frame.reset_index(drop=True),
        f"Converted models against their own simulation ({title(metric)})",
        "gap: how much worse the converted model is than its fake-quantized simulation.",
        formats={None: "{:.4f}", "max_steps": "{:.0f}"},
    )


SCORES = ["auroc", "auprc", "ece", "ece_top_label", "brier"]
FACTORS = ("weights", "activations", "reduce_range", "fused", "training_mode", "normalised")
SWITCHES = {
    ("reduce_range", "true"): "reduced range",
    ("reduce_range", "false"): "full range",
    ("fused", "fused"): "batch norm fused",
    ("fused", "unfused"): "batch norm not fused",
    ("fused", "traced"): "batch norm as traced",
    ("training_mode", "true"): "traced in training mode",
    ("training_mode", "false"): "traced in evaluation mode",
    ("normalised", "true"): "calibration images normalised",
    ("normalised", "false"): "calibration images not normalised",
}


def recipe_means(results, form):
    """One row per dataset, backbone, engine and recipe, averaged over folds, with the `changes` by name."""
    a = results.ablation
    a = a[a["form"].isin([form, ""])] if (a["form"] == form).any() else a
    keys = ["dataset", "backbone", "engine", "recipe"]
    first = a.drop_duplicates(keys).set_index(keys)
    frame = first[[*FACTORS, "run_engine"]].join(a.groupby(keys)[SCORES].mean()).reset_index()
    default = by_key(frame[frame["recipe"] == "default"], ["dataset", "backbone", "engine"])
    frame["changes"] = [
        _changes(row, default.get((row["dataset"], row["backbone"], row["engine"]))) for row in frame.to_dict("records")
    ]
    return frame


def _changes(row, default):
    changed = [
        SWITCHES.get((f, row[f].lower()), f"{f} {row[f] or 'as the engine has them'}")
        for f in FACTORS
        if default is not None and row[f].lower() != default[f].lower()
    ]
    return changed + ([f"run under {row['run_engine']}"] if row["run_engine"] not in ("", row["engine"]) else [])


def ablation(results, *, form="converted"):
    """The smallest change of recipe that turns a sound model into a collapsed one, per dataset, backbone
    and engine.

    Columns: dataset, backbone, engine, recipe, changes, n_changes, auprc_before, auprc, ece_before, ece,
    ece_top_label_before, ece_top_label, tried. Collapsed: AUPRC lower, or top-label ECE higher, by
    `COLLAPSE` than under the default recipe. Of several recipes with equally few changes the one that costs
    most AUPRC counts.
    """
    frame, rows = recipe_means(results, form), []
    for key, group in frame.groupby(["dataset", "backbone", "engine"], sort=False):
        base = group[group["recipe"] == "default"]
        others = group[group["recipe"] != "default"]
        row = {**dict(zip(["dataset", "backbone", "engine"], key)), "tried": len(others)}
        if len(base):
            base = base.iloc[0]
            row |= {f"{m}_before": base[m] for m in ("auprc", "ece", "ece_top_label")}
            fell = others[
                (base["auprc"] - others["auprc"] >= COLLAPSE)
                | (others["ece_top_label"] - base["ece_top_label"] >= COLLAPSE)
            ]
            fell = fell.assign(n_changes=fell["changes"].map(len)).sort_values(["n_changes", "auprc"])
            if len(fell):
                row |= {m: fell.iloc[0][m] for m in ("recipe", "n_changes", "auprc", "ece", "ece_top_label")}
                row["changes"] = ", ".join(fell.iloc[0]["changes"])
            else:
                row |= {"recipe": "none", "changes": f"none of {len(others)} recipes collapses it"}
        else:
            row |= {"recipe": "", "changes": "the default recipe is missing"}
        rows.append(row)
    columns = [
        "dataset",
        "backbone",
        "engine",
        "recipe",
        "changes",
        "n_changes",
        "auprc_before",
        "auprc",
        "ece_before",
        "ece",
        "ece_top_label_before",
        "ece_top_label",
        "tried",
    ]
    return captioned(
        pd.DataFrame(rows, columns=columns),
        "The smallest change of recipe that makes PTQ collapse",
        f"Collapsed: {COLLAPSE:.2f} less AUPRC, or {COLLAPSE:.2f} more top-label ECE, than the default recipe gives.",
        formats={None: "{:.3f}", "n_changes": "{:.0f}", "tried": "{:.0f}"},
        labels={"n_changes": "Number of changes", "tried": "Recipes tried"}
        | {f"{m}_before": f"{title(m)} by default" for m in ("auprc", "ece", "ece_top_label")},
    )


def ablation_means(results, published=None, *, form="converted"):
    """Can the paper's Table 1 averages be produced by a recipe? ECE and Brier, mean over backbones, per
    recipe.

    Columns: dataset, engine, recipe, n_backbones, ece, brier, paper_ece, paper_brier, distance (of the two
    from the paper's, Euclidean); nearest first within dataset and engine.
    """
    published = published or paper_results()
    frame = recipe_means(results, form)
    mean = (
        frame.groupby(["dataset", "engine", "recipe"], sort=False)
        .agg(n_backbones=("backbone", "nunique"), ece=("ece", "mean"), brier=("brier", "mean"))
        .reset_index()
    )
    for metric in ("ece", "brier"):
        paper = by_key(means(published, metric, form="fake-quant"), ["dataset", "regime"])
        mean[f"paper_{metric}"] = [
            paper.get((counterpart(d), f"ptq-{e}"), {}).get("value", math.nan)
            for d, e in zip(mean["dataset"], mean["engine"])
        ]
    mean["distance"] = np.hypot(mean["ece"] - mean["paper_ece"], mean["brier"] - mean["paper_brier"])
    mean = mean.sort_values(["dataset", "engine", "distance"]).reset_index(drop=True)
    return captioned(
        mean,
        "Recipes beside the paper's INT8-PTQ averages, nearest first",
        formats={None: "{:.4f}", "n_backbones": "{:.0f}"},
        labels={"n_backbones": "Backbones", "paper_ece": "ECE in the paper", "paper_brier": "Brier in the paper"},
    )


REPRODUCED = {"ece": 0.05, "brier": 0.10}  # greatest error of a change from FP32 that still reproduces Table 1's


def recipes_against_table1(results, published=None, *, form="converted"):
    """How near each recipe comes to what PTQ changes in the paper's Table 1, over all its datasets and engines at once.

    Compared are changes from FP32, mean over the backbones of the ablation, in ECE and Brier: levels differ between
    protocols. Columns: recipe, cells (datasets x engines), error_ece, error_brier (root mean square of ours minus the
    paper's), worst_ece, worst_brier, distance (of both errors, each in units of REPRODUCED), reproduces (all six cells,
    each within REPRODUCED); nearest first, recipes of fewer cells last.
    """
    published, frame = published or paper_results(), recipe_means(results, form)
    rows = []
    for recipe, own in frame.groupby("recipe", sort=False):
        errors = {metric: [] for metric in REPRODUCED}
        for (dataset, engine), part in own.groupby(["dataset", "engine"], sort=False):
            for metric, found in errors.items():
                paper = by_key(means(published, metric, form="fake-quant"), ["dataset", "regime"])
                fp32 = by_key(scores(results, metric).query("regime == 'fp32'"), ["dataset", "backbone"])
                ours = [
                    r[metric] - fp32.get((dataset, r["backbone"]), {}).get("value", math.nan)
                    for _, r in part.iterrows()
                ]
                theirs = [
                    paper.get((counterpart(dataset), regime), {}).get("value", math.nan)
                    for regime in ("fp32", f"ptq-{engine}")
                ]
                found.append(np.mean(ours) - (theirs[1] - theirs[0]))
        rms = [float(np.sqrt(np.mean(np.square(e)))) for e in errors.values()]
        worst = [float(np.max(np.abs(e))) for e in errors.values()]
        near = all(w <= limit for w, limit in zip(worst, REPRODUCED.values()))
        cells = len(errors["ece"])
        distance = math.hypot(*(r / limit for r, limit in zip(rms, REPRODUCED.values())))
        rows.append((recipe, cells, *rms, *worst, distance, near and cells == 6))
    columns = ["recipe", "cells", "error_ece", "error_brier", "worst_ece", "worst_brier", "distance", "reproduces"]
    table = pd.DataFrame(rows, columns=columns).dropna(subset=["distance"])
    return table.sort_values(["cells", "distance"], ascending=[False, True], ignore_index=True)


UNTREATED, UNQUANTIZED = "none", "fp32"  # the rows of remedies.csv that the others are held against
GAP = 0.005  # where PTQ is not worse than FP32 by as much, there is no gap to speak of closing


def remedies(results):
    """Share of the PTQ to FP32 gap that each remedy closes, and what it costs in latency, one row per cell
    and remedy.

    Columns: dataset, backbone, regime, remedy, then for auprc, ece, ece_top_label, brier the value and
    `<metric>_closed` (1: as good as FP32; below 0: worse than PTQ; missing where PTQ is not worse than FP32
    by `GAP` or more), and `slowdown` (p50 over untreated PTQ's).
    """
    metrics = ["auprc", "ece", "ece_top_label", "brier"]
    frame = results.remedies.groupby([*CELL, "remedy"], sort=False)[[*metrics, "p50_ms"]].mean().reset_index()
    untreated = by_key(frame[frame["remedy"] == UNTREATED], CELL)
    columns = [*CELL, "remedy", *(c for m in metrics for c in (m, f"{m}_closed")), "slowdown"]
    goals, rows = by_key(frame[frame["remedy"] == UNQUANTIZED], CELL), []
    for row in frame[~frame["remedy"].isin([UNTREATED, UNQUANTIZED])].to_dict("records"):
        before, goal = (side.get(tuple(row[c] for c in CELL), {}) for side in (untreated, goals))
        out = {c: row[c] for c in [*CELL, "remedy", *metrics]}
        for m in metrics:
            gap = goal.get(m, math.nan) - before.get(m, math.nan)
            lost = gap if m == "auprc" else -gap
            out[f"{m}_closed"] = (row[m] - before.get(m, math.nan)) / gap if lost >= GAP else math.nan
        out["slowdown"] = row["p50_ms"] / before.get("p50_ms", math.nan)
        rows.append(out)
    percent = {f"{m}_closed": "{:.0%}" for m in metrics}
    return captioned(
        pd.DataFrame(rows, columns=columns),
        "Remedies without retraining: share of the PTQ to FP32 gap closed",
        f"No share is given where PTQ is not worse than FP32 by {GAP} or more.",
        formats={None: "{:.4f}", **percent, "slowdown": "{:.2f}×"},
        labels={c: f"{title(c.removesuffix('_closed'))}, gap closed" for c in percent},
    )


def silent(results, *, form="converted"):
    """What crosses a decision threshold fixed on the FP32 model: one row per cell and class, worst
    sensitivity first.

    Columns: dataset, backbone, regime, class, n, threshold, sensitivity_reference, sensitivity,
    sensitivity_change, specificity_change, prevalence_change, crossed_up, crossed_down.
    """
    s = results.silent[results.silent["form"].isin(["float", form])]
    counts = ["crossed_up", "crossed_down", "n"]
    rates = [
        "threshold",
        *(f"{r}{e}" for r in ("sensitivity", "specificity", "prevalence") for e in ("_reference", "")),
    ]
    frame = s.groupby([*CELL, "class"], sort=False).agg(dict.fromkeys(rates, "mean") | dict.fromkeys(counts, "sum"))
    frame = frame.reset_index()
    for rate in ("sensitivity", "specificity", "prevalence"):
        frame[f"{rate}_change"] = frame[rate] - frame[f"{rate}_reference"]
    columns = [
        *CELL,
        "class",
        "n",
        "threshold",
        "sensitivity_reference",
        "sensitivity",
        "sensitivity_change",
        "specificity_change",
        "prevalence_change",
        "crossed_up",
        "crossed_down",
    ]
    frame = frame[columns].sort_values("sensitivity_change", kind="stable").reset_index(drop=True)
    return captioned(
        frame,
        "Silent failures: decisions at a threshold fixed on the FP32 model",
        "Means over folds; counts are sums over folds.",
        formats={None: "{:.3f}", **dict.fromkeys(counts, "{:.0f}")},
    )


def flips(results):
    """Images whose predicted class changes between two regimes, summed over folds, the most first."""
    counts = ["flipped", "flipped_to_right", "flipped_to_wrong", "n"]
    frame = (
        results.flips.groupby(["dataset", "backbone", "regime_a", "regime_b"], sort=False)[counts].sum().reset_index()
    )
    frame["share"] = frame["flipped"] / frame["n"]
    frame = frame.sort_values("share", ascending=False, kind="stable").reset_index(drop=True)
    return captioned(frame, "Label flips between regimes", formats={None: "{:.0f}", "share": "{:.1%}"})


def leak(results, metric="auroc", *, form="converted"):
    """What images that stand on both sides of the split do to a metric: one row per cell.

    Columns: dataset, backbone, regime, form, all, without_identical, without_twins, effect (all - without
    twins).
    """
    frame = results.leak[(results.leak["metric"] == metric) & results.leak["form"].isin(["float", form])]
    wide = frame.pivot_table(index=[*CELL, "form"], columns="subset", values="value", sort=False)
    wide = wide.reindex(columns=["all", "without-identical", "without-twins"]).reset_index()
    wide.columns = [*CELL, "form", "all", "without_identical", "without_twins"]
    wide["effect"] = wide["all"] - wide["without_twins"]
    return captioned(
        wide,
        f"The leak between training and test images, and {title(metric)} without it",
        formats={None: "{:.4f}", "effect": "{:+.4f}"},
    )


def leak_effect(results):
    """What training on copies of test images does, by difference in differences: one row per dataset.

    Compared are the FP32 models of these results and those trained without the copies (`-deduplicated`), on the
    test images with a copy in training (`twins`) and on the others. The second difference removes what the two
    trainings differ by anyway, and the first what twins differ by in difficulty. Each backbone's training counts once,
    whatever is quantized from it: squared errors are averaged over backbones per image. `effect` is the rise of the Brier
    score on twins that leaving out the copies causes, `low` and `high` its 95 % interval (Welch, over groups of copies).

    Columns: dataset, backbones, twins, others (images), with_copies_twins, with_copies_others, without_copies_twins,
    without_copies_others, effect, low, high. Empty without the second result folder.
    """
    from scipy import stats

    from medq.bootstrap import connected

    other, rows = variant(results, "deduplicated"), []
    for dataset in results.datasets if other else ():
        found = {side: _image_brier(r, dataset) for side, r in (("with", results), ("without", other))}
        backbones = sorted(found["with"].keys() & found["without"].keys())
        if not backbones:
            continue
        before, after = (pd.concat([found[side][b] for b in backbones], axis=1).dropna().mean(axis=1) for side in found)
        images = before.index.intersection(after.index)
        audit = results.audit(dataset)
        seen = audit.loc[audit["image_id"].isin(results.trained_on(dataset)), "group_id"]
        copied = audit.loc[audit["group_id"].isin(seen), "image_id"]
        groups = pd.Series(connected(images, audit), index=images)
        twin = images.isin(copied)
        if not 1 < groups[twin].nunique() or not 1 < groups[~twin].nunique():
            continue
        rise = after[images] - before[images]
        parts = [rise[keep].groupby(groups[keep]).mean() for keep in (twin, ~twin)]
        result = stats.ttest_ind(*parts, equal_var=False)
        interval = result.confidence_interval()
        levels = [side[images][keep].mean() for side in (before, after) for keep in (twin, ~twin)]
        ends = (parts[0].mean() - parts[1].mean(), interval.low, interval.high)
        rows.append((dataset, len(backbones), int(twin.sum()), int((~twin).sum()), *levels, *ends))
    sides = [f"{side}_copies_{which}" for side in ("with", "without") for which in ("twins", "others")]
    frame = pd.DataFrame(rows, columns=["dataset", "backbones", "twins", "others", *sides, "effect", "low", "high"])
    return captioned(
        frame,
        "What training on copies does to the Brier score, by difference in differences",
        "One training of each backbone with and one without the copies; the interval holds images alone.",
        formats={None: "{:.4f}", **dict.fromkeys(("backbones", "twins", "others"), "{:.0f}"), "effect": "{:+.4f}"},
    )


def _image_brier(results, dataset):
    """{backbone: Brier score of each image, a Series} of the FP32 models."""
    found = {}
    for backbone in results.backbones:
        frame = results.predictions(dataset, backbone, "fp32")
        if len(frame):
            probs = frame.filter(regex="^p_").to_numpy(float)
            errors = ((probs - np.eye(probs.shape[1])[frame["label"]]) ** 2).sum(axis=1)
            found[backbone] = pd.Series(errors, index=frame["image_id"])
    return found


VARIANTS = {
    "deduplicated": "trained without the copies and near twins of test images",
    "inner": "with the epoch chosen on a part of the training images",
}


def beside_variant(results, kind, *, form="converted"):
    """The same cells, trained with one thing changed (`VARIANTS`), on the same test images: one row per cell and metric.

    Columns: dataset, backbone, regime, metric, as_in_the_paper, changed, effect (what the paper's way adds, in the
    metric's own unit). Empty where `results` has no such folder beside it.
    """
    other, rows = variant(results, kind), []
    for metric in ("accuracy", "auroc", "auprc", "ece") if other else ():
        ours = by_key(scores(results, metric, form=form), CELL)
        for key, row in by_key(scores(other, metric, form=form), CELL).items():
            if key in ours:
                rows.append(
                    {
                        **dict(zip(CELL, key)),
                        "metric": title(metric),
                        "as_in_the_paper": ours[key]["value"],
                        "changed": row["value"],
                        "effect": ours[key]["value"] - row["value"],
                    }
                )
    columns = [*CELL, "metric", "as_in_the_paper", "changed", "effect"]
    return captioned(
        pd.DataFrame(rows, columns=columns),
        f"As in the paper, and {VARIANTS[kind]}",
        "One training run each: a difference holds the scatter between runs, too.",
        formats={None: "{:.4f}", "effect": "{:+.4f}"},
    )


def qat_control(results, metric="auprc", *, engine="fbgemm", form="converted"):
    """What quantization-aware training gives that training on in FP32 does not: one row per dataset and
    backbone.

    Columns: dataset, backbone, fp32, continued, qat, training_on (continued - fp32), awareness (qat -
    continued).
    """
    value = {k: r["value"] for k, r in by_key(scores(results, metric, form=form), CELL).items()}
    rows = [
        {
            "dataset": d,
            "backbone": b,
            **{
                name: value.get((d, b, regime), math.nan)
                for name, regime in (("fp32", "fp32"), ("continued", CONTROL), ("qat", f"qat-{engine}"))
            },
        }
        for d in results.datasets
        for b in results.backbones
    ]
    frame = pd.DataFrame(rows, columns=["dataset", "backbone", "fp32", "continued", "qat"])
    frame["training_on"] = frame["continued"] - frame["fp32"]
    frame["awareness"] = frame["qat"] - frame["continued"]
    return captioned(
        frame,
        f"QAT ({engine}) against FP32 trained for as long, {title(metric)}",
        formats={None: "{:.4f}", "training_on": "{:+.4f}", "awareness": "{:+.4f}"},
    )


def peers(results):
    """Other runtimes on the same checkpoints and images, means over folds, at every batch size.

    Columns: those of `peers.csv` with `name`, the runtime's title, and `pareto`: at its batch size none beats it in both p50
    and ECE.
    """
    frame = peer_means(results).sort_values("batch_size", kind="stable").reset_index(drop=True)
    best = pd.Series(False, index=frame.index)
    for _, group in frame.groupby(["dataset", "backbone", "batch_size"]):
        for k, row in group.iterrows():
            beaten = (
                (group["p50_ms"] <= row["p50_ms"])
                & (group["ece"] <= row["ece"])
                & ((group["p50_ms"] < row["p50_ms"]) | (group["ece"] < row["ece"]))
            )
            best[k] = not beaten.any() and not math.isnan(row["p50_ms"])
    sizes = "/".join(f"{size:g}" for size in sorted(frame["image_size"].dropna().unique())) or "?"
    names = (frame["runtime"] + " " + frame["precision"]).map(title)
    frame = frame.assign(pareto=best, name=names)[
        [
            "dataset",
            "backbone",
            "batch_size",
            "name",
            "pareto",
            "p50_ms",
            "p99_ms",
            "ece",
            "auprc",
            "auroc",
            "ece_top_label",
            "brier",
            "size_mb",
            "convert_seconds",
            "runtime",
            "precision",
            "note",
        ]
    ]
    return captioned(
        frame,
        "The same models in other INT8 runtimes",
        "Pareto: no other row of the model at this batch size is as fast and as well calibrated, and better in "
        f"one. Times at {sizes} pixels, whatever the size the models were trained at. No p99 where there are "
        "fewer than 368 batches.",
        formats={None: "{:.2f}", "batch_size": "{:.0f}", **dict.fromkeys(SCORES, "{:.4f}")},
        labels={"name": "Runtime", "runtime": "runtime", "precision": "precision"},
    )


def recommended(results):
    """What `medq advise` ships of each model and batch size that other runtimes were timed at, and what beats it.

    Columns: dataset, backbone, batch_size, ship, speedup (over eager FP32), auprc_loss_pp, brier_rise, beaten_by (candidates
    that are both faster and better calibrated, though they do not pass).
    """
    from medq import advise

    columns = ["dataset", "backbone", "batch_size", "ship", "speedup", "auprc_loss_pp", "brier_rise", "beaten_by"]
    parts = []
    for n, timed in results.peers.dropna(subset=["p50_ms"]).groupby("batch_size"):
        chosen = advise.decide(results, advise.Limits(batch_size=int(n))).query("ship").dropna(subset=["speedup"])
        chosen = chosen.merge(timed[["dataset", "backbone"]].drop_duplicates())
        chosen = chosen.assign(
            batch_size=n,
            ship=chosen["candidate"].map(title),
            beaten_by=[", ".join(map(title, filter(None, names.split(", ")))) for names in chosen["beaten_by"]],
            brier_rise=chosen["brier_rise"].round(6) + 0.0,
            auprc_loss_pp=chosen["auprc_loss_pp"].round(4) + 0.0,
        )
        parts.append(chosen[columns])
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return captioned(
        frame,
        "What is recommended, and what is both faster and better calibrated",
        "At the default limits of medq advise. Beaten by: does not pass, or it would be recommended.",
        formats={None: "{:.2f}", "batch_size": "{:.0f}", "brier_rise": "{:+.4f}", "auprc_loss_pp": "{:+.2f}"},
        labels={
            "speedup": "Speed-up over eager FP32",
            "auprc_loss_pp": "AUPRC loss (points)",
            "brier_rise": "Brier rise",
            "beaten_by": "Beaten by",
        },
    )


def coverage(results):
    """What became of every cell: rows (dataset, backbone), a column per regime, entries of `status`."""
    frame = results.status.pivot(index=["dataset", "backbone"], columns="regime", values="status")
    rows = pd.MultiIndex.from_product([results.datasets, results.backbones], names=["dataset", "backbone"])
    frame = frame.reindex(index=rows, columns=results.regimes)
    return captioned(frame, "What became of every cell")


def worst_layers(results, dataset, backbone, regime, n=3):
    """The `n` layers of a cell with the lowest signal-to-quantization-noise ratio, worst first."""
    frame = results.layers
    frame = frame[(frame["dataset"] == dataset) & (frame["backbone"] == backbone) & (frame["regime"] == regime)]
    numbers = ["sqnr_db", "saturation", "weight_range_ratio", "kernel_sqnr_db", "kernel_max_steps"]
    frame = frame.groupby(["layer", "operator"], sort=False)[numbers].mean()
    frame = frame.nsmallest(n, "sqnr_db").reset_index()
    return captioned(
        frame,
        f"Worst layers of {title(backbone)}, {title(regime)}, {title(dataset)}",
        formats={None: "{:.1f}", "saturation": "{:.2%}", "weight_range_ratio": "{:.1f}×"},
    )
