"""`medq advise`: which precision to ship, following the workflow of the paper's Discussion.

FP32 is the reference. A candidate passes if its loss of AUPRC and its rises of the Brier score and of the negative
log-likelihood stay within the limits with the given confidence, and if it meets the latency budget on the measured
machine; the fastest that passes is shipped. A candidate is a regime of the results or another runtime on the same
checkpoint. What was not measured does not pass, and nothing is recommended for an FP32 model that is itself no better
than chance or than always naming the largest class.
"""

import math
from functools import lru_cache
from typing import Annotated

import pandas as pd
from pydantic import Field
from scipy.stats import norm

from medq import artefacts, config, regimes
from medq.changes import paired
from medq.errors import UserError
from medq.results import PEER_REFERENCE, cpu_times, load, peer_means, scores, title

COSTS = {  # metric: (its cost, the cost's bound, cost per unit of FP32 minus candidate, name, format)
    "auprc": ("auprc_loss_pp", "auprc_loss_bound_pp", 100.0, "AUPRC loses", "{:.2f} points"),
    "brier": ("brier_rise", "brier_rise_bound", -1.0, "Brier rises by", "{:.4f}"),
    "nll": ("nll_rise", "nll_rise_bound", -1.0, "NLL rises by", "{:.4f}"),
}
TIMES = ["p50_ms", "p50_bound_ms", "p99_ms", "speedup", "size_mb"]
COLUMNS = ["dataset", "backbone", "candidate", *(name for cost in COSTS.values() for name in cost[:2]), *TIMES]
COLUMNS += ["passes", "ship", "why", "beaten_by"]
NOT_MEASURED = "not measured"
CHANCE = "FP32 is not shown to be better than"


Number = Annotated[float, Field(ge=-math.inf)]  # any but NaN


class Limits(config.Model):
    """What a user accepts."""

    auprc_loss_pp: Number = Field(1.0, description="points of macro AUPRC")
    brier_rise: Number = Field(0.01, description="of the multi-class Brier score")
    # The mean probability of the true class falls by a factor of exp(-0.05) = 0.95.
    nll_rise: Number = Field(0.05, description="of the negative log-likelihood, in nats")
    latency_ms: Annotated[float, Field(gt=0)] | None = Field(None, description="median time of a batch")
    batch_size: int = Field(1, ge=1, description="that the budget is for")
    confidence: float = Field(0.95, ge=0.5, lt=1, description="that each loss, rise and median is within its limit")


def add_arguments(parser):
    """Arguments of `medq advise`."""
    parser.add_argument("results", help="a result folder, or its name under results/")
    for name, field in Limits.model_fields.items():
        option = name if name in ("batch_size", "confidence") else f"max_{name}"
        default = "no budget" if field.default is None else f"{field.default:g}"
        parser.add_argument(
            f"--{option.replace('_', '-')}",
            dest=name,
            type=int if name == "batch_size" else float,
            default=field.default,
            metavar="X",
            help=f"{field.description} (default: {default})",
        )
    parser.add_argument("--csv", metavar="FILE", help="also write every candidate with its numbers")


def run(args):
    """Print one decision per dataset and backbone and, below it, which candidates failed and why."""
    limits = config.validate(Limits, {name: getattr(args, name) for name in Limits.model_fields}, "limits")
    results = load(args.results)
    table = decide(results, limits)
    if table.empty:
        raise UserError(f"{results.path}: holds no cells to decide on; run `medq collect` first.")
    if args.csv is not None:
        try:
            artefacts.write_csv(args.csv, table)
        except UserError as error:  # its words are for a batch
            why = getattr(error.__cause__, "strerror", None) or error.__cause__
            raise UserError(f"--csv {args.csv}: cannot be written ({why}); name another file.") from None
    print(text(table, limits))


def decide(results, limits=None):
    """Every candidate with what it costs, whether it passes and which to ship: a DataFrame with `COLUMNS`.

    `results` is a `results.Results`, `limits` a `Limits`. Costs are differences from FP32 of the same dataset and
    backbone; their one-sided bounds hold with the confidence of the limits and come from the stored paired bootstrap
    (`bounded`), NaN where it holds no interval. Milliseconds are at the limits' batch size; those of another runtime are
    FP32's divided by its speed-up in its own run. `passes` is True, False or None (not measured), `why` says what
    failed. At most one row per dataset and backbone has `ship`; its `beaten_by` names candidates that are both faster and
    better calibrated (Brier), though they fail a limit.
    """
    limits, peers, rows = limits or Limits(), peer_means(results), []
    for dataset in results.datasets:
        for backbone in results.backbones:
            chance = incompetent(results, dataset, backbone)
            found = [
                *_regimes(results, dataset, backbone, limits),
                *_runtimes(results, peers, dataset, backbone, limits),
            ]
            for row in found:
                for metric, (cost, bound, scale, *_) in COSTS.items():
                    stored = paired(results, metric, *row["compared"], dataset, backbone) or {}
                    ends = [stored.get(k, math.nan) for k in ("value", "low", "high")]
                    same = len(set(row["compared"])) == 1
                    row[cost], row[bound] = (0.0, 0.0) if same else bounded(*ends, scale, limits.confidence)
                row["passes"], row["why"] = (False, chance) if chance else _verdict(row, limits)
            passed = [row for row in found if row["passes"]]
            best = min(passed, key=lambda r: (-_number(r["speedup"], 0.0), r["candidate"] != "fp32"), default=None)
            for row in found:
                better = [o for o in found if o["speedup"] > row["speedup"] and o["brier_rise"] < row["brier_rise"]]
                beaten = ", ".join(o["candidate"] for o in better) if row is best else ""
                rows.append({"dataset": dataset, "backbone": backbone, "ship": row is best, "beaten_by": beaten} | row)
    return pd.DataFrame(rows, columns=COLUMNS).astype({"passes": object, "ship": bool})


@lru_cache(maxsize=1024)
def incompetent(results, dataset, backbone):
    """Why an FP32 model is below the floor of competence; empty for a competent model, and where that is unknown.

    Its accuracy must exceed the share of the largest class among its images, and its ROC-AUC 0.5, each with the lower
    end of the 95 % interval, or with its value where no interval is stored.
    """
    labels = results.predictions(dataset, backbone, "fp32")["label"]
    for metric, floor, other in (
        ("accuracy", labels.value_counts(normalize=True).max(), "always naming the largest class"),
        ("auroc", 0.5, "chance"),
    ):
        s = scores(results, metric)
        s = s[(s["dataset"] == dataset) & (s["backbone"] == backbone) & (s["regime"] == "fp32")]
        for value, low in s[["value", "low"]].itertuples(index=False):
            if _number(low, value) <= floor:
                least = "" if math.isnan(low) else f", at least {low:.3f}"
                name = title(metric).replace("Accuracy", "accuracy")
                return f"{CHANCE} {other} ({name} {value:.3f}{least}, where more than {floor:.3f} is needed)"
    return ""


def _number(value, otherwise):
    return otherwise if math.isnan(value) else value


def bounded(delta, low, high, scale, confidence):
    """(cost, its upper bound) from FP32 minus candidate and its 95 % interval, times `scale`.

    The distance from the estimate to the unfavourable end is scaled to the one-sided confidence as that of a normal
    variable. NaN ends give a NaN bound.
    """
    cost, *ends = (float(v) * scale for v in (delta, low, high))
    worst = math.nan if any(map(math.isnan, ends)) else max(ends)  # max() may lose a NaN
    return cost, cost + _reach(confidence) * (worst - cost)


def _reach(confidence):
    """Half a 95 % interval times this reaches the one-sided bound of this confidence."""
    return norm.ppf(confidence) / norm.ppf(0.975)


def _regimes(results, dataset, backbone, limits):
    """Candidates among the regimes of a cell; FP32 with the fastest of its baselines. Controls are not candidates."""
    for regime in (r for r in results.regimes if r not in regimes.CONTROLS):
        state = results.state(dataset, backbone, regime)
        row = {"candidate": regime, "state": state["status"], "reason": state["reason"], "compared": ("fp32", regime)}
        yield row | _time(results, backbone, regime, limits)


def _time(results, backbone, regime, limits):
    """TIMES of a regime on the CPU, the speed-up over eager FP32; NaN where it was not timed."""
    t = cpu_times(results, limits.batch_size)
    t = t[t["backbone"] == backbone]
    eager = t[(t["regime"] == "fp32") & t["baseline"].isin(["eager", ""])]
    mine = t[t["regime"] == regime].sort_values("p50_ms")
    if mine.empty or math.isnan(mine.iloc[0]["p50_ms"]):
        return dict.fromkeys(TIMES, math.nan)
    row = mine.iloc[0]
    bound = row["p50_ms"] + _reach(limits.confidence) * (row["p50_high"] - row["p50_ms"])
    speedup = eager.iloc[0]["p50_ms"] / row["p50_ms"] if len(eager) else math.nan
    return dict(zip(TIMES, (row["p50_ms"], bound, row["p99_ms"], speedup, row["size_mb"])))


def _runtimes(results, p, dataset, backbone, limits):
    """Candidates among the other runtimes (`p`: `peer_means`), without PyTorch's own, which are regimes."""
    p = p[(p["dataset"] == dataset) & (p["backbone"] == backbone) & (p["batch_size"] == limits.batch_size)]
    base = p[(p["runtime"] == "pytorch") & (p["precision"] == "fp32")]
    fp32 = _time(results, backbone, "fp32", limits)
    for row in p[~p["runtime"].str.startswith("pytorch")].to_dict("records"):
        speedup = base.iloc[0]["p50_ms"] / row["p50_ms"] if len(base) else math.nan
        p50, spread = fp32["p50_ms"] * fp32["speedup"] / speedup, row["p50_high"] / row["p50_ms"] - 1
        bound, p99 = p50 * (1 + _reach(limits.confidence) * spread), p50 * row["p99_ms"] / row["p50_ms"]
        compared = PEER_REFERENCE, f"{row['runtime']}-{row['precision']}"
        found = {"candidate": f"{row['runtime']} {row['precision']}", "state": "done", "compared": compared}
        yield found | dict(zip(TIMES, (p50, bound, p99, speedup, row["size_mb"])))


def _verdict(row, limits):
    """(passes, why) of one candidate."""
    if row["state"] != "done":
        missing = NOT_MEASURED if row["state"] == "missing" else row["state"]
        why = f"{row['state']}: {row['reason']}" if row["reason"] else missing
        return False if row["state"] in ("unsupported", "failed") else None, why
    failed, unknown = [], []
    checks = [(cost, bound, name, form) for cost, bound, _, name, form in COSTS.values()]
    for cost, bound, name, form in (*checks, ("p50_ms", "p50_bound_ms", "Latency is", "{:.1f} ms")):
        limit = limits.latency_ms if cost == "p50_ms" else getattr(limits, cost)
        if limit is None:
            continue
        text = f"{name} {form.format(row[cost])}"
        if math.isnan(row[cost]):
            unknown.append(f"{name.split()[0]} {NOT_MEASURED}")
        elif row[cost] > limit:
            failed.append(f"{text}, more than {form.format(limit)}")
        elif math.isnan(row[bound]):
            unknown.append(f"{text}, of unknown confidence")
        elif row[bound] > limit:
            failed.append(f"{text}, at worst {form.format(row[bound])}, more than {form.format(limit)}")
    if limits.latency_ms is None and math.isnan(row["speedup"]) and row["candidate"] != "fp32":
        unknown.append(f"Latency {NOT_MEASURED}")
    return False if failed else None if unknown else True, "; ".join([*failed, *unknown])


def text(table, limits):
    """The decisions as lines for a terminal."""
    budget = f", at most {limits.latency_ms:g} ms" if limits.latency_ms is not None else ""
    lines = [
        f"Limits: AUPRC loses at most {limits.auprc_loss_pp:g} points, Brier rises by at most {limits.brier_rise:g}, "
        f"NLL by {limits.nll_rise:g}{budget}, each with {100 * limits.confidence:g} % confidence; "
        f"batch {limits.batch_size}."
    ]
    for (dataset, backbone), group in table.groupby(["dataset", "backbone"], sort=False):
        named = {}
        for row in group.to_dict("records"):
            faster = "" if math.isnan(row["speedup"]) else f", {row['speedup']:.2f} times as fast as eager FP32"
            time = f"time {NOT_MEASURED}" if math.isnan(row["p50_ms"]) else f"{row['p50_ms']:.1f} ms{faster}"
            named.setdefault("ship" if row["ship"] else bool(row["passes"]), []).append(
                f"{title(row['candidate'])} ({time})" if row["passes"] else f"  {title(row['candidate'])}: {row['why']}"
            )
        lines += [
            "",
            f"{title(dataset)}, {title(backbone)}: {'ship ' + named['ship'][0] if 'ship' in named else nothing(group)}",
        ]
        lines += [f"  also passes: {'; '.join(named[True])}"] if True in named else []
        lines += [] if group["why"].str.startswith(CHANCE).all() else named.get(False, [])
    return "\n".join(lines)


def nothing(group):
    """Why none of the candidates of one dataset and backbone is shipped."""
    if len(group) and group["why"].str.startswith(CHANCE).all():
        return f"nothing: {group['why'].iloc[0]}"
    return NOT_MEASURED if group["passes"].isna().all() else "nothing passes"
