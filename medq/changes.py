"""The differences between regimes, once: what tables, figures, pages, claims and advice read."""

import math

import pandas as pd

from medq.metrics import SCORES
from medq.regimes import INT8
from medq.results import CELL, scores

SIMULATED = ".fake-quant"  # behind a regime's name in bootstrap.csv: its fake-quantized form
COLUMNS = [*CELL, "form", "metric", "value", "low", "high", "interval"]


def paired(results, metric, a, b, dataset, backbone="all"):
    """Method `a` minus `b` by the stored paired bootstrap: a dict with value, low, high, p_value, p_holm, trainings.

    Numbers are in the metric's own unit. `all` pools over backbones; None where no such comparison is stored.
    """
    if "_paired" not in vars(results):
        keys = ["metric", "dataset", "backbone", "method_a", "method_b"]
        own = results.bootstrap[["delta_pp", "low_pp", "high_pp"]].div(100).set_axis(["value", "low", "high"], axis=1)
        table = results.bootstrap.join(own)
        numbers = table[["value", "low", "high", "p_value", "p_holm", "trainings"]].to_dict("records")
        vars(results)["_paired"] = dict(zip(table[keys].itertuples(index=False, name=None), numbers))
    rows = vars(results)["_paired"]
    if (row := rows.get((metric, dataset, backbone, a, b))) is not None:
        return row
    row = rows.get((metric, dataset, backbone, b, a))
    return row and row | {"value": -row["value"], "low": -row["high"], "high": -row["low"]}


def changes(results, metrics=SCORES, *, form="converted", reference="fp32", klass=""):
    """Change of each metric from the regime `reference` to every other: a DataFrame with `COLUMNS`.

    One row per dataset, backbone, regime and metric, and one with the backbone `mean` over the backbones that
    have both regimes. `value` is the regime's score minus the reference's, in the metric's own unit; `low` and
    `high` are its 95 % interval over images. `interval` names where that is from: `paired` (the stored paired
    bootstrap), `independent` (both cells' own intervals, as though their images differed: too wide), or empty
    where there is none. `form` chooses among the INT8 models, `klass` a class instead of the macro average.
    """

    def stored(metric, dataset, backbone, regime):
        names = (r + SIMULATED if form == "fake-quant" and r in INT8 else r for r in (regime, reference))
        row = None if klass else paired(results, metric, *names, dataset, backbone)
        return {"interval": "paired"} | row if row and not math.isnan(row["low"]) else {}

    rows = []
    for metric in metrics:
        table = scores(results, metric, form=form, klass=klass)
        found = {tuple(r[c] for c in CELL): r for r in table.to_dict("records")}
        for (dataset, backbone, regime), after in found.items():
            before = found.get((dataset, backbone, reference))
            if before is None or regime == reference:
                continue
            value = after["value"] - before["value"]
            down = math.hypot(after["value"] - after["low"], before["high"] - before["value"])
            up = math.hypot(after["high"] - after["value"], before["value"] - before["low"])
            apart = {
                "low": value - down,
                "high": value + up,
                "interval": "" if math.isnan(down + up) else "independent",
            }
            row = dict(zip(CELL, (dataset, backbone, regime))) | {"form": form, "metric": metric}
            rows.append(row | {"value": value} | apart | stored(metric, dataset, backbone, regime))
    frame = pd.DataFrame(rows, columns=COLUMNS)
    mean = frame.groupby(["dataset", "regime", "form", "metric"], sort=False)["value"].mean().reset_index()
    pooled = {"backbone": "mean", "low": math.nan, "high": math.nan, "interval": ""}
    rows = [pooled | stored(r["metric"], r["dataset"], "all", r["regime"]) | r for r in mean.to_dict("records")]
    return pd.concat([frame, pd.DataFrame(rows, columns=COLUMNS)], ignore_index=True) if rows else frame
