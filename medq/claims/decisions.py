"""The tests that decide claims: functions of (results, **arguments), which params/claims.yaml gives them.

Each returns entries, which that file's limits judge, or a Finding of its own. Margins are in the metric's own unit.
"""

import itertools
import math

import numpy as np
import pandas as pd

from medq import tables
from medq.advise import incompetent
from medq.claims.evidence import CONTRADICTED, MOST, NAN, OPEN, SUPPORTED, Entry, Finding, around, backbones, both
from medq.claims.evidence import contrast, entry, exists, exponential, harm, harms, is_published, judge, mean
from medq.claims.evidence import minus, newcombe, ours, rank_correlation, regimes, spread_ratio, student
from medq.claims.evidence import welch, welch_half
from medq.regimes import INT8, PAPER_ENGINES
from medq.results import LOWER_IS_BETTER, PEER_REFERENCE, class_title, counterpart, cpu_times, family
from medq.results import means, published, scores, title
from medq.changes import paired

SKIN, EASY = ("SkinCancer",), ("BrainMRI", "ChestXray")


def undecidable(results, *, why):
    """No result can decide the claim."""
    return Finding(OPEN, why)


# --- regimes against a reference --------------------------------------------------------------------


def change(results, *, kind, margins, bound, reference="fp32", datasets=(), form="converted", each=False, floor=True):
    """How regimes of a kind differ from a reference: `within` ± margin, worse by `more`, or worse by `at_most`.

    `reference` is a regime, `simulation` (each INT8 model's own fake-quantized form) or an engine (the same method under
    it). Pooled over backbones, or for `each` backbone, or those named, without incompetent ones where there is a `floor`. A
    contradiction between two separate trainings needs several of each: with one, the interval covers other images and not
    another training.
    """
    findings = []
    for metric, margin in margins.items():
        found = []
        for dataset in ours(results, datasets):
            for b in regimes(results, kind):
                a = {"simulation": f"{b}.fake-quant"}.get(reference, reference)
                if reference in PAPER_ENGINES:
                    a = f"{b.split('-')[0]}-{reference}"
                models = backbones(results) if each is True else each or ["all"]
                for backbone in [] if a == b else models:
                    if backbone == "all" or not floor or not incompetent(results, dataset, backbone):
                        found.append(harm(results, metric, a, b, dataset, backbone=backbone, form=form))
        if is_published(results) and all(math.isnan(e.value) for e in found):
            continue  # the paper reports other metrics
        if each is True:
            found = [e for e in found if not math.isnan(e.value)]
        low, high = {"within": (-margin, margin), "more": (margin, math.inf), "at_most": (-math.inf, margin)}[bound]
        unit = "signed" if metric in LOWER_IS_BETTER else "points"
        findings.append(judge(found, low=low, high=high, unit=unit, parts=len(margins)))
    result = both(*findings)
    if result.verdict == CONTRADICTED and kind == "fp16" and not is_published(results):
        rows = [paired(results, m, "fp32", "fp16", d) for m in margins for d in results.datasets]
        if any(r is not None and not r["trainings"] > 1 for r in rows):
            note = " FP32 and FP16 were trained once each: the difference may be that of two trainings."
            return result._replace(verdict=OPEN, evidence=result.evidence + note)
    return result


def level(results, *, regimes, datasets, above=()):
    """Mean ROC-AUC over backbones on each dataset; where `above` names datasets, how far they lie above those."""

    def of(names):
        for dataset in ours(results, names):
            for regime in regimes:
                m = means(results, "auroc")
                rows = m[(m["dataset"] == dataset) & (m["regime"] == regime)][["value", "low", "high"]]
                label = f"{title(dataset)}, {title(regime)}"
                yield entry(results, label, *rows.iloc[0]) if len(rows) else Entry(label, NAN)

    found = list(of(datasets))
    return [minus(h, e, f"{h.label} above {e.label}") for e in found for h in of(above)] if above else found


def skin_varies(results):
    """How many times further backbones lie apart in FP32 ROC-AUC on SkinCancer than on each of the others."""
    pairs = [(skin, other) for skin in ours(results, SKIN) for other in ours(results, EASY)]
    return [spread_ratio(results, f"{title(s)} over {title(o)}", (s, "fp32"), (o, "fp32")) for s, o in pairs]


def ptq_spreads(results):
    """How many times further backbones lie apart in ROC-AUC under PTQ than under FP32."""
    pairs = [(d, r) for d in results.datasets for r in regimes(results, "ptq")]
    return [spread_ratio(results, f"{title(d)}, {title(r)}", (d, r), (d, "fp32")) for d, r in pairs]


def depends_on_backbone(results, *, margin):
    """In each dataset and engine two backbones' losses of ROC-AUC under PTQ differ by more than `margin`."""
    cells, findings = harms(results, "auroc", "ptq"), []
    places = list(itertools.product(results.datasets, regimes(results, "ptq")))
    for place in places:
        own = [e for (d, _, r), e in cells.items() if (d, r) == place]
        gaps = [minus(a, b, f"{a.label} beyond {b.label.split(', ')[1]}") for a in own for b in own if a is not b]
        findings.append(exists(gaps, above=margin, parts=len(places)))
    return both(*findings)


def interacts(results):
    """How far losses of ROC-AUC under PTQ lie from what dataset and backbone alone explain."""
    found = []
    for regime in regimes(results, "ptq"):
        cells = {key[:2]: e for key, e in harms(results, "auroc", regime).items()}
        loss = pd.Series({key: e.value for key, e in cells.items()}, dtype=float)
        if loss.empty or loss.index.get_level_values(0).nunique() < 2:
            continue
        table = loss.unstack().dropna(axis=1)  # effects are additive means over a complete grid
        half = pd.Series({key: (e.high - e.low) / 2 for key, e in cells.items()}).unstack()[table.columns]
        own = [np.eye(n) - 1 / n for n in table.shape]  # what a mean leaves of each row, and of each column
        rest = np.abs(own[0] @ table.to_numpy() @ own[1])
        reach = np.sqrt(own[0] ** 2 @ half.to_numpy() ** 2 @ own[1] ** 2)
        for (i, j), value in np.ndenumerate(rest):
            e = cells[table.index[i], table.columns[j]]
            found.append(around(e.label, value, reach[i, j], e.df))
    return found


def residual_on_skin(results):
    """ROC-AUC that QAT loses against FP32 on SkinCancer beyond what it loses on each of the others."""
    found = []
    for regime in regimes(results, "qat"):
        skin, rest = ([harm(results, "auroc", "fp32", regime, d) for d in ours(results, n)] for n in (SKIN, EASY))
        found += [minus(s, r, f"{s.label} beyond {r.label.split(',')[0]}") for s in skin for r in rest]
    return found


# --- calibration ----------------------------------------------------------------------------------


def recovers(results, *, margins, datasets=()):
    """What QAT leaves is at most half of what PTQ loses, wherever PTQ surely loses more than the margin."""
    found, spared = [], []
    for metric, margin in margins.items():
        for dataset in ours(results, datasets):
            for e in PAPER_ENGINES:
                pairs = ("fp32", f"ptq-{e}"), ("fp32", f"qat-{e}"), (f"ptq-{e}", f"qat-{e}")
                lost, left, step = (harm(results, metric, *pair, dataset, form="fake-quant") for pair in pairs)
                label = f"{title(dataset)}, {e.upper()}, {title(metric)}: left beyond 50% of the loss"
                if lost.low > margin:
                    found.append(contrast(lost, left, step, 0.5, label))
                elif not math.isnan(lost.value):
                    spared.append(label.split(":")[0])
    if not found and spared:
        return Finding(OPEN, f"PTQ loses nothing that could be recovered: {'; '.join(spared)}.")
    return judge(found, high=0, unit="signed")


def best_regimes(results):
    """In each row of Table 1 the paper's best regime by Brier is better than every other (ties leave it open)."""
    findings = []
    theirs = means(published(), "brier", form="fake-quant")
    for dataset in results.datasets:
        paper = theirs[theirs["dataset"] == counterpart(dataset)].set_index("regime")["value"]
        if len(paper):
            best = paper.idxmin()
            found = [harm(results, "brier", best, r, dataset, form="fake-quant") for r in paper.index if r != best]
            found = [e._replace(label=f"{e.label} against {title(best)}") for e in found]
            findings.append(judge(found, low=0, unit="signed", parts=len(results.datasets)))
    return both(*findings)


def simulation_explains(results, *, share, margin):
    """At least `share` of the Brier score that deployed PTQ loses is lost by its simulation already.

    Each competent model whose kernels compute what its simulation says, and that surely loses more than `margin`: a
    kernel's defect is no effect of precision.
    """
    found, spared = [], 0
    for (dataset, backbone, regime), total in harms(results, "brier", "ptq").items():
        if results.state(dataset, backbone, regime)["engine_agrees"] is False:
            continue
        if not total.low > margin:
            spared += 1
            continue
        simulated = f"{regime}.fake-quant"
        part, step = (harm(results, "brier", a, simulated, dataset, backbone=backbone) for a in ("fp32", regime))
        found.append(contrast(total, part, step, share, f"{total.label}: simulated beyond {share:.0%} of the loss"))
    if not found and spared:
        return Finding(OPEN, f"In none of {spared} models does PTQ lose enough to need explaining.")
    return judge(found, low=0, unit="signed")


# --- classes and backbones ------------------------------------------------------------------------


def _class_losses(results, dataset, backbone, regime):
    """{class: (Entry of the loss of AUPRC, FP32's)}: cell intervals combined as if independent, hence too wide."""
    found = {}
    for klass in results.classes(dataset):
        s = scores(results, "auprc", klass=klass).query("dataset == @dataset and backbone == @backbone")
        s = s.set_index("regime")[["value", "low", "high"]]
        own = regime if regime in s.index else "ptq"  # Table 3 names no engine
        if {"fp32", own} <= set(s.index):
            before, after = (entry(results, klass, *s.loc[r]) for r in ("fp32", own))
            found[klass] = minus(before, after, class_title(dataset, klass)), before.value
    return found


def rare_classes(results, *, named):
    """On SkinCancer the classes the paper calls rare lose more AUPRC of ResNet-50 under PTQ than the others."""
    drops = {}
    for dataset in ours(results, SKIN):
        drops |= _class_losses(results, dataset, "resnet50", "ptq-fbgemm")
    rare, rest = ([v for k, v in drops.items() if (k in named) == keep] for keep in (True, False))
    if len(rare) < len(named) or not rest:
        return []
    label = "AUPRC lost by AKIEC, DF and MEL beyond the others"
    found = judge([minus(*(mean([e for e, _ in group]) for group in (rare, rest)), label)], low=0)
    relative = [100 * np.mean([e.value / level for e, level in group]) for group in (rare, rest)]
    more = f" As a share of what they had: {relative[0]:.0f} % against {relative[1]:.0f} %."
    return found._replace(evidence=found.evidence + more)


def hidden(results, *, average):
    """Losses of AUPRC of each class of an INT8 model that surely loses at most `average` of macro ROC-AUC."""
    found = []
    for (dataset, backbone, regime), macro in harms(results, "auroc", "int8").items():
        if macro.high <= average:
            losses = _class_losses(results, dataset, backbone, regime).values()
            found += [e._replace(label=f"{macro.label}, {e.label}") for e, _ in losses]
    return found


def silent(results, *, accuracy, fewest):
    """How much sensitivity a class loses at FP32's threshold under an INT8 model that keeps its accuracy.

    Competent models alone, classes of at least `fewest` images; QAT against FP32 trained for as long
    (`fp32-continued`); Newcombe's interval.
    """
    rows = tables.silent(results).set_index(["dataset", "backbone", "regime", "class"])
    found, members = [], {}
    for (dataset, backbone, regime, klass), row in rows.iterrows():
        if regime not in INT8 or incompetent(results, dataset, backbone):
            continue
        reference = "fp32-continued" if regime.startswith("qat") else "fp32"
        kept = harm(results, "accuracy", reference, regime, dataset, backbone=backbone)
        before = row["sensitivity_reference"]
        if reference != "fp32":
            before = rows["sensitivity"].get((dataset, backbone, reference, klass), NAN)
        if (dataset, backbone) not in members:
            members[dataset, backbone] = results.predictions(dataset, backbone, "fp32")["label"].value_counts()
        classes = results.classes(dataset)
        n = members[dataset, backbone].get(classes.index(klass), 0) if klass in classes else 0
        if n >= fewest and not math.isnan(before) and kept.high <= accuracy:
            label = f"{kept.label}, {class_title(dataset, klass)}"
            found.append(Entry(label, *newcombe(before * n, row["sensitivity"] * n, n)))
    return found


def _ptq_loss(results):
    """{backbone: Entry of its mean loss of ROC-AUC under PTQ over datasets and engines}, of competent models."""
    cells = harms(results, "auroc", "ptq")
    found = {}
    for b in backbones(results):
        engines = [[e for key, e in cells.items() if key[:2] == (d, b)] for d in results.datasets]
        if parts := [mean(entries, same_images=True) for entries in engines if entries]:
            found[b] = mean(parts, title(b))
    return found


def extreme(results, *, of, named, sign=1):
    """How far the named backbones lie beyond every other in `loss` (of ROC-AUC under PTQ) or `speedup`.

    `sign` 1: they are to be the greatest; -1: the smallest.
    """
    values = {"loss": _ptq_loss, "speedup": _speedups}[of](results)
    if len(values) < MOST or not set(named) <= set(values):
        return []
    pairs = [(values[n], values[o]) for n in named for o in values if o not in named]
    return [minus(*(a, b)[::sign], f"{a.label} beyond {b.label}") for a, b in pairs]


def robust(results, *, backbone, among):
    """A backbone is among the `among` that lose least ROC-AUC under PTQ."""
    loss = _ptq_loss(results)
    if len(loss) < MOST or backbone not in loss:
        return []
    gaps = [minus(e, loss[backbone], f"{title(b)} loses more by") for b, e in loss.items() if b != backbone]
    # Bonferroni's level that suffices where all but `among` of the gaps (or `among` of them) must be sure at once
    worse, better = sum(g.at(among).low > 0 for g in gaps), sum(g.at(len(gaps) - among + 1).high < 0 for g in gaps)
    verdict = SUPPORTED if worse >= len(loss) - among else CONTRADICTED if better >= among else OPEN
    own = loss[backbone]
    text = f"{own.label} loses {100 * own.value:+.1f} points; {worse} of {len(gaps)} others surely lose more, {better} surely less."
    return Finding(verdict, text, *own[1:4])


# --- latency --------------------------------------------------------------------------------------


def _speedups(results, regime="ptq-fbgemm"):
    """{backbone: Entry of the speed-up over eager FP32 at batch 1}."""
    table = tables.speedups(results, regime=regime)
    table = table[table["baseline"] == "eager"].set_index("backbone")
    if is_published(results):  # the paper prints its own speed-ups, from throughputs that it does not print
        given = results.ratios[results.ratios["regime"] == regime].set_index("backbone")["speedup"]
        table = pd.DataFrame({"value": given, "low": given, "high": given})
    return {b: Entry(title(b), *table.loc[b, ["value", "low", "high"]]) for b in table.index}


def faster(results, *, regime, named=None):
    """Speed-up of INT8 over FP32 at batch 1; where QAT was not timed that of PTQ, which runs the same kernels."""
    found = _speedups(results, regime) or _speedups(results)
    return [found.get(b, Entry(title(b), NAN)) for b in named or backbones(results)]


def speedups_differ(results):
    """How many times the speed-up of one backbone is that of another."""
    found, ratios = list(_speedups(results).values()), []
    for a in found:
        for b in (b for b in found if b is not a and a.value > b.value):
            logs = (Entry("", *np.log(e[1:4])) for e in (a, b))
            ratios.append(exponential(minus(*logs, f"{a.label} over {b.label}")))
    return ratios


def _timed(results, quantity):
    """Rows of Table 4 (batch 1, FBGEMM) of one quantity, by backbone; of the paper its own numbers as ours."""
    table = tables.table4(results)
    table = table[table["quantity"] == quantity].set_index("backbone")
    return table.assign(ours=table["paper"]) if is_published(results) else table


def larger_gain(results):
    """Rank correlation of FP32 latency and speed-up over backbones."""
    gains = pd.Series({b: e.value for b, e in _speedups(results).items()}, dtype=float)
    latency = _timed(results, "fp32_p50")["ours"]
    return [rank_correlation(latency, gains, "rank correlation of FP32 latency and speed-up")]


def tails(results):
    """p99 over p50 of INT8-PTQ at batch 1 on each backbone."""
    rows = _timed(results, "int8_tail")
    return [entry(results, title(b), *numbers) for b, *numbers in rows[["ours", "low", "high"]].itertuples()]


def tails_alike(results):
    """Mean of p99 over p50 of INT8-PTQ minus that of FP32."""
    gaps = _timed(results, "int8_tail")["ours"] - _timed(results, "fp32_tail")["ours"]
    return [student(results, "INT8 over FP32", gaps.dropna())]


def sizes(results):
    """FP32 over INT8 size on disk minus Table 4's, on each backbone."""
    rows = _timed(results, "size_ratio")
    return [around(title(b), v, 0) for b, v in (rows["ours"] - rows["paper"]).items()]


def engine_throughput(results, *, kind):
    """Throughput under FBGEMM over that under QNNPACK at batch 32: geometric mean over a family's backbones."""
    found = []
    table = cpu_times(results, 32)
    for dataset in [""] if (table["dataset"] == "").all() else results.datasets:
        t = table[(table["dataset"] == dataset) & (table["backbone"].map(family) == kind)]
        wide = t.pivot_table(index="backbone", columns="regime", values="throughput")
        label = title(dataset) or "all datasets"
        if not {"ptq-fbgemm", "ptq-qnnpack"} <= set(wide.columns):
            found.append(Entry(label, NAN))
            continue
        ratio = (wide["ptq-fbgemm"] / wide["ptq-qnnpack"]).dropna()
        found.append(exponential(student(results, label, np.log(ratio))))
    return found


def conversion(results, *, kind, families=("cnn", "transformer")):
    """Seconds to convert every timed backbone under PTQ or QAT."""
    t = results.latency[results.latency["regime"].str.startswith(kind) & results.latency["convert_seconds"].notna()]
    t = t[t["backbone"].map(family).isin(families)].drop_duplicates(["dataset", "backbone", "regime"])
    names = t[["dataset", "backbone", "regime"]].itertuples(index=False)
    return [around(" ".join(map(title, filter(None, n))), v, 0) for n, v in zip(names, t["convert_seconds"])]


def calibration_dominates(results, *, factor):
    """Converting a CNN by PTQ takes at least `factor` times what converting a transformer takes (medians)."""
    t = results.latency[results.latency["regime"].str.startswith("ptq") & results.latency["convert_seconds"].notna()]
    seconds = t.groupby(t["backbone"].map(family))["convert_seconds"].median()
    if not {"cnn", "transformer"} <= set(seconds.index):
        return []
    ratio = around("CNN over transformer", seconds["cnn"] / seconds["transformer"], 0)
    found = judge([ratio], low=factor, unit="times")
    more = f" Medians {seconds['cnn']:.2f} s and {seconds['transformer']:.2f} s."
    return found._replace(evidence=found.evidence + more)


def fp16_saves(results, *, column, device="", batch_size=None):
    """FP32 over FP16 in a column of latency.csv, for each backbone that has both on that device."""
    t = results.latency
    if device:
        t = t[(t["device"] == device) & (t["batch_size"] == batch_size) & t["baseline"].isin(["eager", ""])]
    wide = t.pivot_table(index="backbone", columns="regime", values=column, aggfunc="median")
    ratio = wide["fp32"] / wide["fp16"] if {"fp32", "fp16"} <= set(wide.columns) else pd.Series(dtype=float)
    return [around(title(b), v, 0) for b, v in ratio.dropna().items()]


# --- paired bootstrap -----------------------------------------------------------------------------


def significant(results, *, first, second, better, margin):
    """Pooled paired bootstrap of AUPRC, Holm's p.

    `better` names the one that wins: supported if p < 0.05 in its favour everywhere; contradicted if somewhere p < 0.05
    against it, or if its advantage is surely below `margin`. A large p alone says nothing. `better=None`
    (indistinguishable): supported if every interval lies within ± margin and no p < 0.05, contradicted by a p < 0.05.
    """
    held, against, parts, rows = [], [], [], []
    for dataset in results.datasets:
        for engine in PAPER_ENGINES:
            a, b = (k if k == "fp32" else f"{k}-{engine}" for k in (first, second))
            r = paired(results, "auprc", a, b, dataset)
            label = f"{title(dataset)}, {engine.upper()}"
            if r is None or math.isnan(r["p_holm"]):
                parts.append(f"{label} missing")
                continue
            sign = -1 if better == second else 1
            gain, most, clear = sign * r["value"], max(sign * r["low"], sign * r["high"]), r["p_holm"] < 0.05
            if better is None:
                held.append(not clear and -margin <= r["low"] and r["high"] <= margin)
                against.append(clear)
            else:
                held.append(clear and gain > 0)
                against.append(clear and gain < 0 or most < margin)
            rows.append((held[-1] - against[-1], abs(gain), r))
            parts.append(f"{label} {100 * r['value']:+.2f} points (p {r['p_value']:.2g}, Holm {r['p_holm']:.2g})")
    if not held:
        return []
    verdict = CONTRADICTED if any(against) else SUPPORTED if all(held) and len(held) == len(parts) else OPEN
    r = min(rows, key=lambda row: (row[0], row[1] if better else -row[1]))[2]
    return Finding(verdict, "; ".join(parts) + ".", r["value"], r["low"], r["high"])


# --- calibration size -----------------------------------------------------------------------------


def _curves(results, datasets=(), named=None):
    """(label, dataset, backbone, rows by calibration size) of each curve of Figure 4; no rows where a `named` one lacks."""
    data = tables.calibration_data(results).sort_values("n_calibration")
    for d in ours(results, datasets):
        for b in named or backbones(results):
            part = data[(data["dataset"] == d) & (data["backbone"] == b)].reset_index(drop=True)
            if named or len(part):
                yield f"{title(d)}, {title(b)}", d, b, part


def _gain(label, last, first=None):
    """Mean AUPRC of the draws of one row of a curve, or its gain over another row, with Student's or Welch's interval."""
    rows = [last] if first is None else [last, first]
    half = welch_half(*((r["std"] ** 2 / r["n"], r["n"]) for r in rows)) if min(r["n"] for r in rows) > 1 else (NAN,)
    return around(label, last["mean"] - (0 if first is None else first["mean"]), *half)


def curves(results, *, compare, datasets=(), named=None, start=0):
    """AUPRC of each curve of Figure 4 at each size of the calibration set, or its differences between sizes.

    `compare`: `none`; `each` size with each other (gains); `ends`, the first size from `start` on with the last (a gain);
    `next`, each size with the one after it (a loss).
    """
    found = []
    for label, _, _, c in _curves(results, datasets, named):
        found += [Entry(label, NAN)] if c.empty else []
        rows = c[c["n_calibration"] >= start].to_dict("records")
        if compare == "none":
            found += [_gain(f"{label}, {r['n_calibration']:.0f} images", r) for r in rows]
        elif compare == "each":
            found += [_gain(label, last, first) for first, last in itertools.permutations(rows, 2)]
        elif compare == "ends" and len(rows) > 1:
            found.append(_gain(label, rows[-1], rows[0]))
        elif compare == "next":
            for small, large in itertools.pairwise(rows):
                found.append(_gain(f"{label}, {small['n_calibration']:.0f} images over the next size", small, large))
    return found


def sweep_skin_lower(results):
    """How far AUPRC lies above that on SkinCancer, of each backbone, other dataset and calibration size."""
    curves, found = {(d, b): c for _, d, b, c in _curves(results)}, []
    for (d, b), low in curves.items():
        for other in ours(results, EASY) if d in ours(results, SKIN) else ():
            if (other, b) not in curves:
                continue
            high = curves[other, b].set_index("n_calibration").to_dict("index")
            for r in low.to_dict("records"):
                if (n := r["n_calibration"]) in high:
                    label = f"{title(b)}, {title(other)} above {title(d)}, {n:.0f} images"
                    found.append(_gain(label, high[n], r))
    return found


def sweep_wider(results, *, split, datasets=(), named=()):
    """How many times wider the bands of one group of curves are than the others' (geometric means, Welch's interval).

    `split`: `skin` against the other datasets, `backbones` (those named) against the other CNNs, or `small` calibration
    sets (below 128 images) against larger ones. Draws of a large part of the pool share most of their images and vary less
    for that reason alone, so sizes above a quarter of the pool are left out, and the others corrected for the finite pool.
    """
    groups = ([], [])
    for _, d, b, c in _curves(results, datasets):
        pool = (results.provenance.get("data", {}).get(d) or {}).get("n_train") or NAN
        c = c[~(c["n_calibration"] > pool / 4)]
        width = c["std"] / np.sqrt(1 - c["n_calibration"] / pool) if pool == pool else c["std"]
        if split == "small":
            small = c["n_calibration"] < 128
            groups[0].append(width[small].mean())
            groups[1].append(width[~small].mean())
        else:
            first = d in ours(results, SKIN) if split == "skin" else b in named
            groups[not first].append(width.mean())
    return [welch("width of the bands, over the others'", *([v for v in part if v > 0] for part in groups))]


# --- other frameworks -----------------------------------------------------------------------------


def other_frameworks(results, *, native):
    """Brier score that other INT8 runtimes lose where PyTorch's own PTQ surely loses more than `native`."""
    found = []
    for (dataset, backbone, _), e in harms(results, "brier", "ptq-fbgemm").items():
        b = results.bootstrap[(results.bootstrap["dataset"] == dataset) & (results.bootstrap["backbone"] == backbone)]
        runtimes = b["method_b"][(b["method_a"] == PEER_REFERENCE) & b["method_b"].str.endswith("-int8")].unique()
        for runtime in runtimes if e.low > native else ():
            if not runtime.startswith(("pytorch", "inductor")):
                cost = harm(results, "brier", PEER_REFERENCE, runtime, dataset, backbone=backbone)
                names = dataset, backbone, runtime.replace("-int8", " int8")
                found.append(cost._replace(label=", ".join(map(title, names))))
    none = "No other runtime was measured where PyTorch's own PTQ loses enough for a comparison."
    return found or Finding(OPEN, none)
