"""Under the paper's protocol: does PTQ collapse as the margins of the page *What we expect* define it, and what brings it?

The margins stand here and on that page, and were there before the first result.
"""

import math
from functools import lru_cache

import pandas as pd

from medq import paths, results as found
from medq.changes import changes, paired
from medq.regimes import INT8, REGIMES, method

NONE = {"brier": 0.02, "auroc": 0.01}  # a change whose whole interval is smaller than this is none
SHARE = 0.5  # of the paper's own rise of the Brier score: a change above it is the paper's collapse
DESIGN = {  # result folder: weights and pixels of models of the same training images
    "pretrained": ("ImageNet", 224),
    "pretrained-64": ("ImageNet", 64),
    "pretrained-scratch-224": ("none", 224),
    "pretrained-scratch-64": ("none", 64),
}
# Result folders that hold quantization-aware training; a model that is in both counts where it has more of it.
WITH_TRAINING = ("pretrained", "pretrained-qat")
LABELS = {  # of the columns, in print
    "fp32_brier": "FP32: Brier",
    "fp32_auroc": "FP32: ROC-AUC",
    "brier": "Change of Brier",
    "auroc": "Change of ROC-AUC",
    "stem_weights": "First convolution: weights, widest / narrowest",
    "all_weights": "Median convolution: weights, widest / narrowest",
    "stem_outputs": "First convolution: outputs, widest / median",
    "last_db": "Logits: signal to noise (dB)",
}
FORMS = {  # of INT8 models, as a column: (form, recipe) in metrics.csv
    form or "converted" if recipe == "default" else recipe: (form or "converted", recipe)
    for recipe, form, _ in found.VARIANTS.values()
}
LABELS |= dict(zip(FORMS, (title.capitalize() for _, _, title in found.VARIANTS.values())))
CHANGES = [f"{metric}{end}" for metric in ("brier", "auroc") for end in ("", "_low", "_high")]


def margin(dataset):
    """Half of the paper's own rise of the mean Brier score on `dataset` under PTQ (Table 1); NaN where it has none."""
    means = found.means(found.published(), "brier", form="fake-quant")
    value = means[means["dataset"] == found.counterpart(dataset)].set_index("regime")["value"]
    return SHARE * (value["ptq-fbgemm"] - value["fp32"]) if len(value) else math.nan


def verdict(change, least, of_seeds=()):
    """`collapse`, `none` or `undecided` of a change against FP32.

    `change` {brier, brier_low, …, auroc_high}: PTQ minus FP32 with the ends of its intervals; `least`: what the Brier
    score must rise by (`margin`); `of_seeds`: the change of the Brier score of each seed, all on the mean's side. Without
    an interval (a class with few groups) a change is undecided.
    """
    if change["brier_low"] > least and change["auroc_high"] < -NONE["auroc"] and all(v > least for v in of_seeds):
        return "collapse"
    small = all(max(abs(change[f"{m}_low"]), abs(change[f"{m}_high"])) <= margin for m, margin in NONE.items())
    return "none" if small and all(abs(v) <= NONE["brier"] for v in of_seeds) else "undecided"


def _over_images(results, dataset, backbone, regime):
    """Intervals over images of the simulated change, {brier_low, …}: with several seeds others also cover trainings."""
    rows = {m: paired(results, m, regime + found.SIMULATED, "fp32", dataset, backbone) for m in NONE}
    return {f"{m}_{end}": row[f"images_{end}"] for m, row in rows.items() if row for end in ("low", "high")}


@lru_cache(maxsize=16)
def _brier_of_seeds(results):
    """{(dataset, backbone, regime, form, recipe): Series {seed: Brier score}} of metrics.csv; empty without seeds."""
    results.check("metrics.csv")
    keys = ["dataset", "backbone", "regime", "form", "recipe"]
    options = {"dtype": dict.fromkeys(["seed", "fold"], "str"), "keep_default_na": False}
    frame = found.read_table(results.path / "metrics.csv", [*keys, "metric", "class", "value"], **options)
    if "seed" not in frame:
        return {}
    frame = frame.query("metric == 'brier' and fold == 'pooled' and `class` == '' and seed not in ('', 'mean')")
    return {key: part.set_index("seed")["value"].astype(float) for key, part in frame.groupby(keys)}


def of_seeds(results, dataset, backbone, regime, form, recipe="default"):
    """A Series {seed: change of the Brier score against its FP32 model}; empty where the folder has no seeds or no such form."""
    scores, none = _brier_of_seeds(results), pd.Series(dtype=float)
    after = scores.get((dataset, backbone, regime, form if regime in INT8 else "float", recipe), none)
    return (after - scores.get((dataset, backbone, "fp32", "float", "default"), none)).dropna()


def under_protocol(results, regimes=("ptq-fbgemm", "ptq-qnnpack"), form="fake-quant"):
    """FP32, the change under PTQ and what it counts as, for every dataset and backbone.

    Columns: dataset, backbone, regime, fp32_brier, fp32_auroc, `CHANGES`, seeds, verdict. The hypothesis is about
    `ptq-fbgemm`, simulated; other rows get no verdict. It is decided by the interval over images of the mean over seeds
    and by each seed, as was written first; the intervals shown also cover other trainings, where there are several seeds.
    """
    frame = changes(results, tuple(NONE), form=form)
    frame = frame[frame["regime"].isin(regimes) & (frame["backbone"] != "mean")]
    before = {m: found.scores(results, m).set_index(found.CELL)["value"] for m in NONE}
    rows = []
    for cell, part in frame.groupby(found.CELL, sort=False):
        dataset, backbone, regime = cell
        part = part.set_index("metric")
        ends = [c.rpartition("_") if c not in NONE else (c, "", "value") for c in CHANGES]
        change = {c: part[end].get(metric, math.nan) for c, (metric, _, end) in zip(CHANGES, ends)}
        seeds = of_seeds(results, dataset, backbone, regime, form)
        decides = regime == "ptq-fbgemm" and form == "fake-quant" and not (part["interval"] == "independent").any()
        rows.append(
            {"dataset": dataset, "backbone": backbone, "regime": regime}
            | {f"fp32_{m}": before[m].get((dataset, backbone, "fp32"), math.nan) for m in NONE}
            | change
            | {"seeds": max(1, len(seeds))}
            | {"verdict": verdict(change | _over_images(results, *cell), margin(dataset), seeds) if decides else ""}
        )
    columns = ["dataset", "backbone", "regime", "fp32_brier", "fp32_auroc", *CHANGES, "seeds", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def _held(names, folder, *arguments):
    """(name, `under_protocol`) of each of these result folders that is there."""
    for name in names:
        if (folder / name / "metrics.csv").is_file():
            yield name, under_protocol(found.Results(name, folder / name), *arguments)


def _trained(folder):
    """{(dataset, backbone): Results} of the models that went through quantization-aware training, where it has most trainings."""
    held, most = {}, {}
    for name in WITH_TRAINING:
        results = found.Results(name, folder / name)
        cells = results.cells[results.cells["status"] == "done"]
        for model, n in cells[cells["regime"].map(method) == "qat"].groupby(["dataset", "backbone"]).size().items():
            if n > most.get(model, 0):
                held[model], most[model] = results, n
    return held


def with_training(form="fake-quant", folder=paths.RESULTS):
    """`under_protocol` of the models that also went through quantization-aware training, and the column `results`: its folder."""
    held, parts = _trained(folder), [pd.DataFrame(columns=["dataset", "backbone", "regime", "results"])]
    for results in dict.fromkeys(held.values()):
        table = under_protocol(results, [r for r in REGIMES if r != "fp32"], form).drop(columns="verdict")
        chosen = [held.get(model) is results for model in zip(table["dataset"], table["backbone"])]
        parts.append(table[chosen].assign(results=results.name))
    return pd.concat(parts[1:] or parts).sort_values("dataset", kind="stable", ignore_index=True)


def taken_back(engine, backbone="mobilenetv2", folder=paths.RESULTS):
    """A Series {dataset: share} of the rise of the Brier score under PTQ, simulated, that QAT takes back in the same trainings."""
    ptq, qat = (f"{method}-{engine}{found.SIMULATED}" for method in ("ptq", "qat"))
    shares = {}
    for (dataset, name), results in _trained(folder).items():
        gain, left = (paired(results, "brier", *pair, dataset, name) for pair in ((ptq, qat), (qat, "fp32")))
        if name == backbone and gain and left:
            shares[dataset] = gain["value"] / (gain["value"] + left["value"])
    return pd.Series(shares, dtype=float).sort_index()


def by_conversion(results, backbone="mobilenetv2"):
    """Change of the Brier score after QAT, by form, of each training that was also converted with the scales of training.

    Columns: dataset, regime, seed and `FORMS`; mended is as converted where no kernel is wrong.
    """
    parts = [pd.DataFrame(columns=["dataset", "regime", "seed", *FORMS])]
    for dataset in results.datasets:
        for regime in [r for r in INT8 if method(r) == "qat"]:
            values = {name: of_seeds(results, dataset, backbone, regime, *form) for name, form in FORMS.items()}
            part = pd.DataFrame(values).dropna(subset="as-trained").rename_axis("seed").reset_index()
            parts.append(part.assign(dataset=dataset, regime=regime, mended=part["mended"].fillna(part["converted"])))
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)[parts[0].columns]


def weights_by_resolution(folder=paths.RESULTS):
    """MobileNetV2's change under fbgemm for {ImageNet weights, none} × {64, 224} pixels.

    Columns: dataset, weights, pixels and those of `under_protocol`.
    """
    parts = [pd.DataFrame(columns=["dataset"])]
    for name, table in _held(DESIGN, folder, ["ptq-fbgemm"]):
        weights, pixels = DESIGN[name]
        chosen = table["backbone"].eq("mobilenetv2") & table["dataset"].isin(["BrainMRI", "SkinCancer"])
        parts.append(table[chosen].assign(weights=weights, pixels=pixels))
    table = pd.concat(parts[1:] or parts, ignore_index=True)
    return table.reindex(columns=["dataset", "weights", "pixels", "fp32_brier", "fp32_auroc", *CHANGES, "verdict"])


def channels_by_resolution(folder=paths.RESULTS):
    """How much the channels of MobileNetV2 differ, and what is left of its signal, for the models of `DESIGN` that were diagnosed.

    Columns: dataset, weights, pixels; stem_weights and all_weights: widest over narrowest range of the weights of an output
    channel, in the first convolution and as the median of all; stem_outputs: widest over median range of the channels that the
    first convolution gives; last_db: signal to noise of the logits in dB, under fbgemm.
    """
    rows = []
    for name, place in DESIGN.items():
        layers = found.Results(name, folder / name).layers.query("backbone == 'mobilenetv2' and regime == 'ptq-fbgemm'")
        for dataset, of_model in layers.groupby("dataset"):
            convolutions = of_model[of_model["operator"] == "Conv2d"]
            stem, ratio = convolutions.iloc[0], "weight_range_ratio"
            weights, outputs = (stem[ratio], convolutions[ratio].median()), stem["channel_range_ratio"]
            rows.append([dataset, *place, *weights, outputs, of_model["sqnr_db"].iloc[-1]])
    columns = ["dataset", "weights", "pixels", "stem_weights", "all_weights", "stem_outputs", "last_db"]
    return pd.DataFrame(rows, columns=columns).sort_values(["dataset", "weights", "pixels"], ignore_index=True)
