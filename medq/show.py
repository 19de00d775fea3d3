"""What notebooks show of a finished folder: pictures and short tables, from its files alone."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Image
from matplotlib.figure import Figure

from medq import artefacts, figures, metrics, paths
from medq.datasets.audit import summary
from medq.params import datasets
from medq.results import VARIANTS


def picture(figure):
    """A figure of `medq.figures` as an image with its alternative text."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=80)
    return Image(data=data.getvalue(), format="png", alt=figures.alt_text(figure))


def _predictions(folder, form=""):
    path = Path(folder) / f"predictions{form}.parquet"
    return pd.read_parquet(path) if path.is_file() else pd.DataFrame(columns=["image_id", "fold", "label"])


def before_and_after(folder):
    """Calibration of the FP32 model and of this cell's."""
    folder = Path(folder)
    cell = paths.Cell(**json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["cell"])
    start = folder.parents[len(Path(cell.place).parts)] / "fp32" / cell.place
    both = [_predictions(start), _predictions(folder)]
    return picture(figures.reliability(*both, labels=("FP32", "this cell"), regime=cell.regime))


def scores(folder):
    """The main metrics of every prediction table of a cell; the reason where there is none."""
    record = artefacts.record(folder) or {}
    if record.get("status") != "done":
        return f"{record.get('status', 'unfinished')}: {record.get('reason', '')}"
    rows, shown = {}, (*metrics.SCORES, "accuracy")
    for suffix, (_, _, label) in VARIANTS.items():
        frame = _predictions(folder, suffix)
        if len(frame):
            given = frame["label"].to_numpy(), frame.filter(regex="^p_").to_numpy()
            rows[label] = {metrics.TABLE[name].title: metrics.METRICS[name](*given) for name in shown}
    return pd.DataFrame(rows).T.round(4)


def kernels(folder):
    """The integer kernels that agree least with their simulation."""
    path = Path(folder) / "kernels.csv"
    return pd.read_csv(path).head(8) if path.is_file() else "No integer kernel was compared."


def images(folder, n=4):
    """The first images of each class, as later cells see them."""
    folds, names, pixels = _data(folder)
    figure = Figure(figsize=(1.25 * n, 1.35 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), n, squeeze=False)
    for label, row in enumerate(axes):
        for axis, position in zip(row, np.flatnonzero(folds["label"].to_numpy() == label)[:n], strict=False):
            axis.imshow(pixels[position])
        for axis in row:
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(names[label])
    figure.set_label(f"{n} images of each class: {', '.join(names)}.")
    return picture(figure)


def class_balance(folder):
    """Images of each class in each fold; -1 is the training part of a fixed split."""
    folds, names, _ = _data(folder)
    table = pd.crosstab(folds["label"].map(dict(enumerate(names))), folds["fold"]).reindex(names)
    return table.rename_axis(index="class").assign(all=table.sum(axis=1))


def copies(folder):
    """How many images the dataset holds more than once, and how many of those are on both sides of a split."""
    return summary(pd.read_csv(Path(folder) / "audit.csv", dtype={"image_id": str}, keep_default_na=False))


def _data(folder):
    folds = pd.read_csv(Path(folder) / "folds.csv", dtype={"image_id": str}, keep_default_na=False)
    spec = datasets()[Path(folder).parent.name]
    return folds, spec.class_titles(), np.load(paths.runs() / artefacts.record(folder)["pixels"], mmap_mode="r")
