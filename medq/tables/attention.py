"""How far quantization moves class activation maps: what `medq.attention` measured, per model."""

import numpy as np

from medq.regimes import INT8
from medq.results import CELL, title

VIEWS = {"brighter": "FP32, image 10 % brighter", "darker": "FP32, image 10 % darker"}
FORMS = {"fake-quant": "simulated", "converted": "integer"}
SHOWN = ["rank_correlation", "rank_correlation_low", "rank_correlation_high", "overlap", "peak_shift"]
SHOWN += ["absolute_change", "relation", "relation_low", "relation_high"]


def attention_means(results):
    """One row per dataset, backbone, regime, form, view and measure: model (its title), method, grid, n, value, low, high.

    Of each backbone, FP32 on other views and the controls come first. Over several folds all are means, and n is the
    sum; the interval is then wider than it need be.
    """
    keys = [*CELL, "form", "view", "method", "grid", "measure"]
    kinds = {"n": "sum", "value": "mean", "low": "mean", "high": "mean"}
    frame = results.attention.groupby(keys, sort=False).agg(kinds).reset_index()
    place = 2 * frame.groupby(["dataset", "backbone"], sort=False).ngroup() + frame["regime"].isin(INT8)
    frame = frame.iloc[np.argsort(place, kind="stable")].reset_index(drop=True)
    words = zip(frame["regime"], frame["form"], frame["view"])
    models = [VIEWS.get(view) or ", ".join(filter(None, (title(r), FORMS.get(form)))) for r, form, view in words]
    return frame.assign(model=models)


def attention(results):
    """Maps of each model against those of FP32: dataset, backbone, model, method, grid, n (images with a map), SHOWN."""
    frame, keys = attention_means(results), ["dataset", "backbone", "model", "method", "grid"]
    wide = frame.pivot(index=keys, columns="measure", values=["value", "low", "high", "n"])
    wide.columns = [f"{measure}_{kind}".removesuffix("_value") for kind, measure in wide.columns]
    wide = wide.reindex(columns=["rank_correlation_n", *SHOWN]).rename(columns={"rank_correlation_n": "n"})
    rows = frame[keys].drop_duplicates()
    return rows.merge(wide.reset_index(), on=keys)
