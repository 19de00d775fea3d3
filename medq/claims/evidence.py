"""What a verdict rests on: differences with intervals from a result folder, and the rules that judge them."""

import math
from typing import NamedTuple

import numpy as np

from medq.results import CELL, ENGINES, LOWER_IS_BETTER, counterpart, means, scores, title

SUPPORTED, CONTRADICTED, OPEN = "supported", "contradicted", "not testable"
NAN = math.nan
UNITS = {  # name: how a number is written, and what stands behind it
    "points": (lambda v: f"{100 * v:+.1f}", " points"),
    "plain": (lambda v: f"{v:.3f}", ""),
    "signed": (lambda v: f"{v:+.3f}", ""),
    "times": (lambda v: f"{v:.2f}", "×"),
    "seconds": (lambda v: f"{v:.2f}", " s"),
    "share": (lambda v: f"{100 * v:.0f}", " %"),
}


class Entry(NamedTuple):
    """One number of the evidence: its 95 % interval is missing where none could be had."""

    label: str
    value: float
    low: float = NAN
    high: float = NAN


class Finding(NamedTuple):
    """A verdict, its evidence in words, and the number it hangs on most, with its interval."""

    verdict: str
    evidence: str
    value: float = NAN
    low: float = NAN
    high: float = NAN


def printed(results):
    """Whether these are numbers as somebody printed them, which have no interval and are taken as exact."""
    return "source" in results.provenance


def entry(results, label, value, low=NAN, high=NAN):
    """An `Entry`; a printed number without an interval stands for itself."""
    if math.isnan(low) and printed(results):
        low = high = value
    return Entry(label, float(value), float(low), float(high))


def judge(entries, *, low=-math.inf, high=math.inf, unit="points"):
    """Do the true values all lie in [low, high]?

    Supported: every entry's interval lies inside. Contradicted: at least one lies wholly outside. Otherwise,
    and where an entry is missing, it cannot be told. The number reported is the entry that decides: the one
    furthest outside, or nearest to the limits.
    """
    known = [e for e in entries if not math.isnan(e.value)]
    if not known:
        return Finding(OPEN, "These results do not hold the numbers that this needs.")
    outside = [e for e in known if e.high < low or e.low > high]
    inside = [e for e in known if e.low >= low and e.high <= high]
    verdict = CONTRADICTED if outside else SUPPORTED if len(inside) == len(entries) else OPEN
    worst = min(outside or known, key=lambda e: min(e.value - low, high - e.value))
    absent = [e.label for e in entries if math.isnan(e.value)]
    return Finding(verdict, _words(known, worst, absent, unit), worst.value, worst.low, worst.high)


def _words(known, worst, absent, unit):
    form, suffix = UNITS[unit]

    def one(e):
        bounds = "" if math.isnan(e.low) or e.low == e.high else f" ({form(e.low)} to {form(e.high)})"
        return f"{e.label} {form(e.value)}{suffix}{bounds}"

    text = (
        "; ".join(map(one, known))
        if len(known) <= 6
        else (
            f"{len(known)} values from {form(min(e.value for e in known))} to "
            f"{form(max(e.value for e in known))}{suffix}, decisive: {one(worst)}"
        )
    )
    return text + (f"; missing: {' / '.join(absent)}" if absent else "") + "."


def both(*findings):
    """All parts of a claim together: contradicted if one part is, supported only if all are."""
    verdicts = [f.verdict for f in findings]
    verdict = CONTRADICTED if CONTRADICTED in verdicts else OPEN if OPEN in verdicts else SUPPORTED
    decisive = next((f for f in findings if f.verdict == verdict), findings[0])
    evidence = " ".join(dict.fromkeys(f.evidence for f in findings))
    return Finding(verdict, evidence, decisive.value, decisive.low, decisive.high)


def exists(entries, *, above, unit="points"):
    """Is there at least one entry above a limit? Contradicted only if every interval excludes it."""
    known = [e for e in entries if not math.isnan(e.value)]
    if not known:
        return Finding(OPEN, "These results do not hold the numbers that this needs.")
    best = max(known, key=lambda e: (e.low > above, e.value))
    none = all(e.high < above for e in known)
    verdict = SUPPORTED if best.low > above else CONTRADICTED if none else OPEN
    return Finding(
        verdict, f"Of {len(known)} cases, " + _words([best], best, [], unit), best.value, best.low, best.high
    )


# --- which results --------------------------------------------------------------------------------


def ours(results, *names):
    """Our datasets that stand for the paper's `names`, or all; a name nobody stands for is kept."""
    if not names:
        return results.datasets
    found = {n: [d for d in results.datasets if counterpart(d) == n] for n in names}
    return [d for n in names for d in (found[n] or [n])]


def engines(results, kind):
    """Regimes of a kind (`ptq` or `qat`) in these results, one per engine."""
    return [f"{kind}-{e}" for e in ENGINES if f"{kind}-{e}" in results.regimes] or [f"{kind}-fbgemm"]


# --- differences ----------------------------------------------------------------------------------


def harm(results, metric, a, b, dataset, *, form="converted"):
    """How much worse `b` is than `a` in a metric, mean over backbones: an `Entry`, positive if worse.

    The interval is the paired bootstrap's where it was run on this pair (deployed models); otherwise that of
    the difference of the two means, as if they were independent (too wide rather than too narrow); otherwise
    Student's over the backbones' differences.
    """
    label = f"{title(dataset)}, {title(b)}"
    sign = 1 if metric in LOWER_IS_BETTER else -1
    row = _bootstrapped(results, metric, a, b, dataset, "all") if form == "converted" else None
    if row is not None:
        value, low, high = sorted_bounds(sign, *row)
        return Entry(label, value, low, high)
    m = {r["regime"]: r for r in means(results, metric, form=form).to_dict("records") if r["dataset"] == dataset}
    if {a, b} <= set(m) and m[a]["backbones"] == m[b]["backbones"]:
        before, after = (entry(results, label, *(m[k][f] for f in ("value", "low", "high"))) for k in (a, b))
        if not math.isnan(before.low + after.low):
            return minus(after, before, label) if sign > 0 else minus(before, after, label)
    pairs = paired(results, metric, a, b, dataset, form=form)
    return student(results, label, sign * (pairs["b"] - pairs["a"]))


def sorted_bounds(sign, value, low, high):
    """A difference with its interval, turned round if `sign` is -1."""
    return (value, low, high) if sign > 0 else (-value, -high, -low)


def _bootstrapped(results, metric, a, b, dataset, backbone):
    """(b - a, low, high) of `bootstrap.csv` as a fraction, or None."""
    rows = vars(results).setdefault("_bootstrap_rows", {})
    if not rows:
        keys = ["metric", "dataset", "backbone", "method_a", "method_b"]
        rows |= {tuple(r[k] for k in keys): r for r in results.bootstrap.to_dict("records")}
    for first, second, sign in ((b, a, 1), (a, b, -1)):
        r = rows.get((metric, dataset, backbone, first, second))
        if r is not None:
            return sorted_bounds(sign, r["delta_pp"] / 100, r["low_pp"] / 100, r["high_pp"] / 100)
    return None


def paired(results, metric, a, b, dataset, *, form="converted"):
    """Values of two regimes side by side, columns a and b, one row per backbone that has both."""
    s = scores(results, metric, form=form)
    wide = s[s["dataset"] == dataset].pivot(index="backbone", columns="regime", values="value")
    return wide.reindex(columns=[a, b]).set_axis(["a", "b"], axis=1).dropna()


def student(results, label, values):
    """Mean of differences with Student's 95 % interval; no interval from fewer than two."""
    from scipy.special import stdtrit

    values = np.asarray(values, dtype=float)
    if not len(values):
        return Entry(label, NAN)
    if len(values) < 2:
        return entry(results, label, values.mean())
    half = stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / math.sqrt(len(values))
    return Entry(label, float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def harms(results, metric, a, b, *, form="converted", klass=""):
    """`harm` of each backbone apart, of a class or of the macro average: {(dataset, backbone): Entry}.

    The interval is the paired bootstrap's where it was run, otherwise the widest that the two cells' own
    intervals allow.
    """
    sign = 1 if metric in LOWER_IS_BETTER else -1
    table = scores(results, metric, form=form, klass=klass)
    rows = {tuple(r[c] for c in CELL): r for r in table.to_dict("records")}
    found = {}
    for (dataset, backbone, regime), worse in rows.items():
        better = rows.get((dataset, backbone, a))
        if regime != b or better is None:
            continue
        label = f"{title(dataset)}, {title(backbone)}, {title(b)}"
        boot = None
        if form == "converted" and not klass:
            boot = _bootstrapped(results, metric, a, b, dataset, backbone)
        if boot is None:
            boot = (worse["value"] - better["value"], worse["low"] - better["high"], worse["high"] - better["low"])
        found[dataset, backbone] = entry(results, label, *sorted_bounds(sign, *boot))
    return found


def level(results, metric, regime, dataset, *, form="converted"):
    """A metric's mean over backbones in one regime with its bootstrap interval: an `Entry`."""
    m = means(results, metric, form=form)
    row = m[(m["dataset"] == dataset) & (m["regime"] == regime)]
    label = f"{title(dataset)}, {title(regime)}"
    return entry(results, label, *row.iloc[0][["value", "low", "high"]]) if len(row) else Entry(label, NAN)


def minus(first, second, label):
    """Difference of two independent entries; its variance is the sum of theirs."""
    value = first.value - second.value
    down = math.hypot(first.value - first.low, second.high - second.value)
    up = math.hypot(first.high - first.value, second.value - second.low)
    return Entry(label, value, value - down, value + up)


def spread_ratio(results, metric, a, b, dataset_a, dataset_b, label, *, form="converted"):
    """Standard deviation between backbones, b on dataset_b over a on dataset_a, with the F interval."""
    from scipy.special import fdtri

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
