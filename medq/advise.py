"""`medq advise`: which precision to ship, following the workflow of the paper's Discussion.

FP32 is the reference. A candidate passes if its loss of AUPRC and its rises of the Brier score and of the negative
log-likelihood stay within the limits with the given confidence, and if it meets the latency budget on the measured
machine; the fastest that passes is shipped. A candidate is a regime of the results or another runtime on the same
checkpoint. What was not measured does not pass, and nothing is recommended for an FP32 model that is itself no better
than chance or than always naming the largest class.
"""

import math
from dataclasses import dataclass

CANDIDATE = ["dataset", "backbone", "candidate"]
COSTS = {  # metric: (its cost, the cost's bound, cost per unit of FP32 minus candidate, name, format)
    "auprc": ("auprc_loss_pp", "auprc_loss_bound_pp", 100.0, "AUPRC", "{:.2f} points"),
    "brier": ("brier_rise", "brier_rise_bound", -1.0, "Brier", "{:.4f}"),
    "nll": ("nll_rise", "nll_rise_bound", -1.0, "NLL", "{:.4f}"),
}
TIMES = ["p50_ms", "p50_bound_ms", "p99_ms", "speedup", "size_mb"]
COLUMNS = [
    *CANDIDATE,
    *(name for cost in COSTS.values() for name in cost[:2]),
    *TIMES,
    "passes",
    "ship",
    "why",
    "beaten_by",
]
NOT_MEASURED = "not measured"
CHANCE = "FP32 is no better than"


@dataclass(frozen=True)
class Limits:
    """What a user accepts. ValueError for an impossible limit or confidence."""

    auprc_loss_pp: float = 1.0  # points of macro AUPRC
    brier_rise: float = 0.01
    nll_rise: float = 0.05  # nats: the mean probability of the true class falls by a factor of exp(-0.05) = 0.95
    latency_ms: float | None = None  # median time of a batch
    confidence: float = 0.95  # that each true loss, rise and median stays within its limit
    batch_size: int = 1

    def __post_init__(self):
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence must be at least 0.5 and below 1, not {self.confidence}")
        if self.latency_ms is not None and not self.latency_ms > 0:
            raise ValueError(f"the latency budget must be above 0 ms, not {self.latency_ms}")
        if self.batch_size < 1:
            raise ValueError(f"the batch size must be 1 or more, not {self.batch_size}")
        if any(math.isnan(getattr(self, cost[0])) for cost in COSTS.values()):
            raise ValueError("the largest loss of AUPRC and rises of Brier and NLL must be numbers")


def add_arguments(parser):
    """Arguments of `medq advise`."""
    parser.add_argument("results", help="a result folder, or its name under results/")
    for name, option, metavar, kind, text in (
        ("auprc_loss_pp", "--max-auprc-loss-pp", "PP", float, "points of macro AUPRC"),
        ("brier_rise", "--max-brier-rise", "X", float, "of the multi-class Brier score"),
        ("nll_rise", "--max-nll-rise", "X", float, "of the negative log-likelihood, in nats"),
        ("latency_ms", "--max-latency-ms", "MS", float, "median time of a batch"),
        ("batch_size", "--batch-size", "N", int, "that the budget is for"),
        ("confidence", "--confidence", "C", float, "of staying within each limit"),
    ):
        default = getattr(Limits, name)
        shown = "no budget" if default is None else f"{default:g}"
        help_ = f"{text} (default: {shown})"
        parser.add_argument(option, dest=name, type=kind, default=default, metavar=metavar, help=help_)
    parser.add_argument("--csv", metavar="FILE", help="also write every candidate with its numbers")


def run(args):
    """Print one decision per dataset and backbone and, below it, which candidates failed and why."""
    from medq.errors import UserError
    from medq.results import load

    try:
        limits = Limits(**{name: getattr(args, name) for name in Limits.__dataclass_fields__})
    except ValueError as error:
        raise UserError(f"{error}.") from None
    results = load(args.results)
    table = decide(results, limits)
    if table.empty:
        raise UserError(f"{results.path}: holds no cells to decide on; run `medq collect` first.")
    if args.csv is not None:
        _write(args.csv, table)
    print(text(table, limits))


def _write(path, table):
    """Write the file that `--csv` names."""
    from medq import artefacts
    from medq.errors import UserError

    if not path:
        raise UserError("--csv: names no file; give one, such as advice.csv.")
    try:
        artefacts.write_csv(path, table)
    except UserError as error:  # its words are for a batch
        why = getattr(error.__cause__, "strerror", None) or error.__cause__
        raise UserError(f"--csv {path}: cannot be written ({why}); name another file.") from None


def decide(results, limits=None):
    """Every candidate with what it costs, whether it passes and which to ship: a DataFrame with `COLUMNS`.

    `results` is a `results.Results`, `limits` a `Limits`. Costs are differences from FP32 of the same dataset and
    backbone; their one-sided bounds hold with the confidence of the limits and come from the stored paired bootstrap
    (`bounded`), NaN where it holds no interval. Milliseconds are at the limits' batch size; those of another runtime are
    FP32's divided by its speed-up in its own run. `passes` is True, False or None (not measured), `why` says what
    failed. At most one row per dataset and backbone has `ship`; its `beaten_by` names candidates that are both faster and
    better calibrated (Brier), though they fail a limit.
    """
    import pandas as pd

    from medq.results import peer_means

    limits, peers = limits or Limits(), peer_means(results)
    paired = _paired(results)
    rows = []
    for dataset in results.datasets:
        for backbone in results.backbones:
            found = [
                *_regimes(results, paired, dataset, backbone, limits),
                *_runtimes(results, paired, peers, dataset, backbone, limits),
            ]
            chance = incompetent(results, dataset, backbone)
            found = [row | ({"passes": False, "why": chance} if chance else _verdict(row, limits)) for row in found]
            passed = [row for row in found if row["passes"]]
            best = min(
                passed, key=lambda row: (-_number(row["speedup"], 0.0), row["candidate"] != "fp32"), default=None
            )
            for row in found:
                named = {"dataset": dataset, "backbone": backbone, "ship": row is best}
                rows.append(named | {"beaten_by": beaten_by(row, found) if row is best else ""} | row)
    return pd.DataFrame(rows, columns=COLUMNS).astype({"passes": object, "ship": bool})


def incompetent(results, dataset, backbone):
    """Why an FP32 model is below the floor of competence; empty for a competent model, and where that is unknown.

    Its accuracy must exceed the share of the largest class among its images, and its ROC-AUC 0.5, each with the lower
    end of the 95 % interval, or with its value where no interval is stored.
    """
    shares, key = vars(results).setdefault("_shares", {}), (dataset, backbone)
    if key not in shares:
        labels = results.predictions(dataset, backbone, "fp32")["label"]
        shares[key] = labels.value_counts(normalize=True).max() if len(labels) else math.nan
    for metric, name, floor, other in (
        ("accuracy", "accuracy", shares[key], "always naming the largest class"),
        ("auroc", "ROC-AUC", 0.5, "chance"),
    ):
        value, low = _fp32(results, metric).get(key, (math.nan, math.nan))
        if _number(low, value) <= floor:
            least = "" if math.isnan(low) else f", at least {low:.3f}"
            return f"{CHANCE} {other} ({name} {value:.3f}{least}; needed: more than {floor:.3f})"
    return ""


def _fp32(results, metric):
    """{(dataset, backbone): (value, lower end of the interval)} of the FP32 models."""
    from medq.results import scores

    kept = vars(results).setdefault("_fp32", {})
    if metric not in kept:
        s = scores(results, metric)
        s = s[s["regime"] == "fp32"]
        kept[metric] = dict(zip(zip(s["dataset"], s["backbone"]), zip(s["value"], s["low"])))
    return kept[metric]


def beaten_by(row, others):
    """Names of the candidates that are both faster and better calibrated than `row`, as text."""
    return ", ".join(
        o["candidate"] for o in others if o["speedup"] > row["speedup"] and o["brier_rise"] < row["brier_rise"]
    )


def _number(value, otherwise):
    return otherwise if math.isnan(value) else value


def _reach(confidence):
    """Half a 95 % interval times this reaches the one-sided bound of this confidence."""
    from scipy.stats import norm

    return norm.ppf(confidence) / norm.ppf(0.975)


def bounded(delta_pp, low_pp, high_pp, scale, confidence):
    """(cost, its upper bound) from FP32 minus candidate and its 95 % interval, in points.

    The distance from the estimate to the unfavourable end is scaled to the one-sided confidence as that of a normal
    variable. NaN ends give a NaN bound.
    """
    cost, *ends = (float(v) * scale / 100 for v in (delta_pp, low_pp, high_pp))
    worst = math.nan if any(map(math.isnan, ends)) else max(ends)  # max() may lose a NaN
    return cost, cost + _reach(confidence) * (worst - cost)


def _paired(results):
    """{(dataset, backbone, method_a, method_b, metric): (delta_pp, low_pp, high_pp)} of the stored bootstrap."""
    keys, numbers = ["dataset", "backbone", "method_a", "method_b", "metric"], ["delta_pp", "low_pp", "high_pp"]
    b = results.bootstrap
    return dict(zip(b[keys].itertuples(index=False, name=None), b[numbers].itertuples(index=False, name=None)))


def _costs(paired, dataset, backbone, reference, name, limits):
    """Costs and bounds of a candidate; 0 for the reference itself, NaN for what is not stored."""
    found = {}
    for metric, (cost, bound, scale, *_) in COSTS.items():
        stored = paired.get((dataset, backbone, reference, name, metric), (math.nan,) * 3)
        found[cost], found[bound] = (0.0, 0.0) if name == reference else bounded(*stored, scale, limits.confidence)
    return found


def _regimes(results, paired, dataset, backbone, limits):
    """Candidates among the regimes of a cell; FP32 with the fastest of its baselines. Controls are not candidates."""
    for regime in results.regimes:
        if regime in ("fp32-continued", "fp32-autocast"):
            continue
        state = results.state(dataset, backbone, regime)
        row = {"candidate": regime, "state": state["status"], "reason": state["reason"]}
        costs = _costs(paired, dataset, backbone, "fp32", regime, limits)
        yield row | _time(results, backbone, regime, limits) | costs


def _time(results, backbone, regime, limits):
    """TIMES of a regime on the CPU, the speed-up over eager FP32; NaN where it was not timed."""
    t = results.latency
    t = t[(t["backbone"] == backbone) & (t["batch_size"] == limits.batch_size) & t["device"].isin(["cpu", ""])]
    eager = t[(t["regime"] == "fp32") & t["baseline"].isin(["eager", ""])]
    mine = t[t["regime"] == regime].sort_values("p50_ms")
    if mine.empty or math.isnan(mine.iloc[0]["p50_ms"]):
        return dict.fromkeys(TIMES, math.nan)
    row = mine.iloc[0]
    bound = row["p50_ms"] + _reach(limits.confidence) * (row["p50_high"] - row["p50_ms"])
    speedup = eager.iloc[0]["p50_ms"] / row["p50_ms"] if len(eager) else math.nan
    return dict(zip(TIMES, (row["p50_ms"], bound, row["p99_ms"], speedup, row["size_mb"])))


def _runtimes(results, paired, p, dataset, backbone, limits):
    """Candidates among the other runtimes (`p`: `peer_means`), without PyTorch's own, which are regimes."""
    from medq.results import PEER_REFERENCE

    p = p[(p["dataset"] == dataset) & (p["backbone"] == backbone) & (p["batch_size"] == limits.batch_size)]
    base = p[(p["runtime"] == "pytorch") & (p["precision"] == "fp32")]
    fp32 = _time(results, backbone, "fp32", limits)
    eager_ms = fp32["p50_ms"] * fp32["speedup"]
    for row in p.to_dict("records"):
        if row["runtime"].startswith("pytorch"):
            continue
        speedup = base.iloc[0]["p50_ms"] / row["p50_ms"] if len(base) else math.nan
        p50, spread = eager_ms / speedup, row["p50_high"] / row["p50_ms"] - 1
        times = p50, p50 * (1 + _reach(limits.confidence) * spread), p50 * row["p99_ms"] / row["p50_ms"]
        found = {"candidate": f"{row['runtime']} {row['precision']}", "state": "done", "reason": ""}
        name = f"{row['runtime']}-{row['precision']}"
        costs = _costs(paired, dataset, backbone, PEER_REFERENCE, name, limits)
        yield found | dict(zip(TIMES, (*times, speedup, row["size_mb"]))) | costs


def _verdict(row, limits):
    """`passes` and `why` of one candidate."""
    if row["state"] != "done":
        missing = NOT_MEASURED if row["state"] == "missing" else row["state"]
        why = f"{row['state']}: {row['reason']}" if row["reason"] else missing
        return {"passes": False if row["state"] in ("unsupported", "failed") else None, "why": why}
    checks = [
        (name, "loses" if cost.endswith("pp") else "rises by", row[cost], row[bound], getattr(limits, cost), form)
        for cost, bound, _, name, form in COSTS.values()
    ]
    if limits.latency_ms is not None:
        checks.append(("Latency", "is", row["p50_ms"], row["p50_bound_ms"], limits.latency_ms, "{:.1f} ms"))
    failed, unknown = [], []
    for name, verb, value, bound, limit, form in checks:
        if math.isnan(value):
            unknown.append(f"{name} {NOT_MEASURED}")
        elif value > limit:
            failed.append(f"{name} {verb} {form.format(value)}, more than {form.format(limit)}")
        elif math.isnan(bound):
            unknown.append(f"{name} {verb} {form.format(value)}, of unknown confidence")
        elif bound > limit:
            failed.append(
                f"{name} {verb} {form.format(value)}, perhaps {form.format(bound)}, more than {form.format(limit)}"
            )
    if limits.latency_ms is None and math.isnan(row["speedup"]) and row["candidate"] != "fp32":
        unknown.append(f"Latency {NOT_MEASURED}")
    return {"passes": False if failed else None if unknown else True, "why": "; ".join([*failed, *unknown])}


def text(table, limits):
    """The decisions as lines for a terminal."""
    from medq.results import title

    budget = f", at most {limits.latency_ms:g} ms" if limits.latency_ms is not None else ""
    lines = [
        f"Limits: AUPRC loses at most {limits.auprc_loss_pp:g} points, Brier rises by at most {limits.brier_rise:g}, "
        f"NLL by {limits.nll_rise:g}{budget}, each with {100 * limits.confidence:g} % confidence; "
        f"batch {limits.batch_size}."
    ]
    for (dataset, backbone), group in table.groupby(["dataset", "backbone"], sort=False):
        rows, chosen = group.to_dict("records"), group[group["ship"]].to_dict("records")
        choice = f"ship {title(chosen[0]['candidate'])}{_timing(chosen[0])}" if chosen else nothing(group)
        lines += ["", f"{title(dataset)}, {title(backbone)}: {choice}"]
        if group["why"].str.startswith(CHANCE).all():
            continue
        passed = [title(row["candidate"]) + _timing(row) for row in rows if row["passes"] and not row["ship"]]
        lines += [f"  also passes: {'; '.join(passed)}"] if passed else []
        lines += [f"  {title(row['candidate'])}: {row['why']}" for row in rows if not row["passes"]]
    return "\n".join(lines)


def nothing(group):
    """Why none of the candidates of one dataset and backbone is shipped."""
    if len(group) and group["why"].str.startswith(CHANCE).all():
        return f"nothing: {group['why'].iloc[0]}"
    return NOT_MEASURED if group["passes"].isna().all() else "nothing passes"


def _timing(row):
    if math.isnan(row["p50_ms"]):
        return f" (time {NOT_MEASURED})"
    speedup = "" if math.isnan(row["speedup"]) else f", {row['speedup']:.2f} times as fast as eager FP32"
    return f" ({row['p50_ms']:.1f} ms{speedup})"
