"""Tables of what results are made of: images, folds, machines, epochs, and one cell's own numbers."""

import pandas as pd

from medq import params, paths
from medq.results import CELL, STUDY_TITLES, class_title, published, title


def balance(results):
    """Images per class: dataset, class, release, in these results, share, held out.

    `release` counts the public release, `in these results` the stored fold assignment, `held out` its images
    in folds that were run.
    """
    rows = []
    for name in results.datasets:
        spec, folds = params.datasets().get(name), results.folds(name)
        done = folds["fold"].isin(set(results.cells.loc[results.cells["dataset"] == name, "fold"]))
        for label, klass in enumerate(results.classes(name)):
            ours = folds["label"].isin([str(label), klass])
            release = sum(part.get(klass, 0) for part in spec.release.values()) if spec else 0
            rows.append([name, klass, release, ours.sum(), ours.sum() / max(1, len(folds)), (ours & done).sum()])
    return pd.DataFrame(rows, columns=["dataset", "class", "release", "in these results", "share", "held out"])


def folds(results):
    """Every fold: dataset, fold, images, groups, rarest (class), of it (images of that class)."""
    rows = []
    for name in results.datasets:
        classes = results.classes(name)
        for fold, part in results.folds(name).groupby("fold"):
            counts = part["label"].value_counts()
            rare = counts.idxmin()
            rarest = class_title(name, classes[int(rare)] if rare.isdigit() else rare)
            rows.append([name, str(fold), len(part), part["group"].nunique(), rarest, counts.min()])
    return pd.DataFrame(rows, columns=["dataset", "fold", "images", "groups", "rarest", "of it"])


def conditions(results):
    """What the machine was doing during each timing."""
    found = results.conditions
    found = found.assign(timing=found["stage"].map(STUDY_TITLES), backbone=found["backbone"].map(title))
    found["commit"] = found["commit"].str[:7]
    columns = "timing dataset backbone threads load_before load_after others seconds cpu commit".split()
    return found[columns]


def versions(results):
    """Versions that these results were measured with: package, version."""
    return pd.DataFrame(list(results.provenance.get("versions", {}).items()), columns=["package", "version"])


def selection(results):
    """Accuracy at the chosen epoch against the mean of that epoch and its two neighbours, per trained cell.

    Columns: dataset, backbone, regime, epochs, best_epoch, accuracy, around_it, optimism (percentage points).
    Cells whose best epoch is the first or last are left out: a neighbour is missing, the model may still be
    learning.
    """
    rows = []
    for key, history in results.history.sort_values("epoch").groupby([*CELL, "fold"], sort=False):
        accuracy = history["accuracy"].to_numpy()
        best = int(accuracy.argmax())
        if 0 < best < len(accuracy) - 1:
            around = accuracy[best - 1 : best + 2].mean()
            rows.append([*key[:3], len(accuracy), history["epoch"].iloc[best], accuracy[best], around])
    frame = pd.DataFrame(rows, columns=[*CELL, "epochs", "best_epoch", "accuracy", "around_it"])
    frame = frame.groupby(CELL, sort=False).mean().reset_index()
    return frame.assign(optimism=100 * (frame["accuracy"] - frame["around_it"]))


def batch_norm_sizes():
    """How batch normalisation shows in a model's size: `book/_data/batch_norm.csv` beside the paper.

    Columns: backbone; traced, fused, paper (FP32 over INT8 size); nearer (of the two to the paper's); and how
    much one image's logits change with its neighbours in a model prepared for QAT, relative to their spread:
    `qat_traced` as it is traced, `qat_replaced` with the module replaced first.
    """
    frame = pd.read_csv(paths.ROOT / "book" / "_data" / "batch_norm.csv")
    ratios = published().ratios.set_index("backbone")["size_ratio"]
    frame["paper"] = frame["backbone"].map(ratios)
    frame["nearer"] = frame[["traced", "fused"]].sub(frame["paper"], axis=0).abs().idxmin(axis=1)
    return frame[["backbone", "traced", "fused", "paper", "nearer", "qat_traced", "qat_replaced"]]


def channels():
    """What one range does to each channel of a trained MobileNetV2's first layer (`book/_data/channels.py`)."""
    return pd.read_csv(paths.ROOT / "book" / "_data" / "channels.csv")


# --- one cell -------------------------------------------------------------------------------------

FORMS = {"float": "deployed", "converted": "deployed (converted)", "fake-quant": "fake-quantized"}


def of_cell(frame, dataset, backbone, regime):
    """The rows of one cell."""
    return frame[(frame["dataset"] == dataset) & (frame["backbone"] == backbone) & (frame["regime"] == regime)]


def _deployed(results, cell):
    """Rows of metrics.csv of one cell, pooled over folds where they were."""
    frame = of_cell(results.metrics, *cell)
    return frame[frame["fold"] == "pooled"] if (frame["fold"] == "pooled").any() else frame


def cell_numbers(results, dataset, backbone, regime):
    """Every macro metric of a cell: metric, then a column for each form and recipe of the model, and its interval."""
    frame = _deployed(results, (dataset, backbone, regime))
    frame = frame[frame["class"] == ""]
    if frame.empty:
        return pd.DataFrame(columns=["metric", "95 % interval"])
    named = frame["form"].replace(FORMS).where(frame["recipe"].isin(["default", ""]), frame["recipe"])
    wide = frame.assign(form=named).groupby(["metric", "form"], sort=False)["value"].mean().unstack("form")
    wide = wide[sorted(wide.columns, key=lambda column: not column.startswith("deployed"))]
    known = of_cell(results.intervals, dataset, backbone, regime)
    known = known[(known["class"] == "") & known["form"].isin(["float", "converted"])]
    bounds = {r.metric: f"{r.low:.4f}–{r.high:.4f}" for r in known[::-1].itertuples()}
    wide.insert(1, "95 % interval", [bounds.get(m, "–") for m in wide.index])
    return wide.reset_index().rename_axis(None, axis=1)


def cell_classes(results, dataset, backbone, regime):
    """AUPRC, ROC-AUC and ECE of each class of a cell as it would be deployed."""
    frame, shown = _deployed(results, (dataset, backbone, regime)), ["auprc", "auroc", "ece"]
    frame = frame[(frame["class"] != "") & frame["form"].isin(["float", "converted"])]
    frame = frame[frame["recipe"].isin(["default", ""]) & frame["metric"].isin(shown)]
    wide = frame.groupby(["class", "metric"], sort=False)["value"].mean().unstack("metric")
    wide = wide.reindex(columns=shown).reset_index().rename_axis(None, axis=1)
    return wide.assign(**{"class": [class_title(dataset, c) for c in wide["class"]]})
