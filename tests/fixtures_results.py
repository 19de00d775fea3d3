"""Write a complete, schema-true result folder with simulated predictions: `write(folder, ...)`.

The predictions are simulated, and every metric is computed from them here with NumPy alone; intervals,
bootstraps and timings are made up around them. By default the world is the paper's: FP16 and QAT match
FP32, PTQ degrades, most of all MobileNetV2 and EfficientNet-B0. Arguments bend that world, so that a test
can see a verdict or a picture change.
"""

import base64
import io
import json
import tempfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from medq.bootstrap import TESTED
from medq.results import SCHEMA, Results

STILL = ("ece", "ece_top_label")  # claims and advice read intervals of these
CLASSES = {
    "BrainMRI": (["glioma", "meningioma", "notumor", "pituitary"], [0.23, 0.23, 0.31, 0.23]),
    "ChestXray": (["COVID", "Normal", "Viral Pneumonia"], [0.33, 0.54, 0.13]),
    "SkinCancer": (["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"], [0.05, 0.06, 0.11, 0.04, 0.12, 0.57, 0.05]),
}
BACKBONES = [
    "resnet18",
    "resnet50",
    "densenet121",
    "efficientnet_b0",
    "mobilenetv2",
    "convnext_tiny",
    "swin_tiny",
    "vit_base",
]
REGIMES = ["fp32", "fp16", "ptq-fbgemm", "ptq-qnnpack", "qat-fbgemm", "qat-qnnpack", "fp32-continued"]
SHARPNESS = {"BrainMRI": 4.6, "ChestXray": 4.2, "SkinCancer": 2.4}  # logit of the true class above the others
FRAGILITY = dict(zip(BACKBONES, [0.35, 0.25, 0.5, 0.9, 1.0, 0.6, 0.4, 0.3]))
FP32_MS = dict(zip(BACKBONES, [6.7, 16.0, 74.8, 9.6, 6.3, 14.6, 20.8, 37.7]))
SPEEDUP = dict(zip(BACKBONES, [3.39, 3.45, 5.62, 1.05, 1.2, 1.8, 1.5, 1.6]))
SIZE_RATIO = dict(zip(BACKBONES, [3.96, 3.92, 3.49, 3.21, 3.13, 3.86, 3.95, 3.88]))
TRANSFORMERS = BACKBONES[-2:]


_FOLDER = tempfile.TemporaryDirectory(prefix="results-")  # goes when the tests end


@cache
def world(**options):
    """The `Results` of `write(**options)`, written once per test run; change nothing in it."""
    folder = Path(_FOLDER.name) / f"world{zlib.crc32(repr(sorted(options.items())).encode())}"
    return Results("world", write(folder, **options))


def bent(results, **tables):
    """The same results with tables replaced: `latency=function of the DataFrame` or `latency=DataFrame`."""
    copy = Results(results.name, results.path)
    for file in SCHEMA:  # read once for all bent copies
        vars(copy)[file.split(".")[0]] = getattr(results, file.split(".")[0])
    for name, change in tables.items():
        table = getattr(results, name)
        vars(copy)[name] = change(table.copy()) if callable(change) else change
    return copy


def rng(*names):
    """A generator that depends on the names alone."""
    return np.random.default_rng(zlib.crc32("/".join(map(str, names)).encode()))


def engine(regime):
    """`fbgemm`, `qnnpack`, or empty for floating point."""
    return regime.split("-")[1] if regime.startswith(("ptq", "qat")) else ""


def labels(dataset, n):
    """Labels [n] with the dataset's imbalance, every class present."""
    _, shares = CLASSES[dataset]
    return np.searchsorted(np.cumsum(shares), (np.arange(n) + 0.5) / n).clip(0, len(shares) - 1)


def probabilities(dataset, backbone, regime, form, n, damage, wrong_engine):
    """Simulated probabilities [n, classes]: FP32's logits, made noisy and over-confident by `damage` (0 to
    1)."""
    y, k = labels(dataset, n), len(CLASSES[dataset][0])
    logits = rng("logits", dataset, backbone).normal(size=(n, k)) * 1.6
    logits[np.arange(n), y] += SHARPNESS[dataset] + 0.3 * rng("skill", dataset, backbone).normal()
    noise = rng("noise", dataset, backbone, regime).normal(size=(n, k))
    logits += (0.02 if regime == "fp16" else 0.1) * noise * (regime != "fp32")
    logits = (1 - damage) * logits + damage * 4.0 * noise
    if wrong_engine:
        logits = rng("scrambled", dataset, backbone).permuted(logits, axis=1)
    e = np.exp((logits - logits.max(1, keepdims=True)) * (1 + 2 * damage))
    return (e / e.sum(1, keepdims=True)).astype(np.float32)


def metric_rows(y, p, classes):
    """{(metric, class): value}, written apart from medq.metrics."""
    k, onehot = len(classes), np.eye(len(classes))[y]
    auroc, auprc, ece = [], [], []
    for c in range(k):
        order = np.argsort(-p[:, c], kind="stable")
        hit = onehot[order, c]
        precision = np.cumsum(hit) / np.arange(1, len(y) + 1)
        auprc.append((precision * hit).sum() / hit.sum())
        ranks = np.empty(len(y))
        ranks[order[::-1]] = np.arange(1, len(y) + 1)
        positives = hit.sum()
        below = ranks[y == c].sum() - positives * (positives + 1) / 2
        auroc.append(below / (positives * (len(y) - positives)))
        ece.append(_ece(p[:, c], onehot[:, c]))
    brier = ((p - onehot) ** 2).mean(0)
    top = p.max(1)
    right = p.argmax(1) == y
    rows = {
        ("ece_top_label", ""): _ece(top, right),
        ("accuracy", ""): right.mean(),
        ("brier", ""): brier.sum(),
        ("nll", ""): -np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)).mean(),
    }
    for name, values in (("auroc", auroc), ("auprc", auprc), ("ece", ece)):
        rows[name, ""] = float(np.mean(values))
        rows |= {(name, c): float(v) for c, v in zip(classes, values)}
    return rows | {("brier", c): float(v) for c, v in zip(classes, brier)}


def _ece(p, hit):
    place = np.ceil(p * 15).astype(int).clip(1, 15)
    return np.abs(np.bincount(place, weights=p - hit, minlength=16)).sum() / len(p)


def write(
    folder,
    *,
    datasets=tuple(CLASSES),
    backbones=tuple(BACKBONES),
    regimes=tuple(REGIMES),
    n=150,
    phantoms=False,
    ptq=1.0,
    qat=0.02,
    fp16=0.0,
    engine_gap=0.0,
    unsupported=(),
    failed=(),
    missing=(),
    disagree=(),
    omit=(),
    folds=1,
    predictions=True,
    tail=1.05,
    speedup=None,
):
    """Write the folder and return its path.

    `ptq`, `qat`, `fp16`: damage done by each kind of regime (0 none, 1 the paper's). `engine_gap`: damage
    that qnnpack's converted models take on top. `unsupported`, `failed`, `missing`, `disagree`: cells as
    (dataset, backbone, regime). `omit`: file names left out. `tail`: p99/p50. `speedup`: {backbone: ratio}.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    world = {"ptq": ptq, "qat": qat, "fp16": fp16, "gap": engine_gap, "n": n, "folds": folds}
    named = {f"phantom-{d}" if phantoms else d: d for d in datasets}
    cells, metrics, intervals, scores = [], [], [], {}
    for name, dataset in named.items():
        for backbone in backbones:
            for regime in regimes:
                cell = (name, backbone, regime)
                if cell in missing:
                    continue
                state = "unsupported" if cell in unsupported else "failed" if cell in failed else "done"
                reason = {
                    "unsupported": "failed to create add operator: scale ratio out of range",
                    "failed": "the kernel died",
                    "done": "",
                }[state]
                agrees = "" if not engine(regime) or state != "done" else str(cell not in disagree)
                note = "ReLU6 off by 6.0" if agrees == "False" else ""
                cells += [(*cell, k, state, reason, 10.0, 5, agrees, note) for k in range(folds)]
                if state == "done":
                    made = _cell(folder, cell, dataset, world, cell in disagree, predictions)
                    metrics += made["metrics"]
                    intervals += made["intervals"]
                    scores |= made["scores"]
    tables = {
        "cells.csv": cells,
        "metrics.csv": metrics,
        "intervals.csv": intervals + _mean_intervals(intervals),
        "bootstrap.csv": _bootstrap(scores, named, backbones),
        **_timing(backbones, regimes, tail, speedup),
        **_studies(scores, named, backbones),
        **_histories(cells),
    }
    for file, rows in tables.items():
        if file not in omit:
            _save(folder / file, rows)
    if "provenance.json" not in omit:
        facts = _provenance(named, backbones, regimes, n, folder.name)
        (folder / "provenance.json").write_text(json.dumps(facts))
    if "folds" not in omit:
        _folds(folder, named, n, folds)
    return folder


def _save(path, rows):
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows, columns=SCHEMA[path.name])
    assert list(frame.columns) == SCHEMA[path.name], path
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)


def _damage(regime, backbone, world):
    if regime.startswith("ptq"):
        return min(1.0, world["ptq"] * FRAGILITY[backbone])
    return world["qat"] if regime.startswith("qat") else world["fp16"] if regime == "fp16" else 0.0


def _cell(folder, cell, dataset, world, wrong, predictions):
    name, backbone, regime = cell
    classes, y = CLASSES[dataset][0], labels(dataset, world["n"])
    base = _damage(regime, backbone, world)
    forms = [("float", "", base, False)]
    if engine(regime):
        more = world["gap"] if regime.endswith("qnnpack") else 0.0
        forms = [("fake-quant", "fake-quant", base, False), ("converted", "", min(1.0, base + more), wrong)]
        if regime.endswith("qnnpack") and wrong:
            forms.append(("converted", "mended", base, False))
    out = {"metrics": [], "intervals": [], "scores": {}}
    for form, variant, damage, scrambled in forms:
        p = probabilities(dataset, backbone, regime, form, world["n"], damage, scrambled)
        values = metric_rows(y, p, classes)
        recipe = "mended" if variant == "mended" else "default"
        out["metrics"] += [(*cell, recipe, form, "pooled", *key, value) for key, value in values.items()]
        if recipe == "default":
            out["intervals"] += [
                (
                    *cell,
                    form,
                    *key,
                    v,
                    max(0, v - 0.01),
                    v + 0.01 if key[0] in ("brier", "nll") else min(1, v + 0.01),
                    np.nan,
                    1,
                    1,
                )
                for key, v in values.items()
                if key[0] in (*TESTED, *STILL)
            ]
            out["intervals"].append((*cell, form, "ece_floor", "", 0.02, 0.01, 0.03, np.nan, 1, 1))
            out["scores"][(*cell[:2], f"{regime}.fake-quant" if form == "fake-quant" else regime)] = values
        if predictions:
            target = folder / "predictions" / name / backbone
            target.mkdir(parents=True, exist_ok=True)
            frame = pd.DataFrame(
                {"image_id": [f"i{k}" for k in range(len(y))], "fold": np.arange(len(y)) % world["folds"], "label": y}
            )
            for k, c in enumerate(classes):
                frame[f"p_{c}"] = p[:, k]
            frame.to_parquet(target / f"{regime}{'.' + variant if variant else ''}.parquet", index=False)
    return out


def _mean_intervals(intervals):
    frame = pd.DataFrame(intervals, columns=SCHEMA["intervals.csv"])
    frame = frame[frame["class"] == ""]
    mean = frame.groupby(["dataset", "regime", "form", "metric"])["value"].agg(["mean", "std"]).reset_index()
    return [
        (
            r.dataset,
            "mean",
            r.regime,
            r.form,
            r.metric,
            "",
            r.mean,
            max(0, r.mean - 0.004),
            r.mean + 0.004 if r.metric in ("brier", "nll") else min(1, r.mean + 0.004),
            r.std,
            8,
            1,
        )
        for r in mean.itertuples(index=False)
    ]


def _bootstrap(scores, named, backbones):
    pairs = [("fp32", "fp16")] + [
        (a, f"{b}-{e}") for a, b in (("fp32", "ptq"), ("fp32", "qat")) for e in ("fbgemm", "qnnpack")
    ]
    pairs += [(f"ptq-{e}", f"qat-{e}") for e in ("fbgemm", "qnnpack")]
    pairs += [(f"{k}-fbgemm", f"{k}-qnnpack") for k in ("ptq", "qat")]
    pairs += [("fp32-continued", f"qat-{e}") for e in ("fbgemm", "qnnpack")]
    pairs += [(a if "32" in a else f"{a}.fake-quant", f"{b}.fake-quant") for a, b in pairs[1:]]
    pairs += [(f"{r}.fake-quant", r) for r in (f"{k}-{e}" for k in ("ptq", "qat") for e in ("fbgemm", "qnnpack"))]
    rows = []
    for name in named:
        for a, b in pairs:
            for metric in (*TESTED, *STILL):
                deltas = {
                    k: 100 * (scores[name, k, a][metric, ""] - scores[name, k, b][metric, ""])
                    for k in backbones
                    if (name, k, a) in scores and (name, k, b) in scores
                }
                if deltas:
                    deltas["all"] = float(np.mean(list(deltas.values())))
                for who, delta in deltas.items():
                    half = 0.6 if who == "all" else 1.0
                    p = 0.0005 if abs(delta) > half else 0.4
                    n, ends = len(deltas) - 1 if who == "all" else 1, (delta - half, delta + half)
                    rows.append((name, who, a, b, metric, 2000, delta, *ends, p, p, min(1, p * 8), n, 1))
    return rows


def _timing(backbones, regimes, tail, speedup):
    latency, raw = [], []
    for backbone in backbones:
        for regime in regimes:
            if regime == "fp32-continued":
                continue
            ratio = (speedup or SPEEDUP)[backbone] if engine(regime) else 1.0
            slow = 25.0 if engine(regime) == "qnnpack" and backbone in TRANSFORMERS else 1.0
            baselines = {"eager": 1, "channels-last": 1.2, "fused": 1.35} if regime == "fp32" else {"": 1}
            for baseline, gain in baselines.items():
                for batch in (1, 32):
                    p50 = FP32_MS[backbone] * batch**0.9 / ratio / gain * slow
                    p99 = p50 * (tail if engine(regime) else 1.08)
                    convert = {"ptq": 60.0 if backbone not in TRANSFORMERS else 0.3, "qat": 0.6}.get(regime[:3], np.nan)
                    size = 100.0 / (SIZE_RATIO[backbone] if engine(regime) else 1)
                    latency.append(
                        (
                            "",
                            backbone,
                            regime,
                            baseline,
                            engine(regime),
                            "cpu",
                            batch,
                            2,
                            300,
                            p50 * 1.01,
                            p50,
                            p50 * 0.99,
                            p50 * 1.01,
                            p50 * 1.03,
                            p99,
                            p99 * 0.98,
                            p99 * 1.05,
                            1000 * batch / p50,
                            convert,
                            size,
                        )
                    )
                    times = 1 + 0.02 * rng(backbone, regime, baseline, batch).normal(size=40)
                    times *= p50 / np.median(times)
                    raw += [("", backbone, regime, baseline, batch, k, t) for k, t in enumerate(times)]
    return {"latency.csv": latency, "latency_raw.parquet": raw}


def _studies(scores, named, backbones):
    cnns = [b for b in backbones if b not in TRANSFORMERS]
    tables = {
        name: []
        for name in (
            "calibration_size.csv",
            "ablation.csv",
            "layers.csv",
            "remedies.csv",
            "attention.csv",
            "gallery.csv",
            "silent.csv",
            "flips.csv",
            "leak.csv",
            "peers.csv",
        )
    }
    for name, dataset in named.items():
        for backbone in backbones:
            if (name, backbone, "ptq-fbgemm") not in scores:
                continue
            fp, ptq = (scores.get((name, backbone, r)) for r in ("fp32", "ptq-fbgemm"))
            if fp is None:
                continue
            if backbone in cnns:
                _sweep(tables["calibration_size.csv"], name, backbone, ptq["auprc", ""])
                _ablation(tables["ablation.csv"], name, backbone, fp)
                _layers(tables["layers.csv"], name, backbone)
                _attention(tables["attention.csv"], tables["gallery.csv"], name, backbone)
            _remedies(tables["remedies.csv"], name, backbone, fp, ptq)
            for regime in ("ptq-fbgemm", "qat-fbgemm"):
                if (name, backbone, regime) in scores:
                    tables["silent.csv"] += [
                        (
                            name,
                            backbone,
                            regime,
                            "converted",
                            0,
                            c,
                            0.4,
                            0.95,
                            0.95 - 0.3 * k / 10,
                            0.9,
                            0.88,
                            0.2,
                            0.18,
                            3,
                            5,
                            150,
                        )
                        for k, c in enumerate(CLASSES[dataset][0])
                    ]
                    tables["flips.csv"].append((name, backbone, "fp32", regime, 0, 12, 3, 7, 150))
            if dataset == "BrainMRI":
                subsets = (("all", 150, 0), ("without-identical", 140, 0.004), ("without-twins", 110, 0.012))
                tables["leak.csv"] += [
                    (name, backbone, "fp32", "float", m, s, n, fp[m, ""] - d)
                    for m in ("auroc", "auprc", "brier")
                    for s, n, d in subsets
                ]
            _peers(tables["peers.csv"], name, backbone, fp)
    return tables


def _sweep(rows, name, backbone, auprc):
    spread = {"SkinCancer": 0.03}.get(name.removeprefix("phantom-"), 0.004)
    spread *= 1.8 if backbone in ("mobilenetv2", "convnext_tiny") else 1
    for n in (16, 32, 64, 128, 256, 512, 1024):
        for k in range(3):
            wobble = rng("sweep", name, backbone, n, k).normal() * spread
            rows.append((name, backbone, "ptq-fbgemm", 0, n, k, min(1.0, auprc - 0.04 * 16 / n + wobble)))


def _ablation(rows, name, backbone, fp):
    fragile = 0.3 if backbone == "mobilenetv2" else 0.02
    recipes = {
        "default": ("per-channel", "histogram", "True", "traced", "False", "True", 0.0),
        "per-tensor": ("per-tensor", "histogram", "True", "traced", "False", "True", fragile),
        "minmax": ("per-channel", "minmax", "True", "traced", "False", "True", 0.01),
        "not-normalised": ("per-channel", "histogram", "True", "traced", "False", "False", 0.4),
    }
    for recipe, (*factors, loss) in recipes.items():
        for form in ("fake-quant", "converted"):
            rows.append(
                (
                    name,
                    backbone,
                    recipe,
                    "fbgemm",
                    "fbgemm",
                    0,
                    form,
                    *factors,
                    fp["auprc", ""] - loss,
                    fp["auroc", ""] - loss / 2,
                    fp["ece", ""] + loss / 2,
                    fp["ece_top_label", ""] + loss,
                    fp["brier", ""] + loss,
                )
            )


def _layers(rows, name, backbone):
    for k in range(12):
        draw = rng("layer", name, backbone, k).random(4)
        rows.append(
            (
                name,
                backbone,
                "ptq-fbgemm",
                0,
                f"layer{k // 4}.{k % 4}.conv",
                "conv2d",
                45 - 25 * draw[0] - k,
                0.02 * draw[1],
                1 + 40 * draw[2],
                1 + 20 * draw[2],
                1 + 2 * draw[2],
                60 - 10 * draw[3],
                int(k == 5),
            )
        )


def _remedies(rows, name, backbone, fp, ptq):
    for remedy, share, cost in (
        ("fp32", 1, 3.0),
        ("none", 0, 1.0),
        ("temperature", 0.5, 1.0),
        ("worst-3-in-fp32", 0.6, 1.3),
        ("bias-correction", 0.2, 1.0),
        ("better-recipe", 0.9, 1.0),
    ):
        closed = {m: ptq[m, ""] + share * (fp[m, ""] - ptq[m, ""]) for m in ("auprc", "ece", "ece_top_label", "brier")}
        closed["auprc"] = ptq["auprc", ""] if remedy == "temperature" else closed["auprc"]
        rows.append((name, backbone, "ptq-fbgemm", 0, remedy, *closed.values(), 5.0 * cost))


def _attention(rows, shown, name, backbone):
    models = [("fp32", "float", "darker"), ("fp32-continued", "float", "")]
    models += [("ptq-fbgemm", "fake-quant", ""), ("ptq-fbgemm", "converted", "")]
    for k, key in enumerate(models):
        values = {"rank_correlation": 0.95 - 0.1 * k * FRAGILITY[backbone], "overlap": 0.8, "peak_shift": 3.0}
        values |= {"change": -0.02, "absolute_change": 0.05, "relation": 0.3}
        for measure, value in values.items():
            low, high = value - 0.02, value + 0.02
            rows.append((name, backbone, *key, 0, "Grad-CAM", 4, measure, 150, value, low, high))
    if backbone == "resnet18":
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
        image = base64.b64encode(buffer.getvalue()).decode()
        for moved, value in (("most", 0.2), ("least", 0.9)):
            for place in (1, 2):
                maps = [" ".join(str(k % n) for k in range(16)) for n in (3, 5)]
                row = (name, backbone, *models[-1], 0, moved, place, f"i{place}", value, -0.1, image, *maps)
                shown.append(row)


def _peers(rows, name, backbone, fp):
    for runtime, precision, gain, loss in (
        ("pytorch", "fp32", 1, 0),
        ("pytorch-fbgemm", "int8", 2.5, 0.02),
        ("onnxruntime", "fp32", 1.8, 0),
        ("onnxruntime", "int8", 3.5, 0.01),
        ("openvino", "fp32", 2.0, 0),
        ("openvino", "int8", 4.5, 0.005),
    ):
        for batch in (1, 32):
            p50 = FP32_MS[backbone] * batch / gain
            size = 25.0 if precision == "int8" else 100.0
            rows.append(
                (
                    name,
                    backbone,
                    0,
                    runtime,
                    precision,
                    224,
                    batch,
                    fp["auroc", ""] - loss,
                    fp["auprc", ""] - loss,
                    fp["ece", ""] + loss,
                    fp["ece_top_label", ""] + loss,
                    fp["brier", ""] + loss,
                    p50,
                    p50 * 1.1,
                    p50 * 0.99,
                    p50 * 1.01,
                    p50 * 1.05,
                    p50 * 1.2,
                    size,
                    2.0,
                    "",
                )
            )


def _histories(cells):
    rows = []
    for dataset, backbone, regime, fold, state, *_ in cells:
        if state == "done" and not regime.startswith("ptq"):
            for epoch in range(1, 6):
                accuracy = 1 - 0.5 * 0.6**epoch
                rows.append(
                    (dataset, backbone, regime, fold, epoch, 1.2 * 0.6**epoch, accuracy + 0.01, accuracy - 0.03)
                )
    return {"history.csv": rows}


def _provenance(named, backbones, regimes, n, profile):
    return {
        "profile": profile,
        "written": "2026-11-23T10:00:00+00:00",
        "platform": "Linux",
        "commit": {"hash": "0123456789abcdef0123456789abcdef01234567", "modified": False},
        "parameters": {
            "datasets": list(named),
            "backbones": list(backbones),
            "image_size": 64,
            "regimes": [r for r in regimes if r != "fp32-continued"],
            "controls": ["fp32-continued"],
            "weights": "none",
            "subset": {"train": 2000, "held_out": None},
            "latency": {"image_size": 224},
            "seed": 42,
        },
        "data": {
            name: {"fingerprint": "00", "n_images": n, "n_release": 7023, "n_train": 2 * n, "n_held_out": n}
            for name in named
        },
        "machines": [{"cpu": {"model": "Example CPU"}, "gpu": None}],
        "train_hours": 1.5,
        "versions": {"torch": "2.13.0", "python": "3.11.9"},
        "gpu": None,
        "cpu": {"model": "Example CPU", "machine": "x86_64", "cores": 2, "instructions": ["avx2", "avx512_vnni"]},
    }


def _folds(folder, named, n, folds):
    (folder / "folds").mkdir(exist_ok=True)
    for name, dataset in named.items():
        y = labels(dataset, n)
        pd.DataFrame(
            {
                "image_id": [f"i{k}" for k in range(n)],
                "label": y,
                "group": [f"g{k // 2}" for k in range(n)],
                "fold": np.arange(n) % folds,
            }
        ).to_csv(folder / "folds" / f"{name}.csv", index=False)
