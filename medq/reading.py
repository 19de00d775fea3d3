"""Two or three sentences on each table and figure, computed from the numbers it shows (Markdown).

Every function takes a result folder (and the paper's numbers where it compares) and says so where something
is missing. Nothing here is typed about any result.
"""

import math

import numpy as np

from medq import regimes, tables
from medq.claims.evidence import rank_correlation
from medq.results import CELL, REGIMES, class_title, family, scores, title

MISSING = "These results do not hold what this shows: **missing**."


def _list(words, most=6):
    """'a, b and c'; longer lists end in a count."""
    words = list(words)
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _gaps(states):
    """A sentence on the states of entries that are not sound, or nothing."""
    kinds = {}
    for state in (s for s in states if isinstance(s, str) and s):
        kind = (
            "from kernels that disagree with their own simulation"
            if tables.DISAGREES in state
            else "averaged over fewer backbones"
            if state[0].isdigit()
            else state.split(":")[0]
        )
        kinds[kind] = kinds.get(kind, 0) + 1
    return f" To be read with care: {'; '.join(f'{n} {k}' for k, n in kinds.items())}." if kinds else ""


BUSY = 0.25  # cores: what a system does by itself beside a timing is less


def disturbed(results, stage):
    """A sentence where other work ran beside timings of `stage` (latency or peers); else nothing."""
    found = results.conditions
    found = found[(found["stage"] == stage) & (found["others"] >= BUSY)]
    if found.empty:
        return ""
    return (
        f" **Timed beside other work**, which kept up to {found['others'].max():.1f} cores busy: "
        f"{_list(dict.fromkeys(map(title, found['backbone'])))}; these milliseconds may be too long."
    )


def _change(results, metric, regimes, form="converted"):
    """Mean change against FP32 over the backbones that have both: a Series by (dataset, regime)."""
    wide = scores(results, metric, form=form).pivot(index=["dataset", "backbone"], columns="regime", values="value")
    known = [r for r in regimes if r in wide and "fp32" in wide]
    if not known:
        return wide.iloc[:0].sum(axis=1)
    return wide[known].sub(wide["fp32"], axis=0).groupby("dataset").mean().stack().dropna()


KINDS = {"FP16": ("fp16",), "PTQ": ("ptq-fbgemm", "ptq-qnnpack"), "QAT": ("qat-fbgemm", "qat-qnnpack")}


def table1(results, published=None, *, form="fake-quant"):
    """Reading of Table 1."""
    data = tables.table1_data(results, published, form=form)
    if data["ours"].isna().all():
        return MISSING
    rises = {kind: _change(results, "ece", KINDS[kind], form) for kind in ("PTQ", "QAT")}
    said = [
        f"{kind} changes the mean ECE by {rise.min():+.4f} to {rise.max():+.4f}"
        for kind, rise in rises.items()
        if len(rise)
    ]
    first = f"Against FP32, {' and '.join(said)}." if said else "No INT8 regime stands beside FP32 here."
    compared = data[data["low"].notna() & data["paper"].notna()]
    outside = sum(tables.is_outside(r) for r in compared.to_dict("records"))
    second = (
        f" Of {len(compared)} entries with an interval, the paper's value lies outside it in {outside}."
        if len(compared)
        else " No entry has both an interval and a value of the paper's."
    )
    return first + second + _gaps(data["state"])


def table2(results, published=None):
    """Reading of Table 2."""
    data = tables.table2_data(results, published)
    ratio = data[(data["quantity"] == "against_fbgemm") & (data["engine"] == "qnnpack") & data["ours"].notna()]
    if ratio.empty:
        return MISSING
    said = []
    for kind, name in (("cnn", "CNNs"), ("transformer", "transformers")):
        rows = ratio[ratio["family"] == kind]
        if len(rows):
            paper = rows["paper"].dropna()
            theirs = f" (the paper's {paper.min():.2f} to {paper.max():.2f})" if len(paper) else ""
            said.append(f"for {name} QNNPACK reaches {rows['ours'].median():.2f} times FBGEMM's throughput{theirs}")
    seconds = data[(data["quantity"] == "convert_seconds") & data["ours"].notna()].groupby("family")["ours"].median()
    convert = (
        f" Converting takes {seconds['cnn']:.1f} s for a CNN and {seconds['transformer']:.1f} s for a "
        "transformer (medians)."
        if {"cnn", "transformer"} <= set(seconds.index)
        else ""
    )
    text = _list(said)
    return f"{text[:1].upper()}{text[1:]}.{convert}{_gaps(data['state'])}{disturbed(results, 'latency')}"


def table3(results, published=None, *, backbone="resnet50", engine="fbgemm"):
    """Reading of Table 3."""
    data = tables.table3_data(results, published, backbone=backbone, engine=engine)
    wide = data[data["metric"] == "auprc"].pivot(index=["dataset", "class"], columns="regime", values="ours")
    if wide.dropna(how="all").empty:
        return MISSING
    said = []
    for regime in wide.columns.drop("fp32", errors="ignore"):
        loss = (wide["fp32"] - wide[regime]).dropna() if "fp32" in wide else wide[regime].iloc[:0]
        if len(loss):
            dataset, klass = loss.idxmax()
            said.append(
                f"under {title(regime)} the AUPRC of {title(backbone)} falls most for "
                f"{class_title(dataset, klass)} ({title(dataset)}), by {100 * loss.max():.1f} "
                f"points, and by {100 * loss.median():.1f} in the median class"
            )
    compared = data[data["low"].notna() & data["paper"].notna()]
    outside = sum(tables.is_outside(r) for r in compared.to_dict("records"))
    text = _list(said) or f"no INT8 regime of {title(backbone)} is here to compare"
    more = f" The paper's value lies outside our interval in {outside} of {len(compared)} entries."
    more = more if len(compared) else ""
    return f"{text[:1].upper()}{text[1:]}.{more}{_gaps(data['state'])}"


def table4(results, published=None):
    """Reading of Table 4, with the rank correlation of our speed-ups with the paper's."""
    data = tables.table4_data(results, published)
    wide = data.pivot(index="backbone", columns="quantity", values="ours")
    paper = data.pivot(index="backbone", columns="quantity", values="paper")
    wide, paper = (w.reindex(columns=list(tables.TABLE4)) for w in (wide, paper))
    ups = wide["speedup"].dropna().astype(float)
    if ups.empty:
        return MISSING
    first = (
        f"INT8 is {ups.min():.2f} ({title(ups.idxmin())}) to {ups.max():.2f} ({title(ups.idxmax())}) "
        "times as fast as eager FP32."
    )
    best = wide["best_speedup"].dropna().astype(float)
    second = (
        f" Against the best FP32 baseline it is {best.min():.2f} to {best.max():.2f} times as fast, "
        f"and slower than it on {int((best < 1).sum())} of {len(best)} backbones."
        if len(best)
        else ""
    )
    rank = rank_correlation(ups, paper["speedup"].astype(float), "")
    third = "" if math.isnan(rank.value) else f" Rank correlation of the speed-ups with the paper's: {rank.value:+.2f}."
    tails = wide["int8_tail"].dropna().astype(float)
    fourth = f" The INT8 tail, p99 over p50, is {tails.min():.2f} to {tails.max():.2f}." if len(tails) else ""
    return (
        first
        + second
        + third
        + fourth
        + _gaps(data.drop_duplicates("backbone")["state"])
        + disturbed(results, "latency")
    )


def _regimes(results, metric, published):
    data = tables.regimes_data(results, metric, published)
    mean = data[data["backbone"] == "mean"]
    if mean.empty:
        return MISSING
    changes = {kind: 100 * _change(results, metric, regimes) for kind, regimes in KINDS.items()}
    said = [f"{kind} by {c.min():+.1f} to {c.max():+.1f}" for kind, c in changes.items() if len(c)]
    cells = data[(data["backbone"] != "mean") & data["regime"].isin(regimes.of("ptq"))]
    worst = cells.loc[cells["value"].idxmin()] if len(cells) else None
    second = (
        f" The lowest cell under PTQ is {title(worst['backbone'])} on {title(worst['dataset'])} "
        f"({title(worst['regime'])}) with {worst['value']:.3f}."
        if worst is not None
        else ""
    )
    first = (
        f"Against FP32, the mean {title(metric)} changes, in points over the datasets, under {_list(said)}."
        if said
        else "No regime stands beside FP32 here."
    )
    return first + second + _gaps(mean["state"])


def figure1(results, published=None):
    """Reading of Figure 1."""
    return _regimes(results, "auroc", published)


def figure5(results, published=None):
    """Reading of Figure 5."""
    return _regimes(results, "auprc", published)


def figure2(results, published=None):
    """Reading of Figure 2."""
    data = tables.tradeoff_data(results).dropna(subset=["value", "p50_ms"])
    wide = data.pivot(index=["dataset", "backbone"], columns="regime", values=["value", "p50_ms"])
    if "qat-fbgemm" not in data["regime"].values or wide.dropna().empty:
        return MISSING
    wide = wide.dropna()
    change = 100 * (wide["value"]["qat-fbgemm"] - wide["value"]["fp32"])
    faster = wide["p50_ms"]["fp32"] / wide["p50_ms"]["qat-fbgemm"]
    both = ((change >= -1) & (faster > 1)).sum()
    dataset, backbone = change.idxmin()
    return (
        f"From FP32 to INT8-QAT latency falls by a factor of {faster.min():.2f} to {faster.max():.2f} "
        f"and AUPRC changes by {change.min():+.1f} to {change.max():+.1f} points, the least favourable "
        f"being {title(backbone)} on {title(dataset)}. {both} of {len(wide)} models become faster "
        "without losing more than a point."
    ) + disturbed(results, "latency")


def figure3(results, published=None):
    """Reading of Figure 3."""
    data = tables.forest_data(results)
    pooled = data[data["backbone"] == "all"]
    if pooled.empty:
        return MISSING
    said = []
    for pair, rows in pooled.groupby("pair", sort=False):
        values = _list(f"{title(r['dataset'])} {r['delta_pp']:+.2f}" for r in rows.to_dict("records"))
        said.append(f"{pair} {values} (p < 0.05 in {int((rows['p_value'] < 0.05).sum())} of {len(rows)})")
    cells = data[data["backbone"] != "all"]
    kept = int((cells["p_holm"] < 0.05).sum())
    return (
        f"Differences in AUPRC over all backbones, in points: {'; '.join(said)}. Of {len(cells)} "
        f"comparisons of single backbones {int((cells['p_value'] < 0.05).sum())} have p < 0.05, and "
        f"{kept} after Holm's correction."
    )


def figure4(results, published=None):
    """Reading of Figure 4."""
    data = tables.calibration_data(results)
    if data.empty:
        return MISSING
    data = data.sort_values("n_calibration")
    ends = data.groupby(["dataset", "backbone"])["mean"].agg(["first", "last"])
    gain = 100 * (ends["last"] - ends["first"])
    late = data[data["n_calibration"] >= 256].groupby(["dataset", "backbone"])["mean"].agg(["first", "last"])
    after = 100 * (late["last"] - late["first"])
    dynamic = [title(b) for b in results.backbones if family(b) == "transformer"]
    note = f" {_list(dynamic)} use no calibration images, so there is nothing to sweep." if dynamic else ""
    tail = f", and from 256 images on by {after.min():+.1f} to {after.max():+.1f}" if len(after) else ""
    return (
        f"From {data['n_calibration'].min():.0f} to {data['n_calibration'].max():.0f} calibration images "
        f"AUPRC changes by {gain.min():+.1f} to {gain.max():+.1f} points{tail}; the bands are "
        f"{100 * data['std'].median():.1f} points in the median and {100 * data['std'].max():.1f} at "
        f"most.{note}{other_models(results, 'calibration_size')}"
    )


def figure6(results, published=None):
    """Reading of Figure 6."""
    ups = tables.speedups(results)
    ups = ups[ups["baseline"] == "eager"].set_index("backbone")["value"].dropna()
    if ups.empty:
        return MISSING
    slower = [title(b) for b in ups.index[ups < 1]]
    kinds = ups.groupby([family(b) for b in ups.index]).median()
    said = [f"{kinds[k]:.2f} for {n}" for k, n in (("cnn", "CNNs"), ("transformer", "transformers")) if k in kinds]
    return (
        f"INT8 shortens the median latency on {int((ups > 1).sum())} of {len(ups)} backbones"
        f"{', but not on ' + _list(slower) if slower else ''}; the median speed-up is {_list(said)}."
    ) + disturbed(results, "latency")


def figure7(results, published=None, *, backbone="resnet50"):
    """Reading of Figure 7."""
    data = tables.reliability_data(results, backbone=backbone)
    if data.empty:
        return MISSING
    said = []
    for dataset, part in data.groupby("dataset", sort=False):
        errors = []
        for regime, bins in part.groupby("regime", sort=False):
            share = bins["count"] / bins["count"].sum()
            gap = bins["confidence"] - bins["frequency"]
            side = "over" if (share * gap).sum() > 0 else "under"
            errors.append(f"{title(regime)} {(share * gap.abs()).sum():.3f} ({side}confident)")
        said.append(f"{title(dataset)}: {_list(errors)}")
    return f"Top-label calibration error of {title(backbone)}: {'; '.join(said)}."


def engine_check(results, published=None):
    """Reading of the check of converted models against their simulation."""
    data = tables.engine_check(results)
    known = data[data["gap"].notna()]
    if known.empty:
        return MISSING
    wrong = data[data["agrees"] == "NO"]
    worst = known.iloc[0]
    names = _list(dict.fromkeys(f"{title(r.backbone)} under {title(r.regime)}" for r in wrong.itertuples()))
    first = (
        f"{len(wrong)} of {len(known)} INT8 cells were computed by kernels that disagree with the "
        f"model's own simulation{': ' + names if names else ''}."
    )
    second = (
        f" The greatest gap in Brier is {worst['gap']:+.3f}: {title(worst['backbone'])}, "
        f"{title(worst['regime'])}, {title(worst['dataset'])}."
    )
    mended = known[known["mended"].notna()]
    third = "".join(
        f" With the operator mended, the Brier score of {title(r.backbone)} on "
        f"{title(r.dataset)} ({title(r.regime)}) is {r.mended:.3f} instead of {r.converted:.3f}; "
        f"FP32 has {r.fp32:.3f}."
        for r in mended.head(1).itertuples()
    )
    return first + second + third


def collapse(results, published=None):
    """Reading of the recipe ablation: which change makes PTQ collapse, and what comes near the paper."""
    data = tables.ablation(results)
    if data.empty:
        return MISSING
    fell = data[data["n_changes"].notna()]
    said = [
        f"{title(b)}: {_list(dict.fromkeys(rows['changes']), 3)}" for b, rows in fell.groupby("backbone", sort=False)
    ]
    first = (
        "A single change of recipe, or the smallest set of them, collapses "
        f"{fell['backbone'].nunique()} of {data['backbone'].nunique()} backbones "
        f"({'; '.join(said)})."
        if len(fell)
        else f"None of the recipes tried collapses any of {data['backbone'].nunique()} backbones."
    )
    first = " ".join([first, *_given_back(results)]) + other_models(results, "ablation")
    near = tables.recipes_against_table1(results, published)
    if near.empty:
        return first
    best, n = near.iloc[0], int(near["reproduces"].sum())
    verdict = f"{n} of {len(near)} recipes reproduce" if n else f"None of {len(near)} recipes reproduces"
    return (
        f"{first} {verdict} the changes from FP32 that PTQ shows in Table 1 (within 0.05 of ECE and 0.10 of Brier in each of "
        f"the six pairs of dataset and engine). Nearest over {best['cells']} of them comes `{best['recipe']}`, "
        f"{best['error_ece']:.3f} off in ECE and {best['error_brier']:.3f} in Brier (root mean square)."
    )


def _given_back(results):
    """A sentence for each model that collapses under the default recipe already, with the best recipe tried."""
    fp32 = scores(results, "auprc")
    fp32 = fp32[fp32["regime"] == "fp32"].set_index(["dataset", "backbone"])["value"]
    for (dataset, backbone, engine), group in tables.recipe_means(results, "converted").groupby(
        ["dataset", "backbone", "engine"], sort=False
    ):
        default, best = group[group["recipe"] == "default"], group.loc[group["auprc"].idxmax()]
        lost = fp32.get((dataset, backbone), math.nan) - (default["auprc"].item() if len(default) else math.nan)
        if lost >= tables.COLLAPSE and best["recipe"] != "default":
            yield (
                f"{title(backbone)} under {engine} on {title(dataset)} loses {100 * lost:.1f} points of AUPRC by the default "
                f"recipe already; `{best['recipe']}` ({_list(best['changes'], 4)}), the best one tried, brings it from "
                f"{default['auprc'].item():.3f} to {best['auprc']:.3f}."
            )


def remedies(results, published=None):
    """Reading of the remedies without retraining."""
    data = tables.remedies(results)
    if data.empty:
        return MISSING
    median = data.groupby("remedy", sort=False)[["ece_closed", "auprc_closed", "slowdown"]].median()
    if median["ece_closed"].dropna().empty:
        return f"PTQ is worse than FP32 by less than {tables.GAP} in ECE in every cell here: there is no gap to close."
    best = median["ece_closed"].idxmax()
    row = median.loc[best]
    auprc = f" and {100 * row['auprc_closed']:.0f} % of that in AUPRC"
    auprc = "" if math.isnan(row["auprc_closed"]) else auprc
    cost = "" if math.isnan(row["slowdown"]) else f", at {row['slowdown']:.2f} times the latency"
    worse = [r for r, v in median["ece_closed"].items() if v < 0]
    more = f" Worse than doing nothing, in the median: {_list(worse)}." if worse else ""
    cells = data[data["ece_closed"].notna()].groupby(CELL, sort=False).ngroups
    where = (
        f"In the median of the {cells} cells with a gap in ECE," if cells > 1 else "In the one cell with a gap in ECE,"
    )
    return (
        f"{where} `{best}` closes most of it, {100 * row['ece_closed']:.0f} "
        f"%{auprc}{cost}.{more}{other_models(results, 'remedies')}"
    )


def silent(results, published=None):
    """Reading of the decisions that change at a threshold fixed on the FP32 model."""
    data = tables.silent(results)
    data = data[data["sensitivity_change"].notna()]
    if data.empty:
        return MISSING
    worst = data.iloc[0]
    said = [
        f"{title(r)} {100 * (rows['sensitivity_change'] < -0.05).mean():.0f} %"
        for r, rows in sorted(data.groupby("regime"), key=lambda g: list(REGIMES).index(g[0]))
    ]
    return (
        f"The greatest loss of sensitivity is {-100 * worst['sensitivity_change']:.1f} points: "
        f"{class_title(worst['dataset'], worst['class'])} ({title(worst['dataset'])}), "
        f"{title(worst['backbone'])}, {title(worst['regime'])}. Share of classes that lose more than "
        f"five points: {_list(said)}."
    )


def leak(results, published=None):
    """Reading of what images on both sides of the split do: FP32 models alone, one training of each backbone."""
    data = tables.leak(results)
    data = data[data["effect"].notna() & (data["regime"] == "fp32")]
    if data.empty:
        return MISSING
    said = [
        f"{title(d)} {100 * rows['effect'].min():+.2f} to {100 * rows['effect'].max():+.2f}"
        for d, rows in data.groupby("dataset", sort=False)
    ]
    effects = [
        f" On {title(r['dataset'])} the Brier score of these images rises by {r['effect']:.3f} ({r['low']:.3f} to "
        f"{r['high']:.3f}) if the copies are left out of training, beyond the change on the other images: that is the leak."
        for r in tables.leak_effect(results).to_dict("records")
    ]
    return (
        "With the test images that have a near twin in training, ROC-AUC is this many points higher than without "
        f"them: {_list(said)}. That alone is not the leak's doing: the images left out may be easier."
        + "".join(effects)
    )


def beside_variant(results, kind):
    """Reading of the cells that were trained again with one thing changed (`tables.VARIANTS`)."""
    data = tables.beside_variant(results, kind)
    if data.empty:
        return "No cell of these results was made again that way: **missing**."
    said = [
        f"{name} by {e.mean():+.4f}" + (f" ({e.min():+.4f} to {e.max():+.4f})" if len(e) > 1 else "")
        for name, e in data.groupby("metric", sort=False)["effect"]
    ]
    cells = len(data.drop_duplicates(CELL))
    return (
        f"In {cells} {'cell' if cells == 1 else 'cells'}, on the same test images, the paper's way changes "
        f"{_list(said)}, against models {tables.VARIANTS[kind]}. The scatter between two training runs is "
        "in these numbers."
    )


def qat_control(results, published=None):
    """Reading of QAT against training on in FP32."""
    data = tables.qat_control(results).dropna(subset=["fp32", "continued", "qat"])
    if data.empty:
        return MISSING
    on, aware = 100 * data["training_on"], 100 * data["awareness"]
    return (
        f"Training on in FP32 changes AUPRC by {on.mean():+.2f} points in the mean of {len(data)} cells "
        f"({on.min():+.2f} to {on.max():+.2f}), and being quantization-aware adds {aware.mean():+.2f} "
        f"({aware.min():+.2f} to {aware.max():+.2f}). QAT is below its control in "
        f"{int((aware < 0).sum())} cells."
    )


def peers(results, published=None):
    """Reading of the table of other runtimes."""
    data = tables.peers(results)
    if data.empty:
        return "No other runtime was measured: **missing** (see the optional installation of peers)."
    said = []
    for size, rows in data.dropna(subset=["p50_ms"]).groupby("batch_size"):
        first = rows.loc[rows.groupby(["dataset", "backbone"])["p50_ms"].idxmin(), "name"].value_counts()
        front = rows.loc[rows["pareto"], "name"].value_counts()
        said.append(
            f"At batch {size:g} the fastest row of {first.sum()} models is most often {first.index[0]} "
            f"({first.iloc[0]}); on the front of latency and ECE stand "
            f"{_list(f'{name} ({k} times)' for name, k in front.items())}."
        )
    chosen = tables.recommended(results)
    beaten = chosen[chosen["beaten_by"] != ""]
    names = _list(
        f"{title(r['backbone'])} on {title(r['dataset'])} at batch {r['batch_size']:g}"
        for r in beaten.to_dict("records")
    )
    last = (
        f" Of {len(chosen)} recommendations none is beaten in both speed and calibration."
        if beaten.empty
        else f" Of {len(chosen)} recommendations {len(beaten)} {'is' if len(beaten) == 1 else 'are'} beaten in both speed and calibration by something that "
        f"does not pass: {names}."
    )
    return " ".join(said) + last + _not_measured(data) + other_models(results, "peers") + disturbed(results, "peers")


def _not_measured(data):
    """A sentence for each set of runtimes that some model, or one of its batch sizes, lacks."""
    every, gaps = list(dict.fromkeys(data["name"])), {}
    for (dataset, backbone, size), rows in data.groupby(["dataset", "backbone", "batch_size"], sort=False):
        lacking = tuple(name for name in every if name not in set(rows["name"]))
        gaps.setdefault(lacking, {}).setdefault(f"{title(backbone)} on {title(dataset)}", []).append(size)
    sizes = data["batch_size"].nunique()
    said = []
    for lacking, models in gaps.items():
        where = [name if len(found) == sizes else f"{name} at batch {found[0]:g}" for name, found in models.items()]
        said += [f" Not measured for {_list(where)}: {_list(lacking)}."] if lacking else []
    return "".join(said)


OTHER_MODEL = 5e-4  # AUPRC: further apart than another processor moves what one model predicts
OTHER_BATCHES = 2e-3  # and than the same calibration images in other batches move it


def other_models(results, study):
    """A sentence where a study's models are not the grid's: trained again, with the same settings; else nothing.

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
    m = results.metrics
    m = m[
        (m["metric"] == "auprc")
        & (m["class"] == "")
        & m["form"].isin(["float", "converted"])
        & m["recipe"].isin(["default", ""])
    ]
    keys = [*CELL, "fold"]
    pairs = frame.groupby(keys)["auprc"].mean().to_frame("study").join(m.groupby(keys)["value"].mean(), how="inner")
    apart = (pairs["study"] - pairs["value"]).abs()
    other = int((apart > (OTHER_BATCHES if study == "calibration_size" else OTHER_MODEL)).sum())
    return (
        ""
        if not other
        else (
            f" The models of {other} of the {len(pairs)} cells here are not the grid's: trained again with the same settings (another "
            f"processor gives other weights), their AUPRC differs from the grid's by up to {100 * apart.max():.1f} points, so compare "
            "within this page."
        )
    )


def coverage(results, published=None):
    """Reading of the map of cells."""
    status = results.status
    if status.empty:
        return MISSING
    counts = status["status"].value_counts()
    folds = status[status["folds"] > 0]
    partial = int(((folds["folds_done"] < folds["folds"]) & (folds["status"] == "done")).sum())
    reasons = dict.fromkeys(r for r in status.loc[status["status"] == "unsupported", "reason"] if r)
    said = [f"{counts[s]} {s}" for s in ("done", "unsupported", "failed", "missing") if s in counts]
    return (
        f"Of {len(status)} cells, {_list(said)}."
        + (f" {partial} of the done ones lack a fold." if partial else "")
        + (f" Reasons for what is unsupported: {_list(reasons, 3)}." if reasons else "")
    )


def summary(results, published=None):
    """Reading of the summary figure: models that surely lose over a point of AUPRC, or gain 0.01 of Brier."""
    b = results.bootstrap[(results.bootstrap["method_a"] == "fp32") & (results.bootstrap["backbone"] != "all")]
    worse = b.assign(surely=np.where(b["metric"] == "auprc", b["low_pp"] > 1, b["high_pp"] < -1))
    worse = worse[worse["metric"].isin(["auprc", "brier"])]
    said, apart = [], []
    for regime in (r for r in results.regimes if r != "fp32"):
        rows = worse[worse["method_b"] == regime]
        row = regimes.REGIMES.get(regime)
        if row and not row.start and not (rows["trainings"] > 1).all():
            apart.append(title(regime))  # a training of its own: the difference may be the seed's
            continue
        hurt = rows.groupby(["dataset", "backbone"])["surely"].any()
        said += [f"{title(regime)} {int(hurt.sum())} of {len(hurt)}"] if len(hurt) else []
    if not said:
        return MISSING
    noise = f" {_list(apart)} was trained apart and once: what it differs by may be the seed's." if apart else ""
    return (
        "Models that lose more than a point of AUPRC, or gain more than 0.01 of Brier, against FP32, with the whole 95 % "
        f"interval: {_list(said, 9)}.{noise}"
    )


def found(results, published=None):
    """Reading of the claims: how many stand, which fall, and which the paper's own tables speak against."""
    from medq import claims
    from medq.results import published as paper_results

    published = published or paper_results()
    verdicts = claims.evaluate(results, published)
    count = claims.summary(verdicts)
    fell = verdicts.loc[verdicts["verdict"] == claims.CONTRADICTED, "claim"]
    own = claims.evaluate(published, published)
    against = own.loc[own["verdict"] == claims.CONTRADICTED, "claim"]
    return (
        f"Of the paper's {len(verdicts)} empirical claims, these results support "
        f"{count[claims.SUPPORTED]}, contradict {count[claims.CONTRADICTED]} and leave "
        f"{count[claims.OPEN]} open; {count[claims.OUTSIDE]} are {claims.OUTSIDE}."
        + (f" Contradicted: {_list((f'*{c}*' for c in fell), 12)}." if len(fell) else "")
        + (
            f" The paper's own tables speak against {len(against)} of its claims: {_list(f'*{c}*' for c in against)}."
            if len(against)
            else ""
        )
    )


READINGS = {
    f.__name__: f
    for f in (
        summary,
        found,
        table1,
        table2,
        table3,
        table4,
        figure1,
        figure2,
        figure3,
        figure4,
        figure5,
        figure6,
        figure7,
        engine_check,
        collapse,
        remedies,
        silent,
        leak,
        qat_control,
        peers,
        coverage,
    )
}
