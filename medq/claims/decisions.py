"""The tests that decide claims: functions of a result folder that return a `Finding`."""

import math
from functools import cache

import numpy as np
import pandas as pd

from medq import regimes
from medq.claims.evidence import (
    CONTRADICTED,
    NAN,
    OPEN,
    SUPPORTED,
    Entry,
    Finding,
    both,
    engines,
    entry,
    exists,
    harm,
    harms,
    judge,
    level,
    minus,
    ours,
    paired,
    printed,
    rank_correlation,
    spread_ratio,
    student,
)
from medq.results import CELL, class_title, counterpart, family, means, scores, timings, title
from medq.tables import latency_rows, calibration_data, silent, speedups

CLOSE = {"auroc": 0.01, "auprc": 0.02, "ece": 0.01, "brier": 0.02}  # as good as the same
LARGE = {"auroc": 0.05, "auprc": 0.05, "ece": 0.05, "brier": 0.10}  # about Table 1's PTQ on SkinCancer
UNIT = {"auroc": "points", "auprc": "points", "ece": "signed", "brier": "signed"}
VULNERABLE = ("mobilenetv2", "efficientnet_b0")


# --- regimes against FP32 -------------------------------------------------------------------------


def close(results, *metrics, kind, datasets=(), form="converted", margin=None):
    """`kind` (a regime, or `ptq` / `qat` for both engines) differs from FP32 by no more than the margins."""
    return both(
        *(
            judge(
                _harm_of(results, m, kind, datasets, form),
                low=-(margin or CLOSE[m]),
                high=margin or CLOSE[m],
                unit=UNIT[m],
            )
            for m in metrics
        )
    )


def worse(results, *metrics, kind, datasets=(), form="converted"):
    """`kind` is worse than FP32 by more than `LARGE` in every dataset and engine."""
    return both(*(judge(_harm_of(results, m, kind, datasets, form), low=LARGE[m], unit=UNIT[m]) for m in metrics))


def _harm_of(results, metric, kind, datasets, form):
    regimes = engines(results, kind) if kind in ("ptq", "qat") else [kind]
    return [harm(results, metric, "fp32", r, d, form=form) for d in ours(results, *datasets) for r in regimes]


def every_backbone(results, metric, kind):
    """No backbone loses more than `LARGE` under `kind`, in any dataset or engine."""
    found = [e for r in engines(results, kind) for e in harms(results, metric, "fp32", r).values()]
    return judge(found, high=LARGE[metric], unit=UNIT[metric])


def saturated(results, *, floor=0.99):
    """Mean ROC-AUC of FP32 and FP16 on BrainMRI and ChestXray is at least `floor`."""
    found = [level(results, "auroc", r, d) for d in ours(results, "BrainMRI", "ChestXray") for r in ("fp32", "fp16")]
    return judge(found, low=floor, unit="plain")


def skin_is_harder(results, metric="auroc", regime="fp32"):
    """The mean over backbones on SkinCancer lies below those on BrainMRI and ChestXray."""
    skin = [level(results, metric, regime, d) for d in ours(results, "SkinCancer")]
    rest = [level(results, metric, regime, d) for d in ours(results, "BrainMRI", "ChestXray")]
    return judge([minus(r, s, f"{r.label} above {s.label}") for s in skin for r in rest], low=0)


def skin_is_more_variable(results):
    """Backbones differ more in FP32 ROC-AUC on SkinCancer than on the other two."""
    found = [
        spread_ratio(results, "auroc", "fp32", "fp32", other, skin, f"{title(skin)} over {title(other)}")
        for skin in ours(results, "SkinCancer")
        for other in ours(results, "BrainMRI", "ChestXray")
    ]
    return judge(found, low=1, unit="times")


def ptq_spreads_backbones(results):
    """The standard deviation of ROC-AUC between backbones is greater under PTQ than under FP32."""
    found = [
        spread_ratio(results, "auroc", "fp32", r, d, d, f"{title(d)}, {title(r)}")
        for d in results.datasets
        for r in engines(results, "ptq")
    ]
    return judge(found, low=1, unit="times")


def ptq_depends_on_backbone(results, *, at_least=0.02):
    """In each dataset and engine the backbones' losses of ROC-AUC under PTQ differ by over `at_least`."""
    found = []
    for regime in engines(results, "ptq"):
        cells = harms(results, "auroc", "fp32", regime)
        for dataset in results.datasets:
            own = [e for (d, _), e in cells.items() if d == dataset]
            label = f"{title(dataset)}, {title(regime)}"
            most, least = (f(own, key=lambda e: e.value) if len(own) > 1 else None for f in (max, min))
            found.append(minus(most, least, label) if own and most else Entry(label, NAN))
    return judge(found, low=at_least)


def ptq_interacts(results, *, at_least=0.02):
    """Some loss under PTQ differs by more than `at_least` from what dataset and backbone alone explain."""
    found = []
    for regime in engines(results, "ptq"):
        cells = harms(results, "auroc", "fp32", regime)
        loss = pd.Series({k: e.value for k, e in cells.items()}, dtype=float)
        if loss.empty or loss.index.get_level_values(0).nunique() < 2:
            continue
        table = loss.unstack()
        expected = table.mean(axis=1).to_numpy()[:, None] + table.mean(axis=0).to_numpy() - np.nanmean(table.to_numpy())
        for (dataset, backbone), rest in (table - expected).stack().dropna().items():
            half = (cells[dataset, backbone].high - cells[dataset, backbone].low) / 2
            found.append(Entry(cells[dataset, backbone].label, abs(rest), abs(rest) - half, abs(rest) + half))
    return exists(found, above=at_least)


def residual_is_greatest_on_skin(results, metric="auroc"):
    """What QAT loses against FP32 is more on SkinCancer than on the other two."""
    found = []
    for regime in engines(results, "qat"):
        skin = [harm(results, metric, "fp32", regime, d) for d in ours(results, "SkinCancer")]
        rest = [harm(results, metric, "fp32", regime, d) for d in ours(results, "BrainMRI", "ChestXray")]
        found += [minus(s, r, f"{s.label} beyond {r.label.split(',')[0]}") for s in skin for r in rest]
    return judge(found, low=0)


def engines_alike(results, metric="auroc"):
    """fbgemm and qnnpack give the same within `CLOSE`, for PTQ and QAT on every dataset."""
    found = []
    for kind in ("ptq", "qat"):
        for dataset in results.datasets:
            e = harm(results, metric, f"{kind}-fbgemm", f"{kind}-qnnpack", dataset)
            found.append(e._replace(label=f"{title(dataset)}, {kind.upper()}, QNNPACK against FBGEMM"))
    return judge(found, low=-CLOSE[metric], high=CLOSE[metric])


# --- calibration ----------------------------------------------------------------------------------


def recovers(results, *metrics, share=0.5, datasets=(), form="fake-quant"):
    """QAT closes at least `share` of what PTQ loses, wherever PTQ loses more than `CLOSE`."""
    found, spared = [], []
    for metric in metrics:
        for dataset in ours(results, *datasets):
            for engine in ("fbgemm", "qnnpack"):
                lost = harm(results, metric, "fp32", f"ptq-{engine}", dataset, form=form)
                left = harm(results, metric, "fp32", f"qat-{engine}", dataset, form=form)
                label = f"{lost.label.split(',')[0]}, {engine.upper()}, {title(metric)}"
                if lost.value <= CLOSE[metric]:
                    spared.append(label)
                else:
                    part = [1 - v / lost.value for v in (left.value, left.high, left.low)]
                    found.append(Entry(label, *part))
    if not found and spared:
        return Finding(OPEN, f"PTQ loses nothing that could be recovered: {'; '.join(spared)}.")
    return judge(found, low=share, unit="share")


def modest_residual(results, metric="ece"):
    """On SkinCancer QAT stays worse than FP32, by less than half of what PTQ loses."""
    found = [
        harm(results, metric, "fp32", r, d, form="fake-quant")
        for d in ours(results, "SkinCancer")
        for r in engines(results, "qat")
    ]
    return both(judge(found, low=0, unit="signed"), recovers(results, metric, datasets=("SkinCancer",)))


def conversion_keeps(results):
    """Every converted model is within twice `CLOSE` of its own simulation on the same images."""
    found = {"ece": [], "brier": []}
    for metric, entries in found.items():
        simulated, deployed = (
            scores(results, metric, form=s).set_index(CELL)["value"] for s in ("fake-quant", "converted")
        )
        change = (deployed - simulated).dropna()
        change = change[change.index.get_level_values("regime").isin(regimes.INT8)]
        for cell, value in change.items():  # the same weights on the same images: exact, without an interval
            entries.append(Entry(", ".join(map(title, cell)), value, value, value))
    return both(*(judge(e, low=-2 * CLOSE[m], high=2 * CLOSE[m], unit="signed") for m, e in found.items()))


def best_regimes(results, published):
    """In each row of Table 1 the paper's best regime is ours too."""
    agree, rows, refuted = 0, 0, []
    for metric in ("ece", "brier"):
        theirs = means(published, metric, form="fake-quant")
        mine = means(results, metric, form="fake-quant")
        for dataset in results.datasets:
            paper = theirs[theirs["dataset"] == counterpart(dataset)].set_index("regime")["value"]
            own = mine[(mine["dataset"] == dataset) & mine["regime"].isin(paper.index)].set_index("regime")
            if len(own) < len(paper) or paper.empty:
                continue
            rows += 1
            best, claimed = own.loc[own["value"].idxmin()], own.loc[paper.idxmin()]
            agree += best.name == claimed.name
            apart = claimed["low"] > best["high"] or printed(results) and claimed["value"] > best["value"]
            refuted += [f"{title(dataset)} {title(metric)}: {title(best.name)}"] * bool(apart)
    if not rows:
        return Finding(OPEN, "No dataset has all six regimes.")
    verdict = SUPPORTED if agree == rows else CONTRADICTED if refuted else OPEN
    more = f" Beyond the intervals another is better: {'; '.join(refuted)}." if refuted else ""
    return Finding(verdict, f"The same regime is best in {agree} of {rows} rows.{more}", agree, NAN, NAN)


def simulation_explains(results, *, share=0.8):
    """At least `share` of what deployed PTQ loses in Brier is lost already by its simulation."""
    found, spared = [], []
    for dataset in results.datasets:
        for regime in engines(results, "ptq"):
            total, simulated = (
                harm(results, "brier", "fp32", regime, dataset, form=s) for s in ("converted", "fake-quant")
            )
            if total.value > CLOSE["brier"]:
                part = [v / total.value for v in (simulated.value, simulated.low, simulated.high)]
                found.append(Entry(total.label, *part))
            elif not math.isnan(total.value):
                spared.append(total.label)
    if not found and spared:
        return Finding(OPEN, f"PTQ loses nothing that would need explaining: {'; '.join(spared)}.")
    return judge(found, low=share, unit="share")


def resnet50_shifts(results, *, kind, more_than=None, at_most=None):
    """ResNet-50's top-label ECE under `kind` (fbgemm) rises by more than, or differs by at most, a limit."""
    cells = harms(results, "ece_top_label", "fp32", f"{kind}-fbgemm")
    found = [cells.get((d, "resnet50"), Entry(f"{title(d)}, ResNet-50", NAN)) for d in results.datasets]
    if more_than is not None:
        return judge(found, low=more_than, unit="signed")
    return judge(found, low=-at_most, high=at_most, unit="signed")


# --- classes and backbones ------------------------------------------------------------------------


def rare_classes(results, backbone="resnet50", named=("akiec", "df", "mel")):
    """On SkinCancer the classes the paper calls rare lose more AUPRC under PTQ than the others."""
    drops = {}
    for dataset in ours(results, "SkinCancer"):
        for klass in results.classes(dataset):
            s = scores(results, "auprc", klass=klass)
            s = s[(s["dataset"] == dataset) & (s["backbone"] == backbone)].set_index("regime")
            ptq = next((r for r in ("ptq-fbgemm", "ptq") if r in s.index), None)
            if ptq and "fp32" in s.index:
                first, second = (entry(results, k, *s.loc[k, ["value", "low", "high"]]) for k in ("fp32", ptq))
                drops[klass] = minus(first, second, class_title(dataset, klass))._replace(label=klass), first.value
    rare, rest = ([v for k, v in drops.items() if (k in named) == keep] for keep in (True, False))
    if len(rare) < len(named) or not rest:
        return judge([])
    mean = [_mean([e for e, _ in group]) for group in (rare, rest)]
    relative = [np.mean([e.value / level for e, level in group]) for group in (rare, rest)]
    found = judge([minus(*mean, "AUPRC lost by AKIEC, DF and MEL beyond the other classes' loss")], low=0)
    return found._replace(
        evidence=f"{found.evidence} As a share of what they had: {100 * relative[0]:.0f} % "
        f"against {100 * relative[1]:.0f} %."
    )


def _mean(entries):
    values = np.array([e.value for e in entries])
    down = math.sqrt(sum((e.value - e.low) ** 2 for e in entries)) / len(entries)
    up = math.sqrt(sum((e.high - e.value) ** 2 for e in entries)) / len(entries)
    return Entry("", values.mean(), values.mean() - down, values.mean() + up)


def hidden_by_average(results):
    """Some INT8 cell loses at most a point of macro ROC-AUC and more than five of a class's AUPRC."""
    found = []
    for regime in [*engines(results, "ptq"), *engines(results, "qat")]:
        kept = [k for k, e in harms(results, "auroc", "fp32", regime).items() if e.high <= CLOSE["auroc"]]
        for klass in dict.fromkeys(c for d in results.datasets for c in results.classes(d)):
            losses = harms(results, "auprc", "fp32", regime, klass=klass)
            found += [
                losses[k]._replace(label=f"{losses[k].label}, {class_title(k[0], klass)}") for k in kept if k in losses
            ]
    return exists(found, above=0.05)


def silent_failures(results):
    """Some INT8 cell keeps accuracy within a point while a class's sensitivity falls by more than five."""
    accuracy = {
        (r["dataset"], r["backbone"], r["regime"]): r["value"] for r in scores(results, "accuracy").to_dict("records")
    }
    members = cache(lambda *key: results.predictions(*key, "fp32")["label"].value_counts())
    found = []
    for row in silent(results).to_dict("records"):
        key = (row["dataset"], row["backbone"])
        if (*key, "fp32") not in accuracy or (*key, row["regime"]) not in accuracy:
            continue
        if abs(accuracy[(*key, row["regime"])] - accuracy[(*key, "fp32")]) <= 0.01:
            label = ", ".join(
                [*(title(row[k]) for k in ("dataset", "backbone", "regime")), class_title(row["dataset"], row["class"])]
            )
            loss = -row["sensitivity_change"]
            classes = results.classes(row["dataset"])
            n = members(*key).get(classes.index(row["class"]), 0) if row["class"] in classes else 0
            half = 1.96 * math.sqrt(max(loss * (1 - loss), 0.01) / n) if n else NAN
            found.append(Entry(label, loss, loss - half, loss + half))
    return exists(found, above=0.05)


def ptq_loss(results, metric="auroc"):
    """Mean loss under PTQ of each backbone over datasets and engines: a Series by backbone."""
    rows = [(b, e.value) for r in engines(results, "ptq") for (_, b), e in harms(results, metric, "fp32", r).items()]
    frame = pd.DataFrame(rows, columns=["backbone", "loss"])
    return frame.groupby("backbone")["loss"].mean()


def robust(results, backbone="resnet50", among=3):
    """`backbone` is among the `among` that lose least ROC-AUC under PTQ."""
    loss = ptq_loss(results)
    if len(loss) < 5 or backbone not in loss:
        return judge([])
    if loss.max() - loss.min() < CLOSE["auroc"]:
        return Finding(OPEN, f"The backbones' losses differ by {100 * (loss.max() - loss.min()):.2f} points only.")
    rank = int(loss.rank()[backbone])
    return Finding(
        SUPPORTED if rank <= among else CONTRADICTED,
        f"{title(backbone)} is number {rank} of {len(loss)}, losing {100 * loss[backbone]:.1f} "
        f"points of ROC-AUC (median of all {100 * loss.median():.1f}).",
        rank,
    )


def most_vulnerable(results, named=VULNERABLE):
    """The named backbones lose most ROC-AUC under PTQ."""
    loss = ptq_loss(results).sort_values(ascending=False)
    if len(loss) < 5 or not set(named) <= set(loss.index):
        return judge([])
    if loss.max() < CLOSE["auroc"]:
        return Finding(OPEN, f"No backbone loses a point under PTQ; the most is {100 * loss.max():.2f}.")
    top = list(loss.index[: len(named)])
    return Finding(
        SUPPORTED if set(top) == set(named) else CONTRADICTED,
        f"Most is lost by {', '.join(f'{title(b)} ({100 * loss[b]:.1f} points)' for b in loss.index[:3])}.",
        loss[list(named)].min(),
    )


# --- latency --------------------------------------------------------------------------------------


def _speedups(results, regime):
    table = speedups(results, batch_size=1, regime=regime)
    table = table[table["baseline"] == "eager"].set_index("backbone")
    if printed(results):  # the paper prints its own speed-ups, from throughputs it does not print
        given = results.ratios[results.ratios["regime"] == regime].set_index("backbone")["speedup"]
        table = pd.DataFrame({"value": given, "low": given, "high": given})
    return table


def faster(results, regime="ptq-fbgemm"):
    """INT8 is faster than FP32 at batch 1 on every backbone."""
    table, note = _speedups(results, regime), ""
    if table.empty and regimes.method(regime) == "qat":
        table, note = _speedups(results, regime.replace("qat", "ptq")), " Timed as PTQ: the same kernels."
    found = judge([_ratio(table, b) for b in results.backbones], low=1, unit="times")
    return found if table.empty else found._replace(evidence=found.evidence + note)


def _ratio(table, backbone):
    if backbone not in table.index:
        return Entry(title(backbone), NAN)
    return Entry(title(backbone), *table.loc[backbone, ["value", "low", "high"]])


def tails(results, low=1.02, high=1.15):
    """p99 over p50 of INT8-PTQ at batch 1 lies between `low` and `high` for every backbone."""
    rows = latency_rows(results, 1, "ptq-fbgemm")
    found = []
    for backbone in results.backbones:
        tail = rows.get(backbone, {}).get("int8_tail")
        found.append(
            entry(results, title(backbone), *(tail[k] for k in ("value", "low", "high")))
            if tail
            else Entry(title(backbone), NAN)
        )
    return judge(found, low=low, high=high, unit="plain")


def tails_alike(results, margin=0.1):
    """Mean p99 over p50 of INT8-PTQ differs from that of FP32 by at most `margin`."""
    rows = latency_rows(results, 1, "ptq-fbgemm")
    change = [
        q["int8_tail"]["value"] - q["fp32_tail"]["value"]
        for q in rows.values()
        if "int8_tail" in q and "fp32_tail" in q
    ]
    return judge([student(results, "INT8 over FP32", change)], low=-margin, high=margin, unit="signed")


def extreme_speedups(results, least="efficientnet_b0", most="densenet121"):
    """The smallest and the greatest speed-up belong to the named backbones."""
    table = _speedups(results, "ptq-fbgemm")
    if len(table) < 3 or not {least, most} <= set(table.index):
        return judge([])
    first, last = table["value"].idxmin(), table["value"].idxmax()
    evidence = (
        f"From {table.loc[first, 'value']:.2f}× ({title(first)}) to {table.loc[last, 'value']:.2f}× ({title(last)})."
    )
    if (first, last) == (least, most):
        return Finding(SUPPORTED, evidence, table.loc[last, "value"], table.loc[last, "low"], table.loc[last, "high"])
    beaten = (table.loc[first, "high"] < table.loc[least, "low"], table.loc[last, "low"] > table.loc[most, "high"])
    return Finding(CONTRADICTED if any(beaten) else OPEN, evidence, table.loc[most, "value"])


def speedups_differ(results, factor=2):
    """The greatest speed-up is at least `factor` times the smallest."""
    table = _speedups(results, "ptq-fbgemm")
    if len(table) < 2:
        return judge([])
    most, least = table.loc[table["value"].idxmax()], table.loc[table["value"].idxmin()]
    return judge(
        [
            Entry(
                "greatest over smallest",
                most["value"] / least["value"],
                most["low"] / least["high"],
                most["high"] / least["low"],
            )
        ],
        low=factor,
        unit="times",
    )


def larger_gain_more(results):
    """Speed-ups rise with the FP32 latency of the backbone (rank correlation above 0)."""
    rows = {b: q["fp32_p50"]["value"] for b, q in latency_rows(results, 1, "ptq-fbgemm").items() if "fp32_p50" in q}
    found = rank_correlation(
        pd.Series(rows, dtype=float),
        _speedups(results, "ptq-fbgemm")["value"],
        "rank correlation of FP32 latency and speed-up",
    )
    return judge([found], low=0, unit="signed")


def vulnerable_gain_least(results, named=VULNERABLE):
    """The named backbones, which PTQ is said to harm most, have the smallest speed-ups."""
    table = _speedups(results, "ptq-fbgemm")["value"].sort_values()
    if len(table) < 5 or not set(named) <= set(table.index):
        return judge([])
    slowest = ", ".join(f"{title(b)} {table[b]:.2f}×" for b in table.index[:3])
    same = set(table.index[: len(named)]) == set(named)
    link = rank_correlation(ptq_loss(results), table, "rank correlation of PTQ loss and speed-up")
    words = "" if math.isnan(link.value) else f" Rank correlation of PTQ loss and speed-up {link.value:+.2f}."
    return Finding(
        SUPPORTED if same else CONTRADICTED, f"The smallest speed-ups: {slowest}.{words}", table[list(named)].max()
    )


def neither_gain_nor_reliability(results, named=VULNERABLE):
    """Each named backbone gains less than 1.5 times and loses over two points of AUPRC everywhere."""
    table = _speedups(results, "ptq-fbgemm")
    cells = harms(results, "auprc", "fp32", "ptq-fbgemm")
    losses = [cells.get((d, b), Entry(f"{title(d)}, {title(b)}", NAN)) for b in named for d in results.datasets]
    return both(judge([_ratio(table, b) for b in named], high=1.5, unit="times"), judge(losses, low=CLOSE["auprc"]))


def sizes_shrink(results, published, margin=0.05):
    """FP32 over INT8 size on disk matches Table 4 within `margin` for each backbone."""
    paper = published.ratios.set_index("backbone")["size_ratio"]
    rows = latency_rows(results, 1, "ptq-fbgemm")
    found = []
    for backbone in results.backbones:
        measured = rows.get(backbone, {}).get("size_ratio", {}).get("value", NAN)
        mine = paper.get(backbone) if printed(results) else measured
        off = NAN if mine is None or backbone not in paper else mine - paper[backbone]
        found.append(Entry(title(backbone), off, off, off))
    return judge(found, low=-margin, high=margin, unit="signed")


def engine_throughput(results, kind, *, low=-math.inf, high=math.inf, over="fbgemm", under="qnnpack"):
    """Throughput under one engine over that under the other at batch 32, within a family (its median)."""
    found = []
    table = results.latency[(results.latency["batch_size"] == 32) & results.latency["device"].isin(["cpu", ""])]
    for dataset in [""] if (table["dataset"] == "").all() else results.datasets:
        t = table[table["dataset"] == dataset]
        t = t[t["backbone"].isin([kind, *(b for b in results.backbones if family(b) == kind)])]
        wide = t.pivot_table(index="backbone", columns="regime", values="throughput")
        if not {f"ptq-{over}", f"ptq-{under}"} <= set(wide.columns):
            found.append(Entry(title(dataset) or "all datasets", NAN))
            continue
        ratio = (wide[f"ptq-{over}"] / wide[f"ptq-{under}"]).dropna()
        log = student(results, "", np.log(ratio))
        bounds = (math.exp(log.low), math.exp(log.high)) if len(ratio) > 2 else (ratio.min(), ratio.max())
        found.append(entry(results, title(dataset) or "all datasets", math.exp(np.log(ratio).mean()), *bounds))
    return judge(found, low=low, high=high, unit="times")


def conversion(results, regimes, kind=None, *, high):
    """Seconds to convert, of every timed backbone of a family under these regimes, are at most `high`."""
    t = results.latency[results.latency["regime"].isin(regimes) & results.latency["convert_seconds"].notna()]
    t = t.drop_duplicates(["dataset", "backbone", "regime"])
    rows = [
        r
        for r in t.to_dict("records")
        if kind is None
        or r["backbone"] == kind
        or family(r["backbone"]) == kind
        and r["backbone"] not in ("cnn", "transformer")
    ]
    return judge(
        [
            Entry(
                " ".join(filter(None, (title(r["dataset"]), title(r["backbone"]), title(r["regime"])))),
                r["convert_seconds"],
                r["convert_seconds"],
                r["convert_seconds"],
            )
            for r in rows
        ],
        high=high,
        unit="seconds",
    )


def calibration_dominates(results, factor=10):
    """Converting a CNN by PTQ takes at least `factor` times what converting a transformer takes (medians)."""
    t = results.latency[results.latency["regime"].isin(regimes.of("ptq")) & results.latency["convert_seconds"].notna()]
    kinds = [b if b in ("cnn", "transformer") else family(b) for b in t["backbone"]]
    seconds = t.assign(kind=kinds).groupby("kind")["convert_seconds"].median()
    if not {"cnn", "transformer"} <= set(seconds.index):
        return judge([])
    ratio = seconds["cnn"] / seconds["transformer"]
    found = judge([Entry("CNN over transformer", ratio, ratio, ratio)], low=factor, unit="times")
    return found._replace(
        evidence=f"{found.evidence} Medians {seconds['cnn']:.2f} s and {seconds['transformer']:.2f} s."
    )


def fp16_on_gpu(results):
    """FP16 is faster than FP32 on a GPU, on every backbone timed there."""
    t = timings(results, 32, device="cuda")
    t = t[t["backbone"].isin(results.latency.loc[results.latency["device"] == "cuda", "backbone"])]
    wide = t.pivot(index="backbone", columns="regime", values="p50_ms")
    if not {"fp32", "fp16"} <= set(wide.columns):
        return Finding(OPEN, "No GPU was timed.")
    ratio = (wide["fp32"] / wide["fp16"]).dropna()
    return judge([Entry(title(b), v, v, v) for b, v in ratio.items()], low=1, unit="times")


def fp16_memory(results, at_least=1.9):
    """Stored FP16 models are about half the size of FP32's."""
    size = results.latency.pivot_table(index="backbone", columns="regime", values="size_mb", aggfunc="median")
    if not {"fp32", "fp16"} <= set(size.columns):
        return judge([])
    ratio = (size["fp32"] / size["fp16"]).dropna()
    return judge([Entry(title(b), v, v, v) for b, v in ratio.items()], low=at_least, unit="times")


# --- paired bootstrap -----------------------------------------------------------------------------


def significant(results, first, second, *, better):
    """Pooled paired bootstrap of AUPRC: `better` is "first" or "second" (p < 0.05), or None (p >= 0.05)."""
    b = results.bootstrap
    b = b[(b["metric"] == "auprc") & (b["backbone"] == "all")].set_index(["dataset", "method_a", "method_b"])
    held, words, decisive = [], [], []
    for dataset in results.datasets:
        for engine in ("fbgemm", "qnnpack"):
            key = (dataset, *(k if k == "fp32" else f"{k}-{engine}" for k in (first, second)))
            if key not in b.index:
                words.append(f"{title(dataset)}, {engine.upper()} missing")
                continue
            r = b.loc[key]
            sign = {"first": 1, "second": -1, None: 1}[better]
            ok = r["p_value"] >= 0.05 if better is None else r["p_value"] < 0.05 and sign * r["delta_pp"] > 0
            held.append(bool(ok))
            decisive.append((ok, abs(r["delta_pp"]), r))
            p = [f"= {r[k]:.2g}" if r[k] > 0 else f"< {1 / r['n_resamples']:.2g}" for k in ("p_value", "p_holm")]
            words.append(f"{title(dataset)}, {engine.upper()} {r['delta_pp']:+.2f} points (p {p[0]}, Holm {p[1]})")
    if not held:
        return judge([])
    complete = len(held) == len(words)
    verdict = CONTRADICTED if not all(held) else SUPPORTED if complete else OPEN
    r = min(decisive, key=lambda d: (d[0], d[1] if better else -d[1]))[2]
    return Finding(verdict, "; ".join(words) + ".", r["delta_pp"] / 100, r["low_pp"] / 100, r["high_pp"] / 100)


# --- calibration size -----------------------------------------------------------------------------


def _sweep(results, datasets, backbones):
    data = calibration_data(results)
    return {
        (d, b): part.sort_values("n_calibration")
        for (d, b), part in data.groupby(["dataset", "backbone"])
        if d in datasets and b in backbones
    }


def insensitive(results, *, tolerance=0.02, floor=0.95):
    """ResNets on BrainMRI and ChestXray: AUPRC never below `floor`, moving by at most `tolerance`."""
    names = ours(results, "BrainMRI", "ChestXray")
    curves = _sweep(results, names, ("resnet18", "resnet50"))
    if not curves:
        return judge([])
    lowest, moved = [], []
    for (d, b), c in curves.items():
        half = 2 * c["std"].fillna(0).max() / math.sqrt(max(1, c["n"].min()))
        span, least, label = c["mean"].max() - c["mean"].min(), c["mean"].min(), f"{title(d)}, {title(b)}"
        lowest.append(Entry(label, least, least - half, least + half))
        moved.append(Entry(label, span, max(0.0, span - 2 * half), span))
    return both(judge(lowest, low=floor, unit="plain"), judge(moved, high=tolerance))


def dynamic_has_no_calibration(results):
    """Swin-T and ViT-B: dynamic quantization uses no calibration images, so their flat lines say nothing."""
    names = [title(b) for b in results.backbones if family(b) == "transformer"]
    return Finding(
        OPEN,
        f"{' and '.join(names) or 'Transformers'} are quantized dynamically and use no "
        "calibration images: a flat line would not be a finding.",
    )


def sweep_skin_lower(results):
    """At every calibration size each backbone's AUPRC on SkinCancer lies below that on the other datasets."""
    skin, rest = ours(results, "SkinCancer"), ours(results, "BrainMRI", "ChestXray")
    curves = _sweep(results, [*skin, *rest], results.backbones)
    found = []
    for (d, b), low in curves.items():
        for other in rest:
            if d in skin and (other, b) in curves:
                gap = np.subtract(*(c.set_index("n_calibration")["mean"] for c in (curves[other, b], low)))
                spread = 2 * math.hypot(
                    *(c["std"].fillna(0).mean() / math.sqrt(max(1, c["n"].min())) for c in (low, curves[other, b]))
                )
                found.append(
                    Entry(
                        f"{title(b)}, {title(other)} above {title(d)}",
                        gap.min(),
                        gap.min() - spread,
                        gap.min() + spread,
                    )
                )
    return judge(found, low=0)


def sweep_wider(results, wide, narrow, label):
    """The mean band (standard deviation) of one group of curves is wider than that of another."""
    first, second = (np.array([c["std"].mean() for c in g.values()]) for g in (wide, narrow))
    if not len(first) or not len(second) or np.isnan([*first, *second]).any() or second.mean() == 0:
        return judge([])
    draws = np.random.default_rng(42)
    means_ = [draws.choice(g, (2000, len(g))).mean(1) for g in (first, second)]
    low, high = np.quantile(means_[0] / np.maximum(means_[1], 1e-12), [0.025, 0.975])
    return judge([Entry(label, first.mean() / second.mean(), low, high)], low=1, unit="times")


def skin_bands_wider(results):
    """Bands of Figure 4 are wider on SkinCancer than on the other two."""
    skin, rest = (
        _sweep(results, ours(results, *names), results.backbones)
        for names in (("SkinCancer",), ("BrainMRI", "ChestXray"))
    )
    return sweep_wider(results, skin, rest, "band on SkinCancer over the others'")


def small_sets_vary_more(results):
    """On SkinCancer the bands are wider with fewer than 128 calibration images than with more."""
    curves = _sweep(results, ours(results, "SkinCancer"), results.backbones)
    parts = [
        {k: c[keep(c["n_calibration"])] for k, c in curves.items()} for keep in (lambda n: n < 128, lambda n: n >= 128)
    ]
    return sweep_wider(results, *parts, "band below 128 images over that above")


def light_models_vary_more(results, light=("mobilenetv2", "convnext_tiny", "efficientnet_b0")):
    """On ChestXray and SkinCancer the bands of the light models are wider than those of the other CNNs."""
    curves = _sweep(results, ours(results, "ChestXray", "SkinCancer"), results.backbones)
    parts = [{k: c for k, c in curves.items() if (k[1] in light) == keep} for keep in (True, False)]
    return sweep_wider(results, *parts, "band of MobileNetV2, ConvNeXt-T and EfficientNet-B0 over the others'")


def not_monotonic(results, light=("mobilenetv2", "convnext_tiny", "efficientnet_b0")):
    """Some curve of the light models falls somewhere as calibration images are added."""
    curves = _sweep(results, results.datasets, light)
    if not curves:
        return judge([])
    falling = [k for k, c in curves.items() if (c["mean"].diff() < -1e-9).any()]
    return Finding(
        SUPPORTED if falling else CONTRADICTED, f"{len(falling)} of {len(curves)} curves fall somewhere.", len(falling)
    )


def few_hundred_suffice(results, start=256, margin=0.01):
    """From `start` calibration images on, AUPRC on BrainMRI and ChestXray gains at most `margin`."""
    found = []
    for (d, b), c in _sweep(results, ours(results, "BrainMRI", "ChestXray"), results.backbones).items():
        c = c[c["n_calibration"] >= start]
        if len(c) > 1:
            gain = c["mean"].iloc[-1] - c["mean"].iloc[0]
            half = 2 * math.hypot(*(c["std"].fillna(0).iloc[k] / math.sqrt(c["n"].iloc[k]) for k in (0, -1)))
            found.append(Entry(f"{title(d)}, {title(b)}", gain, gain - half, gain + half))
    return judge(found, high=margin)


# --- other frameworks -----------------------------------------------------------------------------


def other_frameworks(results):
    """Other INT8 runtimes lose Brier too, tested only where PyTorch's own PTQ loses more than `LARGE`."""
    peers = results.peers[results.peers["batch_size"] == results.peers["batch_size"].min()]
    foreign = peers[~peers["runtime"].str.startswith(("pytorch", "inductor"))]
    if foreign.empty:
        return Finding(OPEN, "No other runtime was measured.")
    found = []
    for (dataset, runtime), rows in foreign.groupby(["dataset", "runtime"]):
        wide = rows.pivot_table(index="backbone", columns="precision", values="brier")
        native = paired(results, "brier", "fp32", "ptq-fbgemm", dataset)
        native = native["b"] - native["a"]
        if {"fp32", "int8"} <= set(wide.columns):
            lost = (wide["int8"] - wide["fp32"]).dropna()
            lost = lost[lost.index.isin(native.index[native > LARGE["brier"]])]
            if len(lost):
                found.append(student(results, f"{title(dataset)}, {runtime}", lost))
    if not found:
        return Finding(OPEN, "PyTorch's own PTQ loses too little here for a comparison.")
    return judge(found, low=LARGE["brier"] / 2, unit="signed")
