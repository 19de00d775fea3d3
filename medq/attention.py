"""Does quantization move what a model looks at? Class activation maps of a cell's models against those of FP32."""

import base64
import io
import math
from functools import cache, partial

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

from medq import bootstrap, finetune, params as profiles
from medq.augment import normalise
from medq.quantize import kernels, stage, static
from medq.quantize.cam import maps
from medq.quantize.engines import Unsupported
from medq.results import SCHEMA

TABLE, GALLERY = "attention.csv", "gallery.csv"
KEYS = ["dataset", "backbone", "regime", "form", "view", "fold"]
CONTROL = "fp32-continued"
TOP = 0.2  # share of the positions that `overlap` compares
IMAGES = 512  # held-out images at most
RESAMPLES = 2000  # enough for percentiles
KEPT = 3  # images at each end of the gallery
VIEWS = {  # the same images under another light. No mirror: strides sample its mirrored positions up to one cell away
    "": normalise,
    "brighter": lambda images: normalise((1.1 * images).clamp(max=255)),
    "darker": lambda images: normalise(0.9 * images),
}


def measure(params, cell, part):
    """({attention.csv: how far the maps of the models of `cell` lie from those of FP32, gallery.csv}, facts).

    The INT8 regimes and the control of the profile are made first if need be. FP32 on brighter and darker images
    says how far maps move without quantization. gallery.csv holds images of phantoms; of other datasets it is empty.
    """
    tables, shown, reasons = [pd.DataFrame(columns=SCHEMA[TABLE])], [pd.DataFrame(columns=SCHEMA[GALLERY])], []
    rows = np.sort(np.random.default_rng(params.seed).permutation(part.held_out)[:IMAGES])
    try:
        if profiles.backbones()[cell.backbone].family != "cnn":
            raise Unsupported("class activation maps need the feature map of a convolutional backbone")
        original = static.fused(stage.float_model(params, cell, part), "traced")
        reference = maps(original, stage.calibration_batches(part, rows))
    except (Unsupported, FloatingPointError) as error:
        return {TABLE: tables[0], GALLERY: shown[0]}, {"status": "unsupported", "reason": str(error)}
    facts = {"method": "CAM" if reference.exact() else "Grad-CAM", "grid": reference.side}
    for regime, form, view, make in _models(params, cell, part, original):
        try:
            found = maps(make(), stage.calibration_batches(part, rows, VIEWS[view]), reference.classes)
            frame = shifts(reference, found, params.image_size)
        except (Unsupported, FloatingPointError, kernels.Unknown) as error:
            reasons.append(f"{regime} ({form}): {error}")
            continue
        key = dict(zip(KEYS, (cell.dataset, cell.backbone, regime, form, view, cell.fold)))
        tables.append(summarised(frame, part.group[rows], params.seed).assign(**key, **facts))
        if form == "converted" and cell.dataset.startswith("phantom-"):
            shown.append(_gallery(frame, reference, found, part, rows).assign(**key))
    found = {TABLE: pd.concat(tables)[SCHEMA[TABLE]], GALLERY: pd.concat(shown)[SCHEMA[GALLERY]]}
    return found, {"reason": "; ".join(reasons)} if reasons else {}


run = stage.study("attention", measure)


def _models(params, cell, part, original):
    """(regime, form, view, function that makes the model) of everything that is compared with FP32."""

    def continued():
        finetune.run(params, cell.of(CONTROL))
        return static.fused(stage.float_model(params, cell, part, CONTROL), "traced")

    @cache
    def observed(name):
        model, batches = stage.float_model(params, cell, part), stage.calibration(params, part)
        return stage.prepared_model(model, "cnn", name, batches, params.image_size)

    yield from (("fp32", "float", view, lambda: original) for view in VIEWS if view)
    if CONTROL in params.controls:
        yield CONTROL, "float", "", continued
    for regime in params.regimes:
        method, _, name = regime.partition("-")
        if method == "ptq":
            yield regime, "fake-quant", "", lambda name=name: static.simulate(observed(name))
            yield regime, "converted", "", lambda name=name: static.convert(observed(name), name)
        if method == "qat":
            yield regime, "converted", "", partial(stage.trained_integer, params, cell.of(regime))


def shifts(reference, found, image_size):
    """How far each map of `found` lies from that of `reference` (`Maps` of the same images and classes): a row an image.

    rank_correlation: Spearman's, over positions; overlap: intersection over union of the TOP share of the positions;
    peak_shift: distance between the maxima in pixels; change: of the class's probability. The first three are NaN where
    a map is constant. Raises `Unsupported` where the maps differ in size.
    """
    side = reference.side
    if found.side != side:
        raise Unsupported(
            f"its last feature map has {found.side} × {found.side} positions, that of FP32 {side} × {side}"
        )
    first, second = (m.values.flatten(1).double().numpy() for m in (reference, found))
    a, b = (rankdata(values, axis=1) - (side**2 + 1) / 2 for values in (first, second))
    with np.errstate(invalid="ignore"):
        correlation = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    k = math.ceil(TOP * side**2)
    a, b = (rankdata(-values, "ordinal", axis=1) <= k for values in (first, second))
    peaks = np.stack([np.divmod(values.argmax(1), side) for values in (first, second)])
    before, after = (m.of_class(torch.softmax(m.logits.double(), 1)).numpy() for m in (reference, found))
    frame = pd.DataFrame({"rank_correlation": correlation, "overlap": (a & b).sum(1) / (a | b).sum(1)})
    frame["peak_shift"] = np.hypot(*(peaks[0] - peaks[1])) * image_size / side
    frame.loc[np.isnan(correlation)] = np.nan
    return frame.assign(change=after - before)


def summarised(frame, groups, seed, n_resamples=RESAMPLES):
    """Mean of each measure of `shifts` over the images with its 95 % interval: measure, n, value, low, high.

    `absolute_change` is the mean of |change|; `relation` is Spearman's correlation, over images, of how far a map moved
    (1 - rank_correlation) with |change|. `groups` [n] are resampled instead of images; n counts the images that have a
    value.
    """
    frame = frame.assign(absolute_change=frame["change"].abs())
    counts = np.stack(list(bootstrap.resample_counts(len(frame), n_resamples, groups=groups, seed=seed)))
    known = frame.notna().to_numpy()
    moved, change = frame.loc[known[:, 0], ["rank_correlation", "absolute_change"]].to_numpy().T
    with np.errstate(invalid="ignore"):
        means = (counts @ frame.fillna(0).to_numpy()) / (counts @ known.astype(float))
        relation = rank_correlation(-moved, change, np.ones((1, len(moved))))[0]
        blocks = np.array_split(counts[:, known[:, 0]], math.ceil(n_resamples / 500))  # bounds the memory
        relations = np.concatenate([rank_correlation(-moved, change, block) for block in blocks])
    replicates = pd.DataFrame(means, columns=frame.columns).assign(relation=relations)
    low, high = replicates.quantile([(1 - bootstrap.LEVEL) / 2, (1 + bootstrap.LEVEL) / 2]).to_numpy()
    n, value = [*known.sum(0), len(moved)], [*frame.mean(), relation]
    return pd.DataFrame({"measure": replicates.columns, "n": n, "value": value, "low": low, "high": high})


def rank_correlation(x, y, counts):
    """Spearman's correlation of x [n] with y [n] in samples that hold each pair `counts` [samples, n] times: [samples]."""
    total = counts.sum(1, keepdims=True)
    a, b = (_ranks(values, counts) - (total + 1) / 2 for values in (x, y))
    return (counts * a * b).sum(1) / np.sqrt((counts * a**2).sum(1) * (counts * b**2).sum(1))


def _ranks(values, counts):
    """Mean ranks of `values` [n] in each sample, [samples, n]."""
    distinct, place = np.unique(values, return_inverse=True)
    tied = counts @ np.eye(len(distinct))[place]
    return (tied.cumsum(1) - (tied - 1) / 2)[:, place]


def _gallery(frame, reference, found, part, rows):
    """The images whose map moved most and least: image (PNG in base64), both maps (numbers row by row)."""
    from PIL import Image

    order, lines = frame["rank_correlation"].dropna().sort_values(kind="stable").index, []
    for moved, chosen in (("most", order[:KEPT]), ("least", order[::-1][:KEPT])):
        for place, i in enumerate(chosen, 1):
            buffer = io.BytesIO()
            Image.fromarray(np.asarray(part.images[rows[i]])).save(buffer, "PNG")
            line = [moved, place, part.image_id[rows[i]], *frame.loc[i, ["rank_correlation", "change"]]]
            line += [base64.b64encode(buffer.getvalue()).decode()]
            line += [" ".join(f"{value:.4g}" for value in m.values[i].flatten()) for m in (reference, found)]
            lines.append(line)
    return pd.DataFrame(lines, columns=SCHEMA[GALLERY][len(KEYS) :])
