"""The tests that decide claims: functions of (results, published) and the arguments that params/claims.yaml gives.

Each returns a Finding. Margins come from that file, in the metric's own unit.
"""

import math

import numpy as np
import pandas as pd

from medq.claims.evidence import (
    CONTRADICTED,
    NAN,
    OPEN,
    SUPPORTED,
    UNIT,
    Entry,
    Finding,
    both,
    competent,
    contrast,
    entry,
    exists,
    harm,
    harms,
    is_published,
    judge,
    mean,
    minus,
    newcombe,
    ours,
    rank_correlation,
    regimes,
    spread_ratio,
    stored,
    student,
    welch,
)
from medq.regimes import ENGINES, INT8
from medq.results import class_title, counterpart, family, means, scores, timings, title
from medq.tables import calibration_data, latency_rows, speedups
from medq.tables import silent as silent_rows

VULNERABLE = ("mobilenetv2", "efficientnet_b0")
LIGHT = ("mobilenetv2", "convnext_tiny", "efficientnet_b0")
EASY = ("BrainMRI", "ChestXray")


# --- regimes against a reference --------------------------------------------------------------------


def change(results, published, *, kind, margins, bound, reference="fp32", datasets=(), form="converted", each=False):
    """How regimes of a kind differ from a reference: `within` ± margin, worse by `more`, or worse by `at_most`.

    `reference` is a regime, or `simulation`: each INT8 model's own fake-quantized form.
    Pooled over backbones, or for `each` competent backbone (or the one named). A contradiction between two separate
    trainings needs several of each: with one, the interval covers other images and not another training.
    """
    findings = []
    for metric, margin in margins.items():
        found = []
        for dataset in ours(results, *datasets):
            for b in regimes(results, kind):
                a = f"{b}.fake-quant" if reference == "simulation" else reference
                backbones = {True: results.backbones, False: ["all"]}.get(each, [each])
                for backbone in backbones:
                    if backbone == "all" or competent(results, dataset, backbone):
                        found.append(harm(results, metric, a, b, dataset, backbone=backbone, form=form))
        if is_published(results) and all(math.isnan(e.value) for e in found):
            continue  # the paper reports other metrics
        if each is True:
            found = [e for e in found if not math.isnan(e.value)]
        limits = {"within": (-margin, margin), "more": (margin, math.inf), "at_most": (-math.inf, margin)}[bound]
        findings.append(judge(found, low=limits[0], high=limits[1], unit=UNIT[metric]))
    result = both(*findings) if findings else judge([])
    if result.verdict == CONTRADICTED and kind == "fp16" and not is_published(results):
        rows = [stored(results, m, "fp32", "fp16", d) for m in margins for d in results.datasets]
        if any(r is not None and not r.get("trainings", 1) > 1 for r in rows):
            note = " FP32 and FP16 were trained once each: the difference may be that of two trainings."
            return result._replace(verdict=OPEN, evidence=result.evidence + note)
    return result


def engines_alike(results, published, *, margins):
    """FBGEMM and QNNPACK give the same within the margins, for PTQ and QAT on every dataset."""
    found = [
        judge(
            [harm(results, m, f"{k}-fbgemm", f"{k}-qnnpack", d) for k in ("ptq", "qat") for d in results.datasets],
            low=-margin,
            high=margin,
            unit=UNIT[m],
        )
        for m, margin in margins.items()
    ]
    return both(*found)


def saturated(results, published, *, floor):
    """Mean ROC-AUC of FP32 and FP16 on BrainMRI and ChestXray is at least `floor`."""
    return judge(
        [_level(results, r, d) for d in ours(results, *EASY) for r in ("fp32", "fp16")], low=floor, unit="plain"
    )


def _level(results, regime, dataset, metric="auroc"):
    m = means(results, metric)
    row = m[(m["dataset"] == dataset) & (m["regime"] == regime)]
    label = f"{title(dataset)}, {title(regime)}"
    return entry(results, label, *row.iloc[0][["value", "low", "high"]]) if len(row) else Entry(label, NAN)


def skin_harder(results, published):
    """The mean over backbones on SkinCancer lies below those on BrainMRI and ChestXray."""
    skin, rest = ([_level(results, "fp32", d) for d in ours(results, *names)] for names in (("SkinCancer",), EASY))
    return judge([minus(r, s, f"{r.label} above {s.label}") for s in skin for r in rest], low=0)


def skin_variable(results, published):
    """Backbones differ more in FP32 ROC-AUC on SkinCancer than on the other two."""
    pairs = [(skin, other) for skin in ours(results, "SkinCancer") for other in ours(results, *EASY)]
    found = [spread_ratio(results, "auroc", "fp32", "fp32", o, s, f"{title(s)} over {title(o)}") for s, o in pairs]
    return judge(found, low=1, unit="times")


def ptq_spreads(results, published):
    """The standard deviation of ROC-AUC between backbones is greater under PTQ than under FP32."""
    found = [
        spread_ratio(results, "auroc", "fp32", r, d, d, f"{title(d)}, {title(r)}")
        for d in results.datasets
        for r in regimes(results, "ptq")
    ]
    return judge(found, low=1, unit="times")


def depends_on_backbone(results, published, *, margin):
    """In each dataset and engine two backbones' losses of ROC-AUC under PTQ differ by more than `margin`."""
    cells, findings = harms(results, "auroc", "ptq"), []
    for dataset in results.datasets:
        for regime in regimes(results, "ptq"):
            own = [e for (d, _, r), e in cells.items() if (d, r) == (dataset, regime)]
            gaps = [minus(a, b, f"{a.label} beyond {b.label.split(', ')[1]}") for a in own for b in own if a is not b]
            findings.append(exists(gaps, above=margin))
    return both(*findings) if findings else judge([])


def interacts(results, published, *, margin):
    """Some loss under PTQ differs by more than `margin` from what dataset and backbone alone explain."""
    found = []
    for regime in regimes(results, "ptq"):
        cells = {k[:2]: e for k, e in harms(results, "auroc", regime).items()}
        loss = pd.Series({k: e.value for k, e in cells.items()}, dtype=float)
        if loss.empty or loss.index.get_level_values(0).nunique() < 2:
            continue
        table = loss.unstack().dropna(axis=1)  # effects are additive means over a complete grid
        expected = table.mean(axis=1).to_numpy()[:, None] + table.mean(axis=0).to_numpy() - table.to_numpy().mean()
        for key, rest in (table - expected).stack().items():
            half = (cells[key].high - cells[key].low) / 2
            found.append(Entry(cells[key].label, abs(rest), abs(rest) - half, abs(rest) + half))
    return exists(found, above=margin)


def residual_on_skin(results, published, metric="auroc"):
    """What QAT loses against FP32 is more on SkinCancer than on the other two."""
    found = []
    for regime in regimes(results, "qat"):
        skin, rest = (
            [harm(results, metric, "fp32", regime, d) for d in ours(results, *names)]
            for names in (("SkinCancer",), EASY)
        )
        found += [minus(s, r, f"{s.label} beyond {r.label.split(',')[0]}") for s in skin for r in rest]
    return judge(found, low=0)


# --- calibration ----------------------------------------------------------------------------------


def recovers(results, published, *, margins, share=0.5, datasets=()):
    """What QAT leaves is at most `share` of what PTQ loses, wherever PTQ surely loses more than the margin."""
    found, spared = [], []
    for metric, margin in margins.items():
        for dataset in ours(results, *datasets):
            for e in ENGINES:
                lost, left, step = (
                    harm(results, metric, a, b, dataset, form="fake-quant")
                    for a, b in (("fp32", f"ptq-{e}"), ("fp32", f"qat-{e}"), (f"ptq-{e}", f"qat-{e}"))
                )
                label = f"{title(dataset)}, {e.upper()}, {title(metric)}: left beyond {share:.0%} of the loss"
                if lost.low > margin:
                    found.append(contrast(lost, left, step, share, label))
                elif not math.isnan(lost.value):
                    spared.append(label.split(":")[0])
    if not found and spared:
        return Finding(OPEN, f"PTQ loses nothing that could be recovered: {'; '.join(spared)}.")
    return judge(found, high=0, unit="signed")


def modest_residual(results, published, *, margins):
    """On SkinCancer QAT stays worse than FP32, by less than half of what PTQ loses."""
    found = {
        m: [
            harm(results, m, "fp32", r, d, form="fake-quant")
            for d in ours(results, "SkinCancer")
            for r in regimes(results, "qat")
        ]
        for m in margins
    }
    known = {m: f for m, f in found.items() if not (is_published(results) and all(math.isnan(e.value) for e in f))}
    parts = [judge(f, low=0, unit=UNIT[m]) for m, f in known.items()]
    return both(*parts, recovers(results, published, margins=margins, datasets=("SkinCancer",))) if parts else judge([])


def best_regimes(results, published, metric="brier"):
    """In each row of Table 1 the paper's best regime is better than every other (ties leave it open)."""
    findings = []
    theirs = means(published, metric, form="fake-quant")
    for dataset in results.datasets:
        paper = theirs[theirs["dataset"] == counterpart(dataset)].set_index("regime")["value"]
        if paper.empty:
            continue
        best, others = paper.idxmin(), [r for r in paper.index if r != paper.idxmin()]
        found = [harm(results, metric, best, r, dataset, form="fake-quant") for r in others]
        found = [e._replace(label=f"{e.label} against {title(best)}") for e in found]
        findings.append(judge(found, low=0, unit=UNIT[metric]))
    return both(*findings) if findings else judge([])


def simulation_explains(results, published, *, share, margin):
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
        part, step = (
            harm(results, "brier", *pair, dataset, backbone=backbone)
            for pair in (("fp32", f"{regime}.fake-quant"), (regime, f"{regime}.fake-quant"))
        )
        found.append(contrast(total, part, step, share, f"{total.label}: simulated beyond {share:.0%} of the loss"))
    if not found and spared:
        return Finding(OPEN, f"In none of {spared} models does PTQ lose enough to need explaining.")
    return judge(found, low=0, unit="signed")


# --- classes and backbones ------------------------------------------------------------------------


def _class_losses(results, dataset, backbone, regime, metric="auprc"):
    """{class: (Entry of the loss, FP32's value)}: cell intervals combined as if independent, hence too wide."""
    found = {}
    for klass in results.classes(dataset):
        cells = vars(results).setdefault("_of_class", {})
        if (metric, klass) not in cells:
            s = scores(results, metric, klass=klass)
            keys = zip(s["dataset"], s["backbone"], s["regime"])
            cells[metric, klass] = dict(zip(keys, zip(s["value"], s["low"], s["high"])))
        own = cells[metric, klass]
        before = own.get((dataset, backbone, "fp32"))
        after = own.get((dataset, backbone, regime), own.get((dataset, backbone, "ptq")))  # Table 3 names no engine
        if before and after:
            parts = (entry(results, klass, *numbers) for numbers in (before, after))
            found[klass] = minus(*parts, class_title(dataset, klass)), before[0]
    return found


def rare_classes(results, published, backbone="resnet50", named=("akiec", "df", "mel")):
    """On SkinCancer the classes the paper calls rare lose more AUPRC under PTQ than the others."""
    drops = {}
    for dataset in ours(results, "SkinCancer"):
        drops |= _class_losses(results, dataset, backbone, "ptq-fbgemm")
    rare, rest = ([v for k, v in drops.items() if (k in named) == keep] for keep in (True, False))
    if len(rare) < len(named) or not rest:
        return judge([])
    gap = minus(
        *(mean([e for e, _ in group]) for group in (rare, rest)), "AUPRC lost by AKIEC, DF and MEL beyond the others"
    )
    relative = [np.mean([e.value / level for e, level in group]) for group in (rare, rest)]
    found = judge([gap], low=0)
    more = f" As a share of what they had: {100 * relative[0]:.0f} % against {100 * relative[1]:.0f} %."
    return found._replace(evidence=found.evidence + more)


def hidden(results, published, *, average, loss):
    """Some INT8 model surely loses at most `average` of macro ROC-AUC and more than `loss` of a class's AUPRC."""
    found = []
    for kind in ("ptq", "qat"):
        for (dataset, backbone, regime), macro in harms(results, "auroc", kind).items():
            if macro.high <= average:
                of_class = _class_losses(results, dataset, backbone, regime).values()
                found += [e._replace(label=f"{macro.label}, {e.label}") for e, _ in of_class]
    return exists(found, above=loss)


def silent(results, published, *, accuracy, loss, fewest):
    """Some INT8 model keeps accuracy while a class's sensitivity, at FP32's threshold, falls by more than `loss`.

    Competent models alone, classes of at least `fewest` images; QAT against FP32 trained for as long
    (`fp32-continued`); Newcombe's interval, corrected for all classes looked at.
    """
    rows = silent_rows(results).set_index(["dataset", "backbone", "regime", "class"])
    found, members = [], {}
    for (dataset, backbone, regime, klass), row in rows.iterrows():
        if regime not in INT8 or not competent(results, dataset, backbone):
            continue
        reference = "fp32-continued" if regime.startswith("qat") else "fp32"
        kept = harm(results, "accuracy", reference, regime, dataset, backbone=backbone)
        before = row["sensitivity_reference"]
        if reference != "fp32":
            other = (dataset, backbone, reference, klass)
            before = rows.loc[other, "sensitivity"] if other in rows.index else NAN
        if (dataset, backbone) not in members:
            members[dataset, backbone] = results.predictions(dataset, backbone, "fp32")["label"].value_counts()
        classes = results.classes(dataset)
        n = members[dataset, backbone].get(classes.index(klass), 0) if klass in classes else 0
        if n < fewest or math.isnan(before) or not kept.high <= accuracy:
            continue
        hits = before * n, row["sensitivity"] * n
        found.append(Entry(f"{kept.label}, {class_title(dataset, klass)}", *newcombe(*hits, n)))
    return exists(found, above=loss)


def ptq_loss(results, metric="auroc"):
    """{backbone: Entry of its mean loss under PTQ over datasets and engines}, of competent models."""
    cells = harms(results, metric, "ptq")
    found = {b: [e for (_, name, _), e in cells.items() if name == b] for b in results.backbones}
    return {b: mean(entries, title(b)) for b, entries in found.items() if entries}


def extreme(values, named, sign=1):
    """The named keys have the greatest (sign 1) or smallest values: every named beyond every other."""
    if len(values) < 5 or not set(named) <= set(values):
        return judge([])
    signed = {k: e if sign > 0 else minus(Entry("", 0, 0, 0), e, e.label) for k, e in values.items()}
    return [
        minus(signed[k], signed[o], f"{title(k)} beyond {title(o)}") for k in named for o in signed if o not in named
    ]


def most_vulnerable(results, published, named=VULNERABLE):
    """The named backbones lose more ROC-AUC under PTQ than every other."""
    gaps = extreme(ptq_loss(results), named)
    return judge(gaps, low=0) if isinstance(gaps, list) else gaps


def robust(results, published, backbone="resnet50", among=3):
    """`backbone` is among the `among` that lose least ROC-AUC under PTQ."""
    loss = ptq_loss(results)
    if len(loss) < 5 or backbone not in loss:
        return judge([])
    gaps = [minus(e, loss[backbone], f"{title(b)} loses more by") for b, e in loss.items() if b != backbone]
    worse = sum(g.low > 0 for g in gaps)
    better = [g for g in gaps if g.at(len(gaps)).high < 0]
    verdict = SUPPORTED if worse >= len(loss) - among else CONTRADICTED if len(better) >= among else OPEN
    own = loss[backbone]
    words = f"{title(backbone)} loses {100 * own.value:+.1f} points; {worse} of {len(gaps)} others surely lose more, {len(better)} surely less."
    return Finding(verdict, words, *own[1:])


# --- latency --------------------------------------------------------------------------------------


def _speedups(results, regime="ptq-fbgemm"):
    """{backbone: Entry of the speed-up over eager FP32 at batch 1}."""
    table = speedups(results, batch_size=1, regime=regime)
    table = table[table["baseline"] == "eager"].set_index("backbone")
    if is_published(results):  # the paper prints its own speed-ups, from throughputs that it does not print
        given = results.ratios[results.ratios["regime"] == regime].set_index("backbone")["speedup"]
        table = pd.DataFrame({"value": given, "low": given, "high": given})
    return {b: Entry(title(b), *table.loc[b, ["value", "low", "high"]]) for b in table.index}


def faster(results, published, regime="ptq-fbgemm"):
    """INT8 is faster than FP32 at batch 1 on every backbone."""
    found, note = _speedups(results, regime), ""
    if not found and regime.startswith("qat"):
        found, note = _speedups(results), " Timed as PTQ: the same kernels."
    verdict = judge([found.get(b, Entry(title(b), NAN)) for b in results.backbones], low=1, unit="times")
    return verdict._replace(evidence=verdict.evidence + note) if found else verdict


def tails(results, published, *, low, high):
    """p99 over p50 of INT8-PTQ at batch 1 lies between `low` and `high` for every backbone."""
    rows = latency_rows(results, 1, "ptq-fbgemm")
    ends = {b: rows.get(b, {}).get("int8_tail", {"value": NAN, "low": NAN, "high": NAN}) for b in results.backbones}
    found = [entry(results, title(b), *(t[k] for k in ("value", "low", "high"))) for b, t in ends.items()]
    return judge(found, low=low, high=high, unit="plain")


def tails_alike(results, published, *, margin):
    """Mean p99 over p50 of INT8-PTQ differs from that of FP32 by at most `margin`."""
    rows = [q for q in latency_rows(results, 1, "ptq-fbgemm").values() if {"int8_tail", "fp32_tail"} <= q.keys()]
    gaps = [q["int8_tail"]["value"] - q["fp32_tail"]["value"] for q in rows]
    return judge([student(results, "INT8 over FP32", gaps)], low=-margin, high=margin, unit="signed")


def speedup_range(results, published, least="efficientnet_b0", most="densenet121"):
    """The smallest and the greatest speed-up belong to the named backbones."""
    found = _speedups(results)
    gaps = [extreme(found, (most,)), extreme(found, (least,), sign=-1)]
    return both(*(judge(g, low=0, unit="times") for g in gaps)) if isinstance(gaps[0], list) else judge([])


def speedups_differ(results, published, *, factor):
    """Some speed-up is at least `factor` times another."""
    found = list(_speedups(results).values())
    ratios = []
    for a in found:
        for b in (b for b in found if b is not a and a.value > b.value):
            log = minus(*(Entry("", *np.log(e[1:])) for e in (a, b)), f"{a.label} over {b.label}")
            ratios.append(Entry(log.label, *(math.exp(v) for v in log[1:])))
    return exists(ratios, above=factor, unit="times")


def larger_gain(results, published):
    """Speed-ups rise with the FP32 latency of the backbone (rank correlation above 0)."""
    rows = {b: q["fp32_p50"]["value"] for b, q in latency_rows(results, 1, "ptq-fbgemm").items() if "fp32_p50" in q}
    gains = pd.Series({b: e.value for b, e in _speedups(results).items()}, dtype=float)
    label = "rank correlation of FP32 latency and speed-up"
    return judge([rank_correlation(pd.Series(rows, dtype=float), gains, label)], low=0, unit="signed")


def vulnerable_gain_least(results, published, named=VULNERABLE):
    """The named backbones, which the paper finds most vulnerable to PTQ, have the smallest speed-ups."""
    gaps = extreme(_speedups(results), named, sign=-1)
    return judge(gaps, low=0, unit="times") if isinstance(gaps, list) else gaps


def neither(results, published, *, speedup, loss, named=VULNERABLE):
    """Each named backbone gains less than `speedup` and loses over `loss` of AUPRC everywhere."""
    found = _speedups(results)
    losses = [harm(results, "auprc", "fp32", "ptq-fbgemm", d, backbone=b) for b in named for d in results.datasets]
    gains = [found.get(b, Entry(title(b), NAN)) for b in named]
    return both(judge(gains, high=speedup, unit="times"), judge(losses, low=loss))


def _exact(label, value):
    return Entry(label, value, value, value)


def sizes(results, published, *, margin):
    """FP32 over INT8 size on disk matches Table 4 within `margin` for each backbone."""
    paper = published.ratios.set_index("backbone")["size_ratio"]
    rows = latency_rows(results, 1, "ptq-fbgemm")
    found = []
    for b in results.backbones:
        measured = (
            paper.get(b, NAN) if is_published(results) else rows.get(b, {}).get("size_ratio", {}).get("value", NAN)
        )
        found.append(_exact(title(b), measured - paper.get(b, NAN)))
    return judge(found, low=-margin, high=margin, unit="signed")


def engine_throughput(results, published, *, kind, low=-math.inf, high=math.inf):
    """Throughput under FBGEMM over that under QNNPACK at batch 32: geometric mean over a family's backbones."""
    found = []
    table = results.latency[(results.latency["batch_size"] == 32) & results.latency["device"].isin(["cpu", ""])]
    for dataset in [""] if (table["dataset"] == "").all() else results.datasets:
        t = table[(table["dataset"] == dataset) & (table["backbone"].map(_family) == kind)]
        wide = t.pivot_table(index="backbone", columns="regime", values="throughput")
        label = title(dataset) or "all datasets"
        if not {"ptq-fbgemm", "ptq-qnnpack"} <= set(wide.columns):
            found.append(Entry(label, NAN))
            continue
        ratio = (wide["ptq-fbgemm"] / wide["ptq-qnnpack"]).dropna()
        log = student(results, "", np.log(ratio))
        bounds = (math.exp(log.low), math.exp(log.high)) if len(ratio) > 2 else (ratio.min(), ratio.max())
        found.append(entry(results, label, math.exp(np.log(ratio).mean()), *bounds))
    return judge(found, low=low, high=high, unit="times")


def conversion(results, published, *, kind, high, family_name=None):
    """Seconds to convert, of every timed backbone of a family under PTQ or QAT, are at most `high`."""
    t = results.latency[results.latency["regime"].str.startswith(kind) & results.latency["convert_seconds"].notna()]
    found = [
        _exact(" ".join(filter(None, (title(r[k]) for k in ("dataset", "backbone", "regime")))), r["convert_seconds"])
        for r in t.drop_duplicates(["dataset", "backbone", "regime"]).to_dict("records")
        if family_name is None or _family(r["backbone"]) == family_name
    ]
    return judge(found, high=high, unit="seconds")


def _family(name):
    return name if name in ("cnn", "transformer") else family(name)  # the paper's Table 2 names families


def calibration_dominates(results, published, *, factor):
    """Converting a CNN by PTQ takes at least `factor` times what converting a transformer takes (medians)."""
    t = results.latency[results.latency["regime"].str.startswith("ptq") & results.latency["convert_seconds"].notna()]
    seconds = t.groupby(t["backbone"].map(_family))["convert_seconds"].median()
    if not {"cnn", "transformer"} <= set(seconds.index):
        return judge([])
    found = judge([_exact("CNN over transformer", seconds["cnn"] / seconds["transformer"])], low=factor, unit="times")
    more = f" Medians {seconds['cnn']:.2f} s and {seconds['transformer']:.2f} s."
    return found._replace(evidence=found.evidence + more)


def fp16_gpu(results, published):
    """FP16 is faster than FP32 on a GPU, on every backbone timed there."""
    t = timings(results, 32, device="cuda")
    t = t[t["backbone"].isin(results.latency.loc[results.latency["device"] == "cuda", "backbone"])]
    wide = t.pivot(index="backbone", columns="regime", values="p50_ms")
    if not {"fp32", "fp16"} <= set(wide.columns):
        return Finding(OPEN, "No GPU was timed.")
    ratio = (wide["fp32"] / wide["fp16"]).dropna()
    return judge([_exact(title(b), v) for b, v in ratio.items()], low=1, unit="times")


def fp16_memory(results, published, *, at_least):
    """Stored FP16 models are about half the size of FP32's."""
    size = results.latency.pivot_table(index="backbone", columns="regime", values="size_mb", aggfunc="median")
    if not {"fp32", "fp16"} <= set(size.columns):
        return judge([])
    ratio = (size["fp32"] / size["fp16"]).dropna()
    return judge([_exact(title(b), v) for b, v in ratio.items()], low=at_least, unit="times")


# --- paired bootstrap -----------------------------------------------------------------------------


def significant(results, published, *, first, second, better, margin):
    """Pooled paired bootstrap of AUPRC, Holm's p.

    `better` names the one that wins: supported if p < 0.05 in its favour everywhere; contradicted if somewhere p < 0.05
    against it, or if its advantage is surely below `margin`. A large p alone says nothing. `better=None`
    (indistinguishable): supported if every interval lies within ± margin and no p < 0.05, contradicted by a p < 0.05.
    """
    held, against, words, rows = [], [], [], []
    for dataset in results.datasets:
        for engine in ENGINES:
            a, b = (k if k == "fp32" else f"{k}-{engine}" for k in (first, second))
            r = stored(results, "auprc", a, b, dataset)
            label = f"{title(dataset)}, {engine.upper()}"
            if r is None or math.isnan(r["p_holm"]):
                words.append(f"{label} missing")
                continue
            sign = -1 if better == second else 1
            gain, ends = sign * r["delta_pp"] / 100, sorted(sign * r[k] / 100 for k in ("low_pp", "high_pp"))
            clear = r["p_holm"] < 0.05
            if better is None:
                held.append(not clear and -margin <= ends[0] and ends[1] <= margin)
                against.append(clear)
            else:
                held.append(clear and gain > 0)
                against.append(clear and gain < 0 or ends[1] < margin)
            rows.append((held[-1] - against[-1], abs(gain), r))
            words.append(f"{label} {r['delta_pp']:+.2f} points (p {r['p_value']:.2g}, Holm {r['p_holm']:.2g})")
    if not held:
        return judge([])
    verdict = CONTRADICTED if any(against) else SUPPORTED if all(held) and len(held) == len(words) else OPEN
    r = min(rows, key=lambda row: (row[0], row[1] if better else -row[1]))[2]
    return Finding(verdict, "; ".join(words) + ".", *(float(r[k]) / 100 for k in ("delta_pp", "low_pp", "high_pp")))


# --- calibration size -----------------------------------------------------------------------------


def _curves(results, datasets, backbones=None):
    data = calibration_data(results)
    return {
        (d, b): part.sort_values("n_calibration")
        for (d, b), part in data.groupby(["dataset", "backbone"])
        if d in datasets and b in (backbones or results.backbones)
    }


def _step(c, first, last, label):
    """AUPRC gained between two rows of a curve, with Welch's interval over the draws."""
    gain = c["mean"].iloc[last] - c["mean"].iloc[first]
    variance = [(c["std"].fillna(0).iloc[k] ** 2 / c["n"].iloc[k], c["n"].iloc[k] - 1) for k in (first, last)]
    total = sum(v for v, _ in variance)
    df = total**2 / max(sum(v**2 / max(m, 1) for v, m in variance), 1e-300) if total else 1.0
    from scipy.special import stdtrit

    half = float(stdtrit(max(df, 1.0), 0.975)) * math.sqrt(total) if min(m for _, m in variance) > 0 else NAN
    return Entry(label, float(gain), float(gain - half), float(gain + half))


def insensitive(results, published, *, floor, tolerance):
    """ResNets on BrainMRI and ChestXray: AUPRC never below `floor`, and no size further than `tolerance` from another."""
    curves = _curves(results, ours(results, *EASY), ("resnet18", "resnet50"))
    lowest, moved = [], []
    for (d, b), c in curves.items():
        label, worst = f"{title(d)}, {title(b)}", int(c["mean"].to_numpy().argmin())
        level = c["mean"].iloc[worst]
        half = _step(c, worst, worst, label).high - 0.0
        lowest.append(Entry(label, level, level - half, level + half))
        moved.append(_step(c, worst, int(c["mean"].to_numpy().argmax()), label))
    return both(judge(lowest, low=floor, unit="plain"), judge(moved, high=tolerance)) if curves else judge([])


def no_calibration(results, published):
    """Swin-T and ViT-B: dynamic quantization uses no calibration images, so their flat lines are no finding."""
    names = [title(b) for b in results.backbones if family(b) == "transformer"]
    who = " and ".join(names) or "Transformers"
    return Finding(OPEN, f"{who} are quantized dynamically and use no calibration images: a flat line is no finding.")


def sweep_skin_lower(results, published):
    """At every calibration size each backbone's AUPRC on SkinCancer lies below that on the other datasets."""
    skin, rest, found = ours(results, "SkinCancer"), ours(results, *EASY), []
    curves = _curves(results, [*skin, *rest])
    for (d, b), low in curves.items():
        for other in rest:
            if d in skin and (other, b) in curves:
                both_ = low.merge(curves[other, b], on="n_calibration", suffixes=("", "_other"))
                for r in both_.to_dict("records"):
                    gap = r["mean_other"] - r["mean"]
                    half = 2 * math.hypot(
                        *(np.nan_to_num(r[f"std{s}"]) / math.sqrt(r[f"n{s}"]) for s in ("", "_other"))
                    )
                    label = f"{title(b)}, {title(other)} above {title(d)}, {r['n_calibration']:.0f} images"
                    found.append(Entry(label, gap, gap - half, gap + half))
    return judge(found, low=0)


def sweep_wider(results, published, *, split):
    """The bands of one group of curves are wider than those of another (geometric means, Welch's interval).

    `split`: `skin` against the other datasets, `light` models against the other CNNs on ChestXray and SkinCancer, or
    `small` calibration sets on SkinCancer (below 128 images) against larger ones. Draws of a large part of the pool
    share most of their images and vary less for that reason alone, so sizes above a quarter of the pool are left out,
    and the others corrected for the finite pool.
    """
    datasets = {"skin": (), "light": ("ChestXray", "SkinCancer"), "small": ("SkinCancer",)}[split]
    groups = ([], [])
    for (d, b), c in _curves(results, ours(results, *datasets)).items():
        pool = (results.provenance.get("data", {}).get(d) or {}).get("n_train") or NAN
        c = c[~(c["n_calibration"] > pool / 4)]
        width = c["std"] / np.sqrt(1 - c["n_calibration"] / pool) if pool == pool else c["std"]
        if split == "small":
            for part, keep in zip(groups, (c["n_calibration"] < 128, c["n_calibration"] >= 128)):
                part.append(width[keep].mean())
        else:
            first = d in ours(results, "SkinCancer") if split == "skin" else b in LIGHT
            groups[not first].append(width.mean())
    first, second = ([v for v in part if v > 0] for part in groups)
    return judge([welch("width of the bands, over the others'", first, second)], low=1, unit="times")


def not_monotonic(results, published, *, margin):
    """Some curve of the light models falls by more than `margin` from one size to the next, beyond its noise."""
    falls = []
    for (d, b), c in _curves(results, results.datasets, LIGHT).items():
        for k in range(len(c) - 1):
            e = _step(
                c, k + 1, k, f"{title(d)}, {title(b)}, {c['n_calibration'].iloc[k]:.0f} images over the next size"
            )
            falls.append(e)
    return exists(falls, above=margin)


def few_hundred(results, published, *, start, margin):
    """From `start` calibration images on, AUPRC on BrainMRI and ChestXray gains at most `margin`."""
    found = []
    for (d, b), c in _curves(results, ours(results, *EASY)).items():
        c = c[c["n_calibration"] >= start]
        if len(c) > 1:
            found.append(_step(c, 0, len(c) - 1, f"{title(d)}, {title(b)}"))
    return judge(found, high=margin)


# --- other frameworks -----------------------------------------------------------------------------


def other_frameworks(results, published, *, native, foreign):
    """Other INT8 runtimes lose more than `foreign` Brier where PyTorch's own PTQ surely loses more than `native`."""
    peers = results.peers[results.peers["batch_size"] == results.peers["batch_size"].min()]
    others = peers[~peers["runtime"].str.startswith(("pytorch", "inductor"))]
    if others.empty:
        return Finding(OPEN, "No other runtime was measured.")
    losing = {k[:2] for k, e in harms(results, "brier", "ptq-fbgemm").items() if e.low > native}
    found = []
    for (dataset, runtime), rows in others.groupby(["dataset", "runtime"]):
        wide = rows.pivot_table(index="backbone", columns="precision", values="brier")
        if {"fp32", "int8"} <= set(wide.columns):
            lost = (wide["int8"] - wide["fp32"]).dropna()
            lost = lost[[(dataset, b) in losing for b in lost.index]]
            found += [student(results, f"{title(dataset)}, {runtime}", lost)] if len(lost) else []
    if not found:
        return Finding(OPEN, "PyTorch's own PTQ loses too little here for a comparison.")
    return judge(found, low=foreign, unit="signed")
