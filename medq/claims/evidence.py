"""What a verdict rests on: differences with intervals from a result folder, and the rules that judge them.

Two rules keep the error rate of a verdict at 5 % however many numbers it looks at. "All lie within" is supported if every
95 % interval lies within (an intersection-union test, which needs no correction) and contradicted if one lies outside
at Bonferroni's level for that many looks; "one lies above" mirrors it. Where several such findings must all hold, each
is contradicted at the level corrected for the number of `parts`, too.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from medq.advise import incompetent
from medq.regimes import INT8, PAPER_ENGINES
from medq.results import LOWER_IS_BETTER, counterpart, means, published, scores, title
from medq.changes import paired

SUPPORTED, CONTRADICTED, OPEN = "supported", "contradicted", "not testable"
OUTSIDE = "outside this protocol's reach"
MOST = 5  # of the paper's eight backbones
NAN = math.nan
MISSING = "These results do not hold the numbers that this needs."
UNITS = {  # name: factor, format, unit
    "points": (100, "{:+.1f}", " points"),
    "plain": (1, "{:.3f}", ""),
    "signed": (1, "{:+.3f}", ""),
    "times": (1, "{:.2f}", "×"),
    "seconds": (1, "{:.2f}", " s"),
}


class Entry(NamedTuple):
    """One number of the evidence with its 95 % interval, NaN where there is none.

    `df`: degrees of freedom of the spread that the interval rests on.
    """

    label: str
    value: float
    low: float = NAN
    high: float = NAN
    df: float = math.inf

    def at(self, looks):
        """The entry with its interval at Bonferroni's level for so many looks, scaled as that of Student's t.

        For values, whose intervals are symmetric on another scale, this is an approximation.
        """
        reach = float(stdtrit(self.df, 1 - 0.025 / max(looks, 1)) / stdtrit(self.df, 0.975))
        low, high = (self.value + reach * (end - self.value) for end in (self.low, self.high))
        return self._replace(low=low, high=high)


class Finding(NamedTuple):
    """A verdict, its evidence in words, and the number that decides it, with its interval."""

    verdict: str
    evidence: str
    value: float = NAN
    low: float = NAN
    high: float = NAN


def is_published(results):
    """True for transcribed numbers, which carry no interval and are taken as exact."""
    return "source" in results.provenance


def entry(results, label, value, low=NAN, high=NAN):
    """An Entry; a published number is its own interval."""
    if math.isnan(low) and is_published(results):
        low = high = value
    return Entry(label, float(value), float(low), float(high))


# --- rules ----------------------------------------------------------------------------------------


def judge(entries, *, low=-math.inf, high=math.inf, unit="points", parts=1):
    """Do all true values lie in [low, high]?

    Supported: every interval lies inside. Contradicted: one lies outside at the level corrected for the number of
    entries times `parts`. Otherwise, and where an entry is missing, not testable. The number reported is the one furthest
    outside, or nearest to the limits.
    """
    known = [e for e in entries if not math.isnan(e.value)]
    if not known:
        return Finding(OPEN, MISSING)
    outside = [e for e in known if (c := e.at(parts * len(known))).high < low or c.low > high]
    inside = [e for e in known if e.low >= low and e.high <= high]
    verdict = CONTRADICTED if outside else SUPPORTED if len(inside) == len(entries) else OPEN
    worst = min(outside or known, key=lambda e: min(e.value - low, high - e.value))
    absent = [e.label for e in entries if math.isnan(e.value)]
    text = "; ".join(_text(e, unit) for e in known)
    if len(known) > 6:
        factor, form, suffix = UNITS[unit]
        least, most = (form.format(factor * end(e.value for e in known)) for end in (min, max))
        text = f"{len(known)} values from {least} to {most}{suffix}, decisive: {_text(worst, unit)}"
    text += f"; missing: {' / '.join(absent)}." if absent else "."
    return Finding(verdict, text, *worst[1:4])


def exists(entries, *, above, unit="points", parts=1):
    """Does one true value lie above a limit? Supported at the level corrected for the number of entries.

    Contradicted only if every interval lies below, at the level corrected for `parts`.
    """
    known = [e for e in entries if not math.isnan(e.value)]
    if not known:
        return Finding(OPEN, MISSING)
    best = max(known, key=lambda e: (e.at(len(known)).low > above, e.value))
    none = all(e.at(parts).high < above for e in known)
    verdict = SUPPORTED if best.at(len(known)).low > above else CONTRADICTED if none else OPEN
    return Finding(verdict, f"Of {len(known)} cases, {_text(best, unit)}.", *best[1:4])


def _text(e, unit):
    factor, form, suffix = UNITS[unit]
    value, low, high = (form.format(factor * v) for v in e[1:4])
    return f"{e.label} {value}{suffix}" + ("" if math.isnan(e.low) or e.low == e.high else f" ({low} to {high})")


def both(*findings):
    """All parts of a claim together: contradicted if one part is, supported only if all are; no part: not testable."""
    verdicts = [f.verdict for f in findings]
    verdict = CONTRADICTED if CONTRADICTED in verdicts else OPEN if OPEN in verdicts else SUPPORTED
    decisive = next((f for f in findings if f.verdict == verdict), Finding(OPEN, MISSING))
    evidence = " ".join(dict.fromkeys(f.evidence for f in findings)) or MISSING
    return decisive._replace(evidence=evidence)


# --- which results --------------------------------------------------------------------------------


def ours(results, names=()):
    """Our datasets that stand for the paper's `names`, or all; a name without a counterpart is kept."""
    found = {n: [d for d in results.datasets if counterpart(d) == n] for n in names}
    return [d for n in names for d in (found[n] or [n])] if names else results.datasets


def regimes(results, kind):
    """`ptq` or `qat`: its regimes in these results, one per engine; `int8`: both; any other name is a regime itself."""
    if kind == "int8":
        return regimes(results, "ptq") + regimes(results, "qat")
    if kind not in ("ptq", "qat"):
        return [kind]
    return [r for e in PAPER_ENGINES if (r := f"{kind}-{e}") in results.regimes] or [f"{kind}-fbgemm"]


def backbones(results):
    """Those of the paper's backbones that these results have, or all of theirs where they have none."""
    return [b for b in results.backbones if b in published().backbones] or results.backbones


# --- differences ----------------------------------------------------------------------------------


def harm(results, metric, a, b, dataset, *, backbone="all", form="converted"):
    """How much worse `b` is than `a` in a metric: an Entry, positive if worse, with the paired bootstrap's interval.

    `backbone="all"` pools over backbones. `form` chooses among INT8 models; `a` and `b` may also name a form themselves
    (`ptq-fbgemm.fake-quant`). Without a stored bootstrap there is a value, but no interval.
    """
    names = [title(n) for n in (dataset, backbone, b.removesuffix(".fake-quant")) if n != "all"]
    a, b = (f"{r}.fake-quant" if form == "fake-quant" and r in INT8 else r for r in (a, b))
    worse, better = (b, a) if metric in LOWER_IS_BETTER else (a, b)
    row = paired(results, metric, worse, better, dataset, backbone)
    if row is not None:
        df = row["trainings"] - 1 if row["trainings"] > 1 else math.inf
        return Entry(", ".join(names), row["value"], row["low"], row["high"], df)
    value = _value(results, metric, worse, dataset, backbone) - _value(results, metric, better, dataset, backbone)
    return entry(results, ", ".join(names), value)


def _value(results, metric, method, dataset, backbone):
    regime, _, form = method.partition(".")
    table = (means if backbone == "all" else scores)(results, metric, form=form or "converted")
    if table.empty and backbone == "all" and is_published(results) and regime in INT8:
        table = means(results, metric, form="fake-quant")
    keep = (table["dataset"] == dataset) & (table["regime"] == regime)
    rows = table[keep if backbone == "all" else keep & (table["backbone"] == backbone)]
    return float(rows["value"].iloc[0]) if len(rows) else NAN


def harms(results, metric, kind):
    """`harm` against FP32 of each cell of competent models: {(dataset, backbone, regime): Entry}."""
    found = {}
    for dataset in results.datasets:
        for backbone in backbones(results):
            for regime in () if incompetent(results, dataset, backbone) else regimes(results, kind):
                e = harm(results, metric, "fp32", regime, dataset, backbone=backbone)
                if not math.isnan(e.value):
                    found[dataset, backbone, regime] = e
    return found


def contrast(lost, left, change, share, label):
    """left - share x lost, of two differences from one reference whose own difference `change` = left - lost is known.

    The three intervals determine the covariance, so that this is exact for jointly normal estimates; NaN ends stay.
    """
    variance = [((e.high - e.low) / 2 / 1.96) ** 2 for e in (lost, left, change)]
    covariance = (variance[0] + variance[1] - variance[2]) / 2
    half = 1.96 * math.sqrt(max(0.0, variance[1] + share**2 * variance[0] - 2 * share * covariance))
    return around(label, left.value - share * lost.value, half, min(lost.df, left.df, change.df))


def minus(first, second, label):
    """Difference of two independent entries."""
    value = first.value - second.value
    down = math.hypot(first.value - first.low, second.high - second.value)
    up = math.hypot(first.high - first.value, second.value - second.low)
    return Entry(label, value, value - down, value + up, min(first.df, second.df))


def around(label, value, half, df=math.inf):
    """An Entry with a symmetric interval."""
    return Entry(label, float(value), float(value - half), float(value + half), float(df))


def mean(entries, label="", *, same_images=False):
    """Mean of independent entries, or of those of the same images: their errors may be one, so that the ends are averaged."""
    value, low, high = np.mean([e[1:4] for e in entries], axis=0)
    df = min(e.df for e in entries)
    if not same_images:
        down, up = (math.sqrt(sum((e.value - e[i]) ** 2 for e in entries)) / len(entries) for i in (2, 3))
        low, high = value - down, value + up
    return Entry(label, float(value), float(low), float(high), df)


def student(results, label, values):
    """Mean of differences with Student's 95 % interval; no interval from fewer than two."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return entry(results, label, values.mean()) if len(values) else Entry(label, NAN)
    return around(label, values.mean(), *welch_half((values.var(ddof=1) / len(values), len(values))))


def welch_half(*parts):
    """(half of Welch's 95 % interval, degrees of freedom) of a difference of means, or (Student's) of one mean.

    `parts`: of each mean its variance and the number of values that it is of.
    """
    total = sum(variance for variance, _ in parts)
    df = total**2 / max(sum(variance**2 / max(n - 1, 1) for variance, n in parts), 1e-300)
    return stdtrit(max(df, 1.0), 0.975) * math.sqrt(total), max(df, 1.0)


def welch(label, first, second):
    """Ratio of the geometric means of two samples with Welch's 95 % interval; NaN from fewer than two values."""
    a, b = np.log(first), np.log(second)
    if min(len(a), len(b)) < 2:
        return Entry(label, NAN)
    half = welch_half(*((x.var(ddof=1) / len(x), len(x)) for x in (a, b)))
    return exponential(around(label, a.mean() - b.mean(), *half))


def exponential(entry):
    """The Entry of a ratio from that of its logarithm."""
    return Entry(entry.label, *map(math.exp, entry[1:4]), entry.df)


def newcombe(hits_a, hits_b, n):
    """Difference of two proportions of n with Newcombe's (1998, method 10) 95 % interval: (value, low, high).

    Wilson intervals of both, combined as if independent: too wide, not too narrow, for the same images.
    """
    z2, wilson = 1.96**2, []
    for p in (hits_a / n, hits_b / n):
        half = 1.96 * math.sqrt(p * (1 - p) / n + z2 / 4 / n**2)
        wilson.append(Entry("", p, *((p + z2 / 2 / n + side * half) / (1 + z2 / n) for side in (-1, 1))))
    return minus(*wilson, "")[1:4]


def spread_ratio(results, label, cell, reference):
    """Standard deviation of ROC-AUC between backbones in one (dataset, regime) over that in another.

    It has no interval: each one tried misses the true ratio far too often where a backbone may collapse (page *Metrics*).
    """
    s = scores(results, "auroc")
    x, y = (s[(s["dataset"] == d) & (s["regime"] == r)]["value"] for d, r in (cell, reference))
    if min(len(x), len(y)) < 3 or y.std() == 0:
        return Entry(label, NAN)
    return entry(results, label, x.std() / y.std())


def rank_correlation(x, y, label):
    """Spearman's rank correlation of two Series over their common index, with Fisher's 95 % interval; NaN for fewer than 8."""
    common = x.dropna().index.intersection(y.dropna().index)
    if len(common) < 8:
        return Entry(label, NAN)
    rho = float(np.corrcoef(x[common].rank(), y[common].rank())[0, 1])
    z, half = math.atanh(max(-0.999, min(0.999, rho))), 1.96 * math.sqrt(1.06 / (len(common) - 3))
    return Entry(label, rho, math.tanh(z - half), math.tanh(z + half))
