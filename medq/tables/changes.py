"""The differences between regimes, once: what tables, figures, pages, claims and advice read."""

import math

import numpy as np
import pandas as pd

from medq.regimes import INT8
from medq.results import CELL, scores

SIMULATED = ".fake-quant"  # behind a regime's name in bootstrap.csv: its fake-quantized form
SCORES = ("auroc", "auprc", "ece", "ece_top_label", "brier")  # what every study stores of a model
COLUMNS = [*CELL, "form", "metric", "value", "low", "high", "interval"]


def changes(results, metrics=SCORES, *, form="converted", reference="fp32", klass=""):
    """Change of each metric from the regime `reference` to every other: a DataFrame with `COLUMNS`.

    One row per dataset, backbone, regime and metric, and one with the backbone `mean` over the backbones that
    have both regimes. `value` is the regime's score minus the reference's, in the metric's own unit; `low` and
    `high` are its 95 % interval over images. `interval` names where that is from: `paired` (the stored paired
    bootstrap), `independent` (both cells' own intervals, as though their images differed: too wide), or empty
    where there is none. `form` chooses among the INT8 models, `klass` a class instead of the macro average.
    """
    paired = {} if klass else _paired(results, reference, form)
    rows = []
    for metric in metrics:
        table = scores(results, metric, form=form, klass=klass)
        found = {tuple(r[c] for c in CELL): r for r in table.to_dict("records")}
        for (dataset, backbone, regime), after in found.items():
            before = found.get((dataset, backbone, reference))
            if before is not None and regime != reference:
                cell = (dataset, backbone, regime)
                rows.append([*cell, form, metric, *_change(before, after, paired.get((*cell, metric)))])
    frame = pd.DataFrame(rows, columns=COLUMNS)
    mean = frame.groupby(["dataset", "regime", "form", "metric"], sort=False)["value"].mean().reset_index()
    bounds = [
        paired.get((d, "all", r, m), (math.nan,) * 3)
        for d, r, m in zip(*(mean[c] for c in ("dataset", "regime", "metric")))
    ]
    mean[["low", "high"]] = np.array([b[1:] for b in bounds]).reshape(-1, 2)
    mean = mean.assign(backbone="mean", interval=["" if math.isnan(b[1]) else "paired" for b in bounds])
    return pd.concat([frame, mean[COLUMNS]], ignore_index=True) if len(frame) else frame


def _paired(results, reference, form):
    """{(dataset, backbone, regime, metric): (change, low, high)} of the stored paired bootstrap of one form."""
    found = {}
    for r in results.bootstrap.to_dict("records"):
        key, methods = (r["dataset"], r["backbone"]), (r["method_a"], r["method_b"])
        if any(m in INT8 if form == "fake-quant" else m.endswith(SIMULATED) for m in methods):
            continue  # of the other form
        a, b = (m.removesuffix(SIMULATED) for m in methods)
        delta, low, high = (r[c] / 100 for c in ("delta_pp", "low_pp", "high_pp"))
        if a == reference:
            found[(*key, b, r["metric"])] = (-delta, -high, -low)
        elif b == reference:
            found[(*key, a, r["metric"])] = (delta, low, high)
    return found


def _change(before, after, paired):
    """(value, low, high, interval) of one change."""
    value = after["value"] - before["value"]
    if paired is not None and not math.isnan(paired[1]):
        return value, paired[1], paired[2], "paired"
    down = math.hypot(after["value"] - after["low"], before["high"] - before["value"])
    up = math.hypot(after["high"] - after["value"], before["value"] - before["low"])
    return value, value - down, value + up, "" if math.isnan(down + up) else "independent"
