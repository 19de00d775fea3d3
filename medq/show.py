"""What notebooks show of a finished folder: pictures and short tables, from its files alone."""

import io
import json
from pathlib import Path

import pandas as pd

from medq import artefacts

FAKE_QUANT, DEPLOYED = "predictions.fake-quant.parquet", "predictions.parquet"


def picture(figure):
    """A figure of `medq.figures` as an image with its alternative text."""
    from IPython.display import Image

    from medq.figures import alt_text

    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=80)
    return Image(data=data.getvalue(), format="png", alt=alt_text(figure))


def _cell(folder):
    """(dataset, backbone, regime) of a cell's folder."""
    cell = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))["cell"]
    return cell["dataset"], cell["backbone"], cell["regime"]


def _predictions(folder, name=DEPLOYED):
    path = Path(folder) / name
    return pd.read_parquet(path) if path.is_file() else pd.DataFrame(columns=["image_id", "fold", "label"])


def _label(folder):
    from medq.results import title

    return ", ".join(title(name) for name in _cell(folder))


def training_curve(folder):
    """Loss and accuracy per epoch."""
    from medq import figures

    path = Path(folder) / "history.csv"
    history = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["epoch"])
    return picture(figures.training_curve(history, regime=_cell(folder)[2], label=_label(folder)))


def confusion_matrix(folder):
    """Counts of true against predicted class."""
    from medq import figures

    return picture(figures.confusion_matrix(_predictions(folder), dataset=_cell(folder)[0], label=_label(folder)))


def reliability(folder):
    """Confidence against the share of right answers."""
    from medq import figures

    return picture(figures.reliability(_predictions(folder), regime=_cell(folder)[2], label=_label(folder)))


def before_and_after(folder):
    """Calibration of the FP32 model and of this cell's."""
    from medq import figures

    folder = Path(folder)
    before = _predictions(folder.parent.parent / "fp32" / folder.name)
    return picture(
        figures.before_after(before, _predictions(folder), labels=("FP32", "this cell"), regime=_cell(folder)[2])
    )


def scores(folder):
    """The main metrics of every prediction table of a cell; the reason where there is none."""
    from medq.metrics import METRICS
    from medq.results import METRICS as TITLES

    record = artefacts.record(folder) or {}
    if record.get("status") != "done":
        return f"{record.get('status', 'unfinished')}: {record.get('reason', '')}"
    rows = {}
    for name, label in (
        (DEPLOYED, "as deployed"),
        (FAKE_QUANT, "simulated"),
        ("predictions.mended.parquet", "mended engine"),
    ):
        frame = _predictions(folder, name)
        if len(frame):
            truth, probability = frame["label"].to_numpy(), frame.filter(regex="^p_").to_numpy()
            rows[label] = {
                TITLES[m]: METRICS[m](truth, probability)
                for m in ("auroc", "auprc", "ece", "ece_top_label", "brier", "accuracy")
            }
    return pd.DataFrame(rows).T.round(4)


def kernels(folder):
    """The integer kernels that agree least with their simulation."""
    path = Path(folder) / "kernels.csv"
    return pd.read_csv(path).head(8) if path.is_file() else "No integer kernel was compared."


def images(folder, n=4):
    """The first images of each class, as later cells see them."""
    import numpy as np
    from matplotlib.figure import Figure

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
    """How many images stand in the dataset more than once, and how many of those on both sides of a split."""
    from medq.datasets.audit import summary

    return summary(pd.read_csv(Path(folder) / "audit.csv", dtype={"image_id": str}, keep_default_na=False))


def _data(folder):
    import numpy as np

    from medq import paths
    from medq.params import datasets

    folds = pd.read_csv(Path(folder) / "folds.csv", dtype={"image_id": str}, keep_default_na=False)
    spec = datasets()[Path(folder).parent.name]
    return folds, spec.class_titles(), np.load(paths.runs() / artefacts.record(folder)["pixels"], mmap_mode="r")
