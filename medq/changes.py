"""The differences between regimes, once: what tables, figures, pages, claims and advice read."""

import math
from functools import lru_cache

import pandas as pd

from medq.metrics import SCORES
from medq.regimes import INT8
from medq.results import CELL, SIMULATED, scores

COLUMNS = [*CELL, "form", "metric", "value", "low", "high", "interval"]


def paired(results, metric, a, b, dataset, backbone="all"):
    """Method `a` minus `b` by the stored paired bootstrap: a dict with value, low, high, p_value, p_holm, trainings.

    `images_low` and `images_high` are the interval over other images alone, not over other trainings. Numbers are in the
    metric's own unit. `all` pools over backbones; None where no such comparison is stored.
    """
    rows = _pairs(results)
    if (row := rows.get((metric, dataset, backbone, a, b))) is not None:
        return row
    row = rows.get((metric, dataset, backbone, b, a))
    turned = {"low": "high", "high": "low", "images_low": "images_high", "images_high": "images_low", "value": "value"}
    return row and row | {name: -row[other] for name, other in turned.items()}


@lru_cache(maxsize=64)
def _pairs(results):
    """bootstrap.csv as {(metric, dataset, backbone, method a, method b): numbers}."""
    keys = ["metric", "dataset", "backbone", "method_a", "method_b"]
    names = {f"{name}_pp": name for name in ("low", "high", "images_low", "images_high")} | {"delta_pp": "value"}
    table = results.bootstrap.join(results.bootstrap[list(names)].div(100).rename(columns=names))
    numbers = table[[*names.values(), "p_value", "p_holm", "trainings"]].to_dict("records")
    return dict(zip(table[keys].itertuples(index=False, name=None), numbers))


def changes(results, metrics=SCORES, *, form="converted"):
    """Change of each macro-averaged metric from FP32 to every other regime: a DataFrame with `COLUMNS`.

    One row per dataset, backbone, regime and metric, and one with the backbone `mean` over the backbones that
    have both regimes. `value` is the regime's score minus that of FP32, in the metric's own unit; `low` and
    `high` are its 95 % interval over images. `interval` names where that is from: `paired` (the stored paired
    bootstrap), `independent` (both cells' own intervals, as though their images differed: too wide), or empty
    where there is none. `form` chooses among the INT8 models.
    """

    def stored(metric, dataset, backbone, regime):
        names = (r + SIMULATED if form == "fake-quant" and r in INT8 else r for r in (regime, "fp32"))
        row = paired(results, metric, *names, dataset, backbone)
        return {"interval": "paired"} | row if row and not math.isnan(row["low"]) else {}

    rows = []
    for metric in metrics:
        table = scores(results, metric, form=form)
        found = {tuple(r[c] for c in CELL): r for r in table.to_dict("records")}
        for (dataset, backbone, regime), after in found.items():
            before = found.get((dataset, backbone, "fp32"))
            if before is None or regime == "fp32":
                continue
            value = after["value"] - before["value"]
            down = math.hypot(after["value"] - after["low"], before["high"] - before["value"])
            up = math.hypot(after["high"] - after["value"], before["value"] - before["low"])
            apart = {"low": value - down, "high": value + up}
            apart["interval"] = "" if math.isnan(down + up) else "independent"
            row = dict(zip(CELL, (dataset, backbone, regime))) | {"form": form, "metric": metric}
            rows.append(row | {"value": value} | apart | stored(metric, dataset, backbone, regime))
    frame = pd.DataFrame(rows, columns=COLUMNS)
    mean = frame.groupby(["dataset", "regime", "form", "metric"], sort=False)["value"].mean().reset_index()
    pooled = {"backbone": "mean", "low": math.nan, "high": math.nan, "interval": ""}
    rows = [pooled | stored(r["metric"], r["dataset"], "all", r["regime"]) | r for r in mean.to_dict("records")]
    return pd.concat([frame, pd.DataFrame(rows, columns=COLUMNS)], ignore_index=True) if rows else frame
