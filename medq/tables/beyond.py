"""Tables beyond the paper: engines, recipes, remedies, decisions, leaks, controls, other runtimes, advice."""

import math

import numpy as np
import pandas as pd

from medq import advise, regimes
from medq.groups import connected
from medq.results import CELL, CONTROL, FACTORS, LOWER_IS_BETTER
from medq.results import counterpart, means, peer_means, published, scores, title, variant
from medq.changes import SCORES
from medq.tables.about import of_cell
from medq.tables.entries import by_key, cell_state

COLLAPSE = 0.10  # a recipe collapses a model if it costs this much AUPRC, or adds this much to the Brier score


def engine_check(results):
    """Does each INT8 engine compute what the model's own simulation says? One row per INT8 cell, worst first.

    Columns: dataset, backbone, regime, agrees, Brier scores fp32, simulated, converted, patched, gap (converted -
    simulated), worst_layer, max_steps (largest error of a kernel, in quantization steps), note.
    """
    frame = results.status[results.status["regime"].isin(regimes.INT8)].set_index(CELL)
    deployed = scores(results, "brier").set_index(CELL)["value"]
    fp32 = deployed[deployed.index.get_level_values("regime") == "fp32"].droplevel("regime")
    worst = results.layers.dropna(subset=["kernel_max_steps"]).sort_values("kernel_max_steps")
    worst = worst.drop_duplicates(CELL, keep="last").set_index(CELL).reindex(frame.index)
    frame = frame.assign(
        agrees=frame["engine_agrees"].map({True: "yes", False: "NO"}).fillna(""),
        fp32=fp32.reindex(frame.index.droplevel("regime")).to_numpy(float),
        simulated=scores(results, "brier", form="fake-quant").set_index(CELL)["value"],
        converted=deployed,
        patched=scores(results, "brier", recipe="mended").set_index(CELL)["value"],
        worst_layer=worst["layer"].fillna(""),
        max_steps=worst["kernel_max_steps"].astype(float),
        note=[note or cell_state(results, *cell) for note, cell in zip(frame["note"], frame.index)],
    )
    frame["gap"] = frame["converted"] - frame["simulated"]
    columns = ["agrees", "fp32", "simulated", "converted", "patched", "gap", "worst_layer", "max_steps", "note"]
    return frame[columns].sort_values("gap", ascending=False, kind="stable").reset_index()


# --- recipes --------------------------------------------------------------------------------------

SWITCHES = {
    ("reduce_range", "true"): "reduced range",
    ("reduce_range", "false"): "full range",
    ("fused", "fused"): "batch norm fused",
    ("fused", "unfused"): "batch norm not fused",
    ("fused", "traced"): "batch norm as traced",
    ("rounded", "operators"): "each operator rounded",
    ("rounded", "layers"): "ReLU6 within its layer's range",
    ("rounded", "inputs"): "inputs of layers alone rounded",
    ("training_mode", "true"): "traced in training mode",
    ("training_mode", "false"): "traced in evaluation mode",
    ("normalised", "true"): "calibration images normalised",
    ("normalised", "false"): "calibration images not normalised",
}
MODEL = ["dataset", "backbone", "engine"]


def recipe_means(results, form):
    """One row per dataset, backbone, engine and recipe, averaged over folds, with the `changes` by name.

    `collapsed`: AUPRC lower, or the Brier score higher, by `COLLAPSE` than under the default recipe.
    """
    a = results.ablation
    a = a[a["form"].isin([form, ""])] if (a["form"] == form).any() else a
    keys = [*MODEL, "recipe"]
    first = a.drop_duplicates(keys).set_index(keys)
    frame = first[[*FACTORS, "run_engine"]].join(a.groupby(keys)[list(SCORES)].mean()).reset_index()
    defaults, changed, collapsed = by_key(frame[frame["recipe"] == "default"], MODEL), [], []
    for row in frame.to_dict("records"):
        default = defaults.get(tuple(row[k] for k in MODEL), row)
        factors = [f for f in FACTORS if row[f].lower() != default[f].lower()]
        names = [SWITCHES.get((f, row[f].lower()), f"{f} {row[f] or 'as the engine has them'}") for f in factors]
        elsewhere = row["run_engine"] not in ("", row["engine"])
        changed.append(names + [f"run under {row['run_engine']}"] * elsewhere)
        collapsed.append(max(default["auprc"] - row["auprc"], row["brier"] - default["brier"]) >= COLLAPSE)
    return frame.assign(changes=changed, collapsed=pd.Series(collapsed, index=frame.index, dtype=bool))


def smallest_change(results):
    """The smallest change of recipe that turns a sound model into a collapsed one, per dataset, backbone, engine.

    Columns: dataset, backbone, engine, recipe, changes, n_changes, then before (by default) and after: auprc, brier;
    tried. Of several recipes with equally few changes the one that costs most AUPRC counts.
    """
    shown, rows = ("auprc", "brier"), []
    for key, group in recipe_means(results, "converted").groupby(MODEL, sort=False):
        base, others = (group[(group["recipe"] == "default") == k] for k in (True, False))
        row = {**dict(zip(MODEL, key)), "tried": len(others), "recipe": "", "changes": "the default recipe is missing"}
        if len(base):
            base = base.iloc[0]
            others = others.assign(n_changes=others["changes"].map(len))
            fell = others[others["collapsed"]].sort_values(["n_changes", "auprc"])
            row |= {f"{m}_before": base[m] for m in shown}
            row |= {"recipe": "none", "changes": f"none of {len(others)} recipes collapses it"}
            if len(fell):
                row |= {m: fell.iloc[0][m] for m in ("recipe", "n_changes", *shown)}
                row["changes"] = ", ".join(fell.iloc[0]["changes"])
        rows.append(row)
    pairs = [c for m in shown for c in (f"{m}_before", m)]
    return pd.DataFrame(rows, columns=[*MODEL, "recipe", "changes", "n_changes", *pairs, "tried"])


REPRODUCED = {"ece": 0.05, "brier": 0.10}  # greatest error of a change from FP32 that still reproduces Table 1's


def recipes_against_table1(results):
    """How near each recipe comes to what PTQ changes in the paper's Table 1, over all its datasets and engines at once.

    Compared are changes from FP32, mean over the backbones of the ablation, in ECE and Brier: levels differ between
    protocols. The models are simulated, as the paper's are (section 3.2). Columns: recipe, cells (datasets x engines),
    error_ece, error_brier (root mean square of ours minus the paper's), worst_ece, worst_brier, distance (of both errors,
    each in units of REPRODUCED), reproduces (all six cells, each within REPRODUCED); nearest first, recipes of fewer
    cells last.
    """

    def whole(values):
        return values.mean(skipna=False)

    frame, errors = recipe_means(results, "fake-quant"), {}
    keys = ["recipe", "dataset", "engine"]
    for metric in REPRODUCED:
        fp32 = scores(results.first_seed, metric).query("regime == 'fp32'").set_index(["dataset", "backbone"])["value"]
        before = fp32.reindex(pd.MultiIndex.from_frame(frame[["dataset", "backbone"]])).to_numpy()
        ours = (frame[metric] - before).groupby([frame[k] for k in keys], sort=False).agg(whole)
        paper = means(published(), metric, form="fake-quant").set_index(["dataset", "regime"])["value"]
        theirs = paper.sub(paper.xs("fp32", level="regime"), level="dataset").to_dict()
        errors[metric] = ours - [theirs.get((counterpart(d), f"ptq-{e}"), math.nan) for _, d, e in ours.index]
    errors, limits = pd.DataFrame(errors), pd.Series(REPRODUCED)
    rms = np.sqrt((errors**2).groupby("recipe", sort=False).agg(whole))
    worst = errors.abs().groupby("recipe", sort=False).agg(lambda e: e.max(skipna=False))
    table = errors.groupby("recipe", sort=False).size().to_frame("cells")
    table = table.join(rms.add_prefix("error_")).join(worst.add_prefix("worst_"))
    table["distance"] = np.hypot(*(rms / limits).to_numpy().T)
    table["reproduces"] = (worst <= limits).all(axis=1) & (table["cells"] == 6)
    table = table.dropna(subset=["distance"]).reset_index()
    return table.sort_values(["cells", "distance"], ascending=[False, True], ignore_index=True)


EQUAL = "as-in-training"  # the recipe that has QAT's observers and folded batch norm


def equal_recipe(results):
    """Brier score of PTQ and QAT with the same observers and batch norm, simulated: the training alone is left between them.

    Columns: dataset, backbone, engine, fp32, ptq (by default), ptq_equal (`EQUAL`), qat; one row for each model that the
    ablation holds the recipe of, missing where a regime was not run. PTQ is the ablation's own.
    """
    wide = recipe_means(results, "fake-quant").pivot(index=MODEL, columns="recipe", values="brier")
    wide = wide.reindex(columns=["default", EQUAL]).set_axis(["ptq", "ptq_equal"], axis=1).reset_index()
    frame = wide[wide["ptq_equal"].notna()].reset_index(drop=True)
    known = scores(results.first_seed, "brier", form="fake-quant").set_index(CELL)["value"]
    for name, regime in (("fp32", "fp32"), ("qat", "qat-" + frame["engine"])):
        cells = pd.MultiIndex.from_frame(frame[["dataset", "backbone"]].assign(regime=regime))
        frame[name] = known.reindex(cells).to_numpy()
    return frame[[*MODEL, "fp32", "ptq", "ptq_equal", "qat"]]


# --- remedies -------------------------------------------------------------------------------------

GAP = 0.005  # where PTQ is not worse than FP32 by as much, there is no gap to speak of closing


def remedies(results):
    """Share of the PTQ to FP32 gap that each remedy closes, and what it costs in latency: one row per cell and remedy.

    Columns: dataset, backbone, regime, remedy, then for auprc, ece, ece_top_label, brier the value and
    `<metric>_closed` (1: as good as FP32; below 0: worse than PTQ; missing where PTQ is not worse than FP32
    by `GAP` or more), and `slowdown` (p50 over untreated PTQ's).
    """
    metrics = ["auprc", "ece", "ece_top_label", "brier"]
    means = results.remedies.groupby([*CELL, "remedy"], sort=False)[[*metrics, "p50_ms"]].mean().reset_index("remedy")
    frame = means[~means["remedy"].isin(["none", "fp32"])].copy()
    before, goal = (means[means["remedy"] == kind].reindex(frame.index) for kind in ("none", "fp32"))
    for m in metrics:
        gap = goal[m] - before[m]
        lost = gap if m not in LOWER_IS_BETTER else -gap
        frame[f"{m}_closed"] = ((frame[m] - before[m]) / gap).where(lost >= GAP)
    frame["slowdown"] = frame["p50_ms"] / before["p50_ms"]
    return frame.reset_index()[[*CELL, "remedy", *(c for m in metrics for c in (m, f"{m}_closed")), "slowdown"]]


# --- decisions ------------------------------------------------------------------------------------


def silent(results):
    """What crosses a decision threshold fixed on the FP32 model: one row per cell and class, worst sensitivity first.

    Columns: dataset, backbone, regime, class, n, threshold, sensitivity_reference, sensitivity,
    sensitivity_change, specificity_change, prevalence_change, crossed_up, crossed_down.
    """
    names, counts = ("sensitivity", "specificity", "prevalence"), ["crossed_up", "crossed_down", "n"]
    rates = ["threshold", *(f"{r}{e}" for r in names for e in ("_reference", ""))]
    frame = results.silent[results.silent["form"].isin(["float", "converted"])].groupby([*CELL, "class"], sort=False)
    frame = frame.agg(dict.fromkeys(rates, "mean") | dict.fromkeys(counts, "sum")).reset_index()
    for rate in names:
        frame[f"{rate}_change"] = frame[rate] - frame[f"{rate}_reference"]
    columns = [*CELL, "class", "n", "threshold", "sensitivity_reference", "sensitivity"]
    columns += [*(f"{r}_change" for r in names), "crossed_up", "crossed_down"]
    return frame[columns].sort_values("sensitivity_change", kind="stable").reset_index(drop=True)


def flips(results):
    """Images whose predicted class changes between two regimes, summed over folds, the most first."""
    counts = ["flipped", "flipped_to_right", "flipped_to_wrong", "n"]
    frame = results.flips.groupby(["dataset", "backbone", "regime_a", "regime_b"], sort=False)[counts].sum()
    frame = frame.reset_index()
    frame["share"] = frame["flipped"] / frame["n"]
    return frame.sort_values("share", ascending=False, kind="stable").reset_index(drop=True)


# --- controls -------------------------------------------------------------------------------------


def leak(results):
    """ROC-AUC with and without test images that have a twin among the training images: one row per cell.

    Columns: dataset, backbone, regime, form, all, without_identical, without_twins, effect (all - without twins).
    """
    frame = results.leak[(results.leak["metric"] == "auroc") & results.leak["form"].isin(["float", "converted"])]
    wide = frame.pivot_table(index=[*CELL, "form"], columns="subset", values="value", sort=False)
    wide = wide.reindex(columns=["all", "without-identical", "without-twins"]).reset_index()
    wide.columns = [*CELL, "form", "all", "without_identical", "without_twins"]
    return wide.assign(effect=wide["all"] - wide["without_twins"])


def leak_effect(results):
    """What training on copies of test images does, by difference in differences: one row per dataset.

    Compared are the FP32 models of these results and those trained without the copies (`-deduplicated`), on the
    test images with a copy in their fold's training (`twins`) and on the others. The second difference removes what the two
    trainings differ by anyway, and the first what twins differ by in difficulty. Each backbone's training counts once,
    whatever is quantized from it: squared errors are averaged over backbones per image. `effect` is the rise of the Brier
    score on twins that leaving out the copies causes, `low` and `high` its 95 % interval (Welch, over groups of copies).

    Columns: dataset, backbones, twins, others (images), with_copies_twins, with_copies_others, without_copies_twins,
    without_copies_others, effect, low, high. Empty without the second result folder.
    """
    from scipy import stats

    other, rows = variant(results, "deduplicated"), []
    for dataset in results.datasets if other else ():
        found = {side: _image_brier(r, dataset) for side, r in (("with", results), ("without", other))}
        backbones = sorted(found["with"].keys() & found["without"].keys())
        if not backbones:
            continue
        before, after = (pd.concat([found[side][b] for b in backbones], axis=1).dropna().mean(axis=1) for side in found)
        tested = before.index.intersection(after.index)
        images = tested.get_level_values("image_id")
        audit = results.audit(dataset)
        group_of = audit[["image_id", "group_id"]]
        seen = results.trained_on(dataset).merge(group_of)[["fold", "group_id"]].drop_duplicates()
        copied = seen.merge(group_of).set_index(["fold", "image_id"]).index
        groups = pd.Series(connected(images, audit), index=tested)
        twin = tested.isin(copied)
        if not 1 < groups[twin].nunique() or not 1 < groups[~twin].nunique():
            continue
        rise = after[tested] - before[tested]
        parts = [rise[keep].groupby(groups[keep]).mean() for keep in (twin, ~twin)]
        result = stats.ttest_ind(*parts, equal_var=False)
        interval = result.confidence_interval()
        levels = [side[tested][keep].mean() for side in (before, after) for keep in (twin, ~twin)]
        ends = (parts[0].mean() - parts[1].mean(), interval.low, interval.high)
        rows.append((dataset, len(backbones), int(twin.sum()), int((~twin).sum()), *levels, *ends))
    sides = [f"{side}_copies_{which}" for side in ("with", "without") for which in ("twins", "others")]
    return pd.DataFrame(rows, columns=["dataset", "backbones", "twins", "others", *sides, "effect", "low", "high"])


def _image_brier(results, dataset):
    """{backbone: Brier score of each image, a Series over fold and image_id} of the FP32 models."""
    found = {}
    for backbone in results.backbones:
        frame = results.predictions(dataset, backbone, "fp32")
        if len(frame):
            probs = frame.filter(regex="^p_").to_numpy(float)
            errors = ((probs - np.eye(probs.shape[1])[frame["label"]]) ** 2).sum(axis=1)
            found[backbone] = pd.Series(errors, index=pd.MultiIndex.from_frame(frame[["fold", "image_id"]]))
    return found


VARIANTS = ("deduplicated", "inner")  # trained without copies of test images; epoch chosen on training images


def beside_variant(results, kind):
    """The same cells, trained with one thing changed (`kind` of `VARIANTS`), on the same test images: one row per cell and metric.

    Columns: dataset, backbone, regime, metric, as_in_the_paper, changed, effect (what the paper's way adds, in the
    metric's own unit). Empty where `results` has no such folder beside it.
    """
    columns, other = [*CELL, "metric", "as_in_the_paper", "changed", "effect"], variant(results, kind)
    parts = [pd.DataFrame(columns=columns)]
    for metric in ("accuracy", "auroc", "auprc", "ece") if other else ():
        ours, changed = (scores(r, metric)[[*CELL, "value"]] for r in (results, other))
        both = changed.rename(columns={"value": "changed"})
        both = both.merge(ours.rename(columns={"value": "as_in_the_paper"}), on=CELL)
        parts.append(both.assign(metric=title(metric), effect=both["as_in_the_paper"] - both["changed"]))
    return pd.concat(parts[1:] or parts, ignore_index=True)[columns]


def qat_control(results):
    """AUPRC that quantization-aware training (FBGEMM) gives and training on in FP32 does not: one row per dataset, backbone.

    Columns: dataset, backbone, fp32, continued, qat, training_on (continued - fp32), awareness (qat -
    continued).
    """
    names = {"fp32": "fp32", CONTROL: "continued", "qat-fbgemm": "qat"}
    wide = scores(results, "auprc").pivot(index=CELL[:2], columns="regime", values="value")
    grid = pd.MultiIndex.from_product([results.datasets, results.backbones], names=CELL[:2])
    frame = wide.reindex(index=grid, columns=list(names)).set_axis(list(names.values()), axis=1).reset_index()
    frame["training_on"] = frame["continued"] - frame["fp32"]
    return frame.assign(awareness=frame["qat"] - frame["continued"])


# --- other runtimes -------------------------------------------------------------------------------


def peers(results):
    """Other runtimes on the same checkpoints and images, means over folds, at every batch size.

    Columns: those of `peers.csv` with `name`, the runtime's title, and `pareto`: at its batch size none beats it in
    both p50 and Brier score.
    """
    frame = peer_means(results).sort_values("batch_size", kind="stable").reset_index(drop=True)
    frame = frame.assign(pareto=False, name=(frame["runtime"] + " " + frame["precision"]).map(title))
    for _, group in frame.groupby(["dataset", "backbone", "batch_size"]):
        p50, brier = group["p50_ms"], group["brier"]
        for k in p50.dropna().index:
            better = (p50 <= p50[k]) & (brier <= brier[k]) & ((p50 < p50[k]) | (brier < brier[k]))
            frame.loc[k, "pareto"] = not better.any()
    columns = ["dataset", "backbone", "batch_size", "name", "pareto", "p50_ms", "p99_ms", "brier", "auprc", "auroc"]
    columns += ["ece", "ece_top_label", "size_mb", "convert_seconds", "runtime", "precision", "image_size"]
    return frame[columns]


COST = [cost[0] for cost in advise.COSTS.values()]  # columns of `medq.advise.decide`: costs against FP32


def recommended(results):
    """What `medq advise` ships of each model and batch size that other runtimes were timed at, and what beats it.

    Columns: dataset, backbone, batch_size, ship, speedup (over eager FP32), `COST`, beaten_by (candidates that
    are both faster and better calibrated, though they do not pass).
    """
    columns, parts = ["dataset", "backbone", "batch_size", "ship", "speedup", *COST, "beaten_by"], []
    for n, timed in results.peers.dropna(subset=["p50_ms"]).groupby("batch_size"):
        chosen = advise.decide(results, advise.Limits(batch_size=int(n))).query("ship").dropna(subset=["speedup"])
        chosen = chosen.merge(timed[["dataset", "backbone"]].drop_duplicates())
        beaten = [", ".join(map(title, filter(None, names.split(", ")))) for names in chosen["beaten_by"]]
        parts.append(chosen.assign(batch_size=n, ship=chosen["candidate"].map(title), beaten_by=beaten)[columns])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def advice(results, limits=None):
    """`medq.advise.decide` in one row per dataset and backbone.

    Columns: dataset, backbone, ship, p50_ms, speedup (over eager FP32), `COST`, refused (candidates that are
    faster, and why they were passed over, a line each).
    """
    rows, shown = [], ["p50_ms", "speedup", *COST]
    for key, group in advise.decide(results, limits).groupby(["dataset", "backbone"], sort=False):
        chosen = group[group["ship"]]
        said, _, reason = advise.nothing(group).partition(": ")
        row = chosen.iloc[0].to_dict() if len(chosen) else {"candidate": said}
        refused = [
            f"{title(c['candidate'])}: {c['why'].replace('; ', ', and ')}"
            for c in group.to_dict("records")
            if not (c["passes"] or c["speedup"] <= row.get("speedup", math.nan) or c["why"] == advise.NOT_MEASURED)
        ]
        if reason and not len(chosen):  # it is the same for every candidate
            refused = [reason]
        rows.append([*key, title(row["candidate"]), *(row.get(c, math.nan) for c in shown), "\n".join(refused)])
    return pd.DataFrame(rows, columns=["dataset", "backbone", "ship", *shown, "refused"])


# --- cells ----------------------------------------------------------------------------------------


def worst_layers(results, dataset, backbone, regime):
    """The three layers of a cell with the lowest signal-to-quantization-noise ratio, worst first."""
    numbers = ["sqnr_db", "saturation", "weight_range_ratio", "kernel_sqnr_db", "kernel_max_steps"]
    layers = of_cell(results.layers, dataset, backbone, regime).groupby(["layer", "operator"], sort=False)
    return layers[numbers].mean().nsmallest(3, "sqnr_db").reset_index()


# --- remarks that belong under a table, whatever the results --------------------------------------

BUSY = 0.25  # cores: what a system does by itself beside a timing is less
OTHER_MODEL = 5e-4  # AUPRC: further apart than another processor moves what one model predicts
OTHER_BATCHES = 2e-3  # and than the same calibration images in other batches move it


def disturbed(results, stage):
    """A sentence where other work ran beside timings of `stage` (latency or peers); else nothing."""
    found = results.conditions
    found = found[(found["stage"] == stage) & (found["others"] >= BUSY)]
    if found.empty:
        return ""
    names, cores = ", ".join(dict.fromkeys(map(title, found["backbone"]))), f"{found['others'].max():.1f}"
    return f"Timed beside other work, which kept up to {cores} cores busy: {names}. These times may be too long."


def other_models(results, study):
    """A sentence where a study's models are not the grid's, but trained again with the same settings; else nothing.

    `study`: `peers` or `remedies` (FP32), `ablation` or `calibration_size` (PTQ under the default recipe).
    """
    frame = getattr(results, study)
    if study == "peers":
        frame = frame[(frame["runtime"] == "pytorch") & (frame["precision"] == "fp32")].assign(regime="fp32")
    elif study == "remedies":
        frame = frame[frame["remedy"] == "fp32"].assign(regime="fp32")
    elif study == "ablation":
        frame = frame[(frame["recipe"] == "default") & frame["form"].isin(["converted", ""])]
        frame = frame.assign(regime="ptq-" + frame["engine"])
    else:
        n = results.provenance.get("parameters", {}).get("calibration", {}).get("images", 256)
        frame = frame[(frame["n_calibration"] == n) & frame["subset"].isin(["0", ""])]
    grid = "metric == 'auprc' and `class` == '' and form != 'fake-quant' and recipe in ('default', '')"
    m = results.metrics.query(grid)
    keys = [*CELL, "fold"]
    pairs = frame.groupby(keys)["auprc"].mean().to_frame("study").join(m.groupby(keys)["value"].mean(), how="inner")
    apart = (pairs["study"] - pairs["value"]).abs()
    other = int((apart > (OTHER_BATCHES if study == "calibration_size" else OTHER_MODEL)).sum())
    if not other:
        return ""
    return (
        f"In {other} of {len(pairs)} cells the study used a model that was trained again with the same settings; its "
        f"AUPRC differs from the grid's by up to {100 * apart.max():.1f} points. Compare within this study only."
    )
