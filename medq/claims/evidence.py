"""What a verdict rests on: differences with intervals from a result folder, and the rules that judge them.

Two rules keep the error rate of a verdict at 5 % however many numbers it looks at. "All lie within" is supported if every
95 % interval lies within (an intersection-union test, which needs no correction) and contradicted if one lies outside
at Bonferroni's level for that many looks; "one lies above" mirrors it.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import fdtri, ndtri, stdtrit

from medq.advise import incompetent
from medq.regimes import ENGINES, INT8
from medq.results import LOWER_IS_BETTER, counterpart, means, scores, title

SUPPORTED, CONTRADICTED, OPEN = "supported", "contradicted", "not testable"
OUTSIDE = "outside this protocol's reach"
NAN = math.nan
MISSING = "These results do not hold the numbers that this needs."
UNITS = {  # name: how a number is written, and its unit
    "points": (lambda v: f"{100 * v:+.1f}", " points"),
    "plain": (lambda v: f"{v:.3f}", ""),
    "signed": (lambda v: f"{v:+.3f}", ""),
    "times": (lambda v: f"{v:.2f}", "×"),
    "seconds": (lambda v: f"{v:.2f}", " s"),
}
UNIT = dict.fromkeys(("auroc", "auprc", "accuracy"), "points") | dict.fromkeys(("ece", "brier", "nll"), "signed")


class Entry(NamedTuple):
    """One number of the evidence with its 95 % interval, NaN where there is none."""

    label: str
    value: float
    low: float = NAN
    high: float = NAN

    def at(self, looks):
        """The entry with its interval at Bonferroni's level for so many looks, scaled as that of a normal variable."""
        reach = float(ndtri(1 - 0.025 / max(looks, 1)) / ndtri(0.975))
        return self._replace(
            low=self.value - reach * (self.value - self.low), high=self.value + reach * (self.high - self.value)
        )


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


def judge(entries, *, low=-math.inf, high=math.inf, unit="points"):
    """Do all true values lie in [low, high]?

    Supported: every interval lies inside. Contradicted: one lies outside at the level corrected for the number of
    entries. Otherwise, and where an entry is missing, not testable. The number reported is the one furthest outside,
    or nearest to the limits.
    """
    known = [e for e in entries if not math.isnan(e.value)]
    if not known:
        return Finding(OPEN, MISSING)
    outside = [e for e in known if (c := e.at(len(known))).high < low or c.low > high]
    inside = [e for e in known if e.low >= low and e.high <= high]
    verdict = CONTRADICTED if outside else SUPPORTED if len(inside) == len(entries) else OPEN
    worst = min(outside or known, key=lambda e: min(e.value - low, high - e.value))
    absent = [e.label for e in entries if math.isnan(e.value)]
    return Finding(verdict, _words(known, worst, absent, unit), *worst[1:])


def exists(entries, *, above, unit="points"):
    """Does one true value lie above a limit? Supported at the level corrected for the number of entries.

    Contradicted only if every interval lies below.
    """
    known = [e for e in entries if not math.isnan(e.value)]
    if not known:
        return Finding(OPEN, MISSING)
    best = max(known, key=lambda e: (e.at(len(known)).low > above, e.value))
    none = all(e.high < above for e in known)
    verdict = SUPPORTED if best.at(len(known)).low > above else CONTRADICTED if none else OPEN
    return Finding(verdict, f"Of {len(known)} cases, {_words([best], best, [], unit)}", *best[1:])


def _words(known, worst, absent, unit):
    form, suffix = UNITS[unit]

    def one(e):
        bounds = "" if math.isnan(e.low) or e.low == e.high else f" ({form(e.low)} to {form(e.high)})"
        return f"{e.label} {form(e.value)}{suffix}{bounds}"

    extremes = (form(f(e.value for e in known)) for f in (min, max))
    text = "; ".join(map(one, known))
    if len(known) > 6:
        text = f"{len(known)} values from {' to '.join(extremes)}{suffix}, decisive: {one(worst)}"
    return text + (f"; missing: {' / '.join(absent)}" if absent else "") + "."


def both(*findings):
    """All parts of a claim together: contradicted if one part is, supported only if all are."""
    verdicts = [f.verdict for f in findings]
    verdict = CONTRADICTED if CONTRADICTED in verdicts else OPEN if OPEN in verdicts else SUPPORTED
    decisive = next((f for f in findings if f.verdict == verdict), findings[0])
    return Finding(verdict, " ".join(dict.fromkeys(f.evidence for f in findings)), *decisive[2:])


# --- which results --------------------------------------------------------------------------------


def ours(results, *names):
    """Our datasets that stand for the paper's `names`, or all; a name without a counterpart is kept."""
    if not names:
        return results.datasets
    found = {n: [d for d in results.datasets if counterpart(d) == n] for n in names}
    return [d for n in names for d in (found[n] or [n])]


def regimes(results, kind):
    """`ptq` or `qat`: its regimes in these results, one per engine; `int8`: both; any other name is a regime itself."""
    if kind == "int8":
        return regimes(results, "ptq") + regimes(results, "qat")
    if kind not in ("ptq", "qat"):
        return [kind]
    return [r for e in ENGINES if (r := f"{kind}-{e}") in results.regimes] or [f"{kind}-fbgemm"]


def competent(results, dataset, backbone):
    """Whether FP32 is better than chance; what is below that floor is no evidence of a loss."""
    return not incompetent(results, dataset, backbone)


# --- differences ----------------------------------------------------------------------------------


def harm(results, metric, a, b, dataset, *, backbone="all", form="converted"):
    """How much worse `b` is than `a` in a metric: an Entry, positive if worse, with the paired bootstrap's interval.

    `backbone="all"` pools over backbones. `form` chooses among INT8 models; `a` and `b` may also name a form themselves
    (`ptq-fbgemm.fake-quant`). Without a stored bootstrap there is a value, but no interval.
    """
    backbone_label = "" if backbone == "all" else f"{title(backbone)}, "
    label = f"{title(dataset)}, {backbone_label}{title(b.removesuffix('.fake-quant'))}"
    sign = 1 if metric in LOWER_IS_BETTER else -1
    a, b = (r + ".fake-quant" if form == "fake-quant" and r in INT8 else r for r in (a, b))
    row = stored(results, metric, b, a, dataset, backbone)
    if row is not None:
        value, low, high = (row[c] / 100 for c in ("delta_pp", "low_pp", "high_pp"))
        return Entry(label, *((value, low, high) if sign > 0 else (-value, -high, -low)))
    values = [_value(results, metric, r, dataset, backbone) for r in (a, b)]
    return entry(results, label, sign * (values[1] - values[0]))


def stored(results, metric, a, b, dataset, backbone="all"):
    """The row of bootstrap.csv of `a` minus `b` as a dict, turned round where `b` minus `a` is stored, or None."""
    rows = vars(results).setdefault("_bootstrap_rows", {})
    if not rows:
        keys = ["metric", "dataset", "backbone", "method_a", "method_b"]
        table = results.bootstrap
        numbers = [c for c in table if c not in keys]
        values = (dict(zip(numbers, row)) for row in zip(*(table[c].tolist() for c in numbers)))
        rows.update(zip(zip(*(table[c].tolist() for c in keys)), values))
    row = rows.get((metric, dataset, backbone, a, b))
    if row is None and (r := rows.get((metric, dataset, backbone, b, a))) is not None:
        return r | {"delta_pp": -r["delta_pp"], "low_pp": -r["high_pp"], "high_pp": -r["low_pp"]}
    return row


def _value(results, metric, method, dataset, backbone):
    regime, _, form = method.partition(".")
    table = (means if backbone == "all" else scores)(results, metric, form=form or "converted")
    if is_published(results) and regime in INT8 and backbone == "all":
        table = means(results, metric, form="fake-quant") if table.empty else table
    rows = table[(table["dataset"] == dataset) & (table["regime"] == regime)]
    rows = rows if backbone == "all" else rows[rows["backbone"] == backbone]
    return float(rows["value"].iloc[0]) if len(rows) else NAN


def harms(results, metric, kind, *, reference="fp32", form="converted", floor=True):
    """`harm` of each cell: {(dataset, backbone, regime): Entry}; with `floor`, of competent models alone."""
    found = {}
    for dataset in results.datasets:
        for backbone in results.backbones:
            for regime in regimes(results, kind):
                e = harm(results, metric, reference, regime, dataset, backbone=backbone, form=form)
                if not math.isnan(e.value) and (not floor or competent(results, dataset, backbone)):
                    found[dataset, backbone, regime] = e
    return found


def contrast(lost, left, change, share, label):
    """left - share x lost, of two differences from one reference whose own difference `change` = left - lost is known.

    The three intervals determine the covariance, so that this is exact for jointly normal estimates; NaN ends stay.
    """
    variance = [((e.high - e.low) / 2 / 1.96) ** 2 for e in (lost, left, change)]
    covariance = (variance[0] + variance[1] - variance[2]) / 2
    half = 1.96 * math.sqrt(max(0.0, variance[1] + share**2 * variance[0] - 2 * share * covariance))
    value = left.value - share * lost.value
    return Entry(label, value, value - half, value + half)


def minus(first, second, label):
    """Difference of two independent entries."""
    value = first.value - second.value
    down = math.hypot(first.value - first.low, second.high - second.value)
    up = math.hypot(first.high - first.value, second.value - second.low)
    return Entry(label, value, value - down, value + up)


def mean(entries, label=""):
    """Mean of independent entries."""
    value, n = np.mean([e.value for e in entries]), len(entries)
    down, up = (math.sqrt(sum((e.value - e[i]) ** 2 for e in entries)) / n for i in (2, 3))
    return Entry(label, float(value), float(value - down), float(value + up))


def student(results, label, values):
    """Mean of differences with Student's 95 % interval; no interval from fewer than two."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return entry(results, label, values.mean()) if len(values) else Entry(label, NAN)
    half = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / math.sqrt(len(values))
    return Entry(label, float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def welch(label, first, second):
    """Ratio of the geometric means of two samples with Welch's 95 % interval; NaN from fewer than two values."""
    a, b = np.log(first), np.log(second)
    if min(len(a), len(b)) < 2:
        return Entry(label, NAN)
    va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    df = (va + vb) ** 2 / max(va**2 / (len(a) - 1) + vb**2 / (len(b) - 1), 1e-300)
    value, half = a.mean() - b.mean(), stdtrit(max(df, 1.0), 0.975) * math.sqrt(va + vb)
    return Entry(label, *(float(np.exp(v)) for v in (value, value - half, value + half)))


def newcombe(hits_a, hits_b, n):
    """Difference of two proportions of n with Newcombe's (1998, method 10) 95 % interval: (value, low, high).

    Wilson intervals of both, combined as if independent: too wide, not too narrow, for the same images.
    """
    z2, (a, b) = 1.96**2, (hits_a / n, hits_b / n)
    (la, ua), (lb, ub) = (
        (
            (p + z2 / 2 / n) / (1 + z2 / n)
            + np.array([-1, 1]) * 1.96 * math.sqrt(p * (1 - p) / n + z2 / 4 / n**2) / (1 + z2 / n)
        )
        for p in (a, b)
    )
    return a - b, float(a - b - math.hypot(a - la, ub - b)), float(a - b + math.hypot(ua - a, b - lb))


def spread_ratio(results, metric, a, b, dataset_a, dataset_b, label, *, form="converted"):
    """Standard deviation between backbones, b on dataset_b over a on dataset_a, with the F interval."""
    s = scores(results, metric, form=form)
    x, y = (s[(s["dataset"] == d) & (s["regime"] == r)]["value"] for d, r in ((dataset_a, a), (dataset_b, b)))
    if min(len(x), len(y)) < 3 or x.std() == 0:
        return Entry(label, NAN)
    ratio = y.std() / x.std()
    low, high = (math.sqrt(fdtri(len(y) - 1, len(x) - 1, q)) for q in (0.025, 0.975))
    return Entry(label, ratio, ratio / high, ratio / low)


def rank_correlation(x, y, label):
    """Spearman's rank correlation of two Series over their common index, with Fisher's 95 % interval."""
    common = x.dropna().index.intersection(y.dropna().index)
    if len(common) < 5:
        return Entry(label, NAN)
    rho = float(np.corrcoef(x[common].rank(), y[common].rank())[0, 1])
    half = 1.96 * math.sqrt(1.06 / (len(common) - 3))
    z = math.atanh(max(-0.999, min(0.999, rho)))
    return Entry(label, rho, math.tanh(z - half), math.tanh(z + half))
