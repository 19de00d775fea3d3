"""`medq advise`: which precision to ship, as the workflow of the paper's Discussion.

Take FP32 as the reference, ask of every candidate that its loss of AUPRC and its rise of ECE stay within the
limits with the given confidence and that it meets the latency budget on the measured machine, and ship the
fastest that passes. A candidate is a regime of the results or another runtime on the same checkpoint. What
was not measured does not pass.
"""

import math
from dataclasses import dataclass

from medq.params import CONTROLS

CANDIDATE = ["dataset", "backbone", "candidate"]
COLUMNS = [
    *CANDIDATE,
    "auprc_loss_pp",
    "auprc_loss_bound_pp",
    "ece_rise",
    "ece_rise_bound",
    "p50_ms",
    "p50_bound_ms",
    "p99_ms",
    "speedup",
    "size_mb",
    "passes",
    "ship",
    "why",
    "beaten_by",
]
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Limits:
    """What a user accepts. `ValueError` for a limit or a confidence that makes no sense."""

    auprc_loss_pp: float = 1.0  # points of macro AUPRC
    ece_rise: float = 0.01
    latency_ms: float | None = None  # median time of a batch
    confidence: float = 0.95  # that the true loss, rise and median stay within
    batch_size: int = 1

    def __post_init__(self):
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence must be at least 0.5 and below 1, not {self.confidence}")
        if self.latency_ms is not None and not self.latency_ms > 0:
            raise ValueError(f"the latency budget must be above 0 ms, not {self.latency_ms}")
        if self.batch_size < 1:
            raise ValueError(f"the batch size must be 1 or more, not {self.batch_size}")
        if math.isnan(self.auprc_loss_pp) or math.isnan(self.ece_rise):
            raise ValueError("the largest loss of AUPRC and rise of ECE must be numbers")


def add_arguments(parser):
    """Arguments of `medq advise`."""
    parser.add_argument("results", help="a result folder, or its name under results/")
    parser.add_argument(
        "--max-auprc-loss-pp", type=float, default=1.0, metavar="PP", help="points of macro AUPRC (default: 1)"
    )
    parser.add_argument("--max-ece-rise", type=float, default=0.01, metavar="X", help="default: 0.01")
    parser.add_argument(
        "--max-latency-ms", type=float, metavar="MS", help="median time of a batch (default: no budget)"
    )
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="that the budget is for (default: 1)")
    parser.add_argument(
        "--confidence", type=float, default=0.95, metavar="C", help="of staying within each limit (default: 0.95)"
    )
    parser.add_argument("--csv", metavar="FILE", help="also write every candidate with its numbers")


def run(args):
    """Print one decision per dataset and backbone and, below it, what failed and why."""
    from medq.errors import UserError
    from medq.results import load

    try:
        limits = Limits(
            args.max_auprc_loss_pp, args.max_ece_rise, args.max_latency_ms, args.confidence, args.batch_size
        )
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

    `results` is a `results.Results`, `limits` a `Limits`. Losses and rises are against FP32 of the same
    dataset and backbone; their bounds hold with the confidence of the limits (one-sided): from the paired
    bootstrap where it is stored, else from both cells' own intervals as though they were independent (wider
    than the truth), else NaN, which does not pass. A stored 95 % interval is taken to another confidence as
    that of a normal variable. Milliseconds are at the limits' batch size; another runtime's are FP32's
    divided by its speed-up in its own run. `passes` is True, False or None (not measured), `why` says what
    failed; at most one row per dataset and backbone has `ship`, and its `beaten_by` names what is both faster and
    better calibrated, though it fails a limit.
    """
    import pandas as pd

    from medq.results import peer_means

    limits, peers = limits or Limits(), peer_means(results)
    rows = []
    for dataset in results.datasets:
        for backbone in results.backbones:
            found = [
                *_regimes(results, dataset, backbone, limits),
                *_runtimes(results, peers, dataset, backbone, limits),
            ]
            found = [row | _verdict(row, limits) for row in found]
            passed = [row for row in found if row["passes"]]
            best = min(
                passed, key=lambda row: (-_number(row["speedup"], 0.0), row["candidate"] != "fp32"), default=None
            )
            for row in found:
                named = {"dataset": dataset, "backbone": backbone, "ship": row is best}
                rows.append(named | {"beaten_by": beaten_by(row, found) if row is best else ""} | row)
    return pd.DataFrame(rows, columns=COLUMNS).astype({"passes": object, "ship": bool})


def beaten_by(row, others):
    """Names of the candidates that are both faster and better calibrated than `row`, as text."""
    return ", ".join(
        o["candidate"] for o in others if o["speedup"] > row["speedup"] and o["ece_rise"] < row["ece_rise"]
    )


def _number(value, otherwise):
    return otherwise if math.isnan(value) else value


def _reach(limits):
    """Half a 95 % interval times this reaches the one-sided bound of the limits' confidence."""
    from scipy.stats import norm

    return norm.ppf(limits.confidence) / norm.ppf(0.975)


def _regimes(results, dataset, backbone, limits):
    """Candidates among the regimes of a cell; FP32 with the fastest of its baselines."""
    for regime in results.regimes:
        if regime in CONTROLS:
            continue
        state = results.state(dataset, backbone, regime)
        row = {"candidate": regime, "state": state["status"], "reason": state["reason"]} | _time(
            results, backbone, regime, limits
        )
        for metric, (name, bound, scale) in COSTS.items():
            row[name], row[bound] = (
                (0.0, 0.0)
                if regime == "fp32"
                else _cost(results, dataset, backbone, regime, metric, scale, _reach(limits))
            )
        yield row


# Metric: its cost, the cost's bound, and what turns a loss of the metric (FP32 minus candidate) into it.
COSTS = {"auprc": ("auprc_loss_pp", "auprc_loss_bound_pp", 100.0), "ece": ("ece_rise", "ece_rise_bound", -1.0)}


def _cost(results, dataset, backbone, regime, metric, scale, reach):
    """(cost, its upper bound) of a regime against FP32."""
    from medq.results import scores

    paired = _paired(results, dataset, backbone, "fp32", regime, metric, scale, reach)
    if paired:
        return paired
    s = scores(results, metric)
    s = s[(s["dataset"] == dataset) & (s["backbone"] == backbone)].set_index("regime")
    if not {"fp32", regime} <= set(s.index):
        return math.nan, math.nan
    cost = scale * (s.loc["fp32", "value"] - s.loc[regime, "value"])
    return cost, cost + reach * abs(scale) * math.hypot(
        *((s.loc[r, "high"] - s.loc[r, "low"]) / 2 for r in ("fp32", regime))
    )


def _paired(results, dataset, backbone, reference, name, metric, scale, reach):
    """(cost, its upper bound) from the paired bootstrap against `reference`, or None where that is not stored."""
    b = results.bootstrap
    b = b[
        (b["dataset"] == dataset)
        & (b["backbone"] == backbone)
        & (b["method_a"] == reference)
        & (b["method_b"] == name)
        & (b["metric"] == metric)
    ]
    if b.empty:
        return None
    delta, *ends = (float(b.iloc[0][c]) * scale / 100 for c in ("delta_pp", "low_pp", "high_pp"))
    worst = math.nan if any(map(math.isnan, ends)) else max(ends)  # max() may lose a NaN
    return delta, delta + reach * (worst - delta)


def _time(results, backbone, regime, limits):
    """p50_ms, its bound, p99_ms, speed-up over eager FP32 and size of a regime on the CPU, NaN where it was
    not timed."""
    t = results.latency
    t = t[(t["backbone"] == backbone) & (t["batch_size"] == limits.batch_size) & t["device"].isin(["cpu", ""])]
    eager = t[(t["regime"] == "fp32") & t["baseline"].isin(["eager", ""])]
    mine = t[t["regime"] == regime].sort_values("p50_ms")
    if mine.empty or math.isnan(mine.iloc[0]["p50_ms"]):
        return dict.fromkeys(("p50_ms", "p50_bound_ms", "p99_ms", "speedup", "size_mb"), math.nan)
    row = mine.iloc[0]
    return {
        "p50_ms": row["p50_ms"],
        "p50_bound_ms": row["p50_ms"] + _reach(limits) * (row["p50_high"] - row["p50_ms"]),
        "p99_ms": row["p99_ms"],
        "size_mb": row["size_mb"],
        "speedup": eager.iloc[0]["p50_ms"] / row["p50_ms"] if len(eager) else math.nan,
    }


def _runtimes(results, p, dataset, backbone, limits):
    """Candidates among the other runtimes (`p`: `peer_means`); those of PyTorch that are regimes already are left out."""
    from medq.results import PEER_REFERENCE

    p = p[(p["dataset"] == dataset) & (p["backbone"] == backbone) & (p["batch_size"] == limits.batch_size)]
    base = p[(p["runtime"] == "pytorch") & (p["precision"] == "fp32")]
    fp32 = _time(results, backbone, "fp32", limits)
    eager_ms = fp32["p50_ms"] * fp32["speedup"]
    for row in p.to_dict("records"):
        if row["runtime"] in ("pytorch", "pytorch-fbgemm", "pytorch-qnnpack"):
            continue
        speedup = base.iloc[0]["p50_ms"] / row["p50_ms"] if len(base) else math.nan
        found = {
            "candidate": f"{row['runtime']} {row['precision']}",
            "state": "done",
            "reason": "",
            "speedup": speedup,
            "p50_ms": eager_ms / speedup,
            "p50_bound_ms": eager_ms / speedup * (1 + _reach(limits) * (row["p50_high"] / row["p50_ms"] - 1)),
            "p99_ms": eager_ms / speedup * row["p99_ms"] / row["p50_ms"],
            "size_mb": row["size_mb"],
        }
        for metric, (name, bound, scale) in COSTS.items():
            cost = scale * (base.iloc[0][metric] - row[metric]) if len(base) else math.nan
            half = 0.0 if row["precision"] == "fp32" else _half_width(results, dataset, backbone, metric)
            apart = cost, cost + _reach(limits) * abs(scale) * math.sqrt(2) * half
            stored = f"{row['runtime']}-{row['precision']}"
            found[name], found[bound] = (
                _paired(results, dataset, backbone, PEER_REFERENCE, stored, metric, scale, _reach(limits)) or apart
            )
        yield found


def _half_width(results, dataset, backbone, metric):
    """Half the 95 % interval of a metric of the FP32 cell, NaN where none is stored."""
    i = results.intervals
    i = i[
        (i["dataset"] == dataset)
        & (i["backbone"] == backbone)
        & (i["regime"] == "fp32")
        & (i["metric"] == metric)
        & (i["class"] == "")
    ]
    return float(i.iloc[0]["high"] - i.iloc[0]["low"]) / 2 if len(i) else math.nan


def _verdict(row, limits):
    """`passes` and `why` of one candidate."""
    if row["state"] != "done":
        return {
            "passes": False if row["state"] in ("unsupported", "failed") else None,
            "why": f"{row['state']}: {row['reason']}"
            if row["reason"]
            else NOT_MEASURED
            if row["state"] == "missing"
            else row["state"],
        }
    checks = [
        (
            "AUPRC",
            ("loses", "may lose"),
            row["auprc_loss_pp"],
            row["auprc_loss_bound_pp"],
            limits.auprc_loss_pp,
            "{:.2f} points",
        ),
        ("ECE", ("rises by", "may rise by"), row["ece_rise"], row["ece_rise_bound"], limits.ece_rise, "{:.4f}"),
        ("Latency", ("is", "may be"), row["p50_ms"], row["p50_bound_ms"], limits.latency_ms, "{:.1f} ms"),
    ]
    failed, unknown = [], []
    for name, (verb, may), value, bound, limit, form in checks:
        if limit is None:
            continue
        if math.isnan(value):
            unknown.append(f"{name} {NOT_MEASURED}")
        elif value > limit:
            failed.append(f"{name} {verb} {form.format(value)}, more than {form.format(limit)}")
        elif math.isnan(bound):
            unknown.append(f"{name} {verb} {form.format(value)}, of unknown confidence")
        elif bound > limit:
            said = f"{name} {verb} {form.format(value)} but perhaps" if value > 0 else f"{name} {may}"
            failed.append(f"{said} {form.format(bound)}, more than {form.format(limit)}")
    if limits.latency_ms is None and math.isnan(row["speedup"]) and row["candidate"] != "fp32":
        unknown.append(f"Latency {NOT_MEASURED}")
    return {"passes": False if failed else None if unknown else True, "why": "; ".join([*failed, *unknown])}


def text(table, limits):
    """The decisions as lines for a terminal."""
    from medq.results import title

    budget = f", at most {limits.latency_ms:g} ms" if limits.latency_ms is not None else ""
    lines = [
        f"Limits: AUPRC loses at most {limits.auprc_loss_pp:g} points, ECE rises by at most "
        f"{limits.ece_rise:g}{budget}, each with "
        f"{100 * limits.confidence:g} % confidence; batch {limits.batch_size}."
    ]
    for (dataset, backbone), group in table.groupby(["dataset", "backbone"], sort=False):
        chosen = group[group["ship"]]
        said = (
            nothing(group) if chosen.empty else f"ship {_title(chosen.iloc[0]['candidate'])}{_timing(chosen.iloc[0])}"
        )
        lines += ["", f"{title(dataset)}, {title(backbone)}: {said}"]
        passed = [
            _title(row["candidate"]) + _timing(row)
            for row in group.to_dict("records")
            if row["passes"] and not row["ship"]
        ]
        lines += [f"  also passes: {'; '.join(passed)}"] if passed else []
        lines += [
            f"  {_title(row['candidate'])}: {row['why']}" for row in group.to_dict("records") if not row["passes"]
        ]
    return "\n".join(lines)


def nothing(group):
    """What to say of the candidates of one dataset and backbone of which none is to ship."""
    return NOT_MEASURED if group["passes"].isna().all() else "nothing passes"


def _title(candidate):
    from medq.results import title

    return title(candidate)


def _timing(row):
    if math.isnan(row["p50_ms"]):
        return f" (time {NOT_MEASURED})"
    return (
        f" ({row['p50_ms']:.1f} ms"
        + ("" if math.isnan(row["speedup"]) else f", {row['speedup']:.2f} times as fast as eager FP32")
        + ")"
    )
