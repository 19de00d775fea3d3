"""Held-out parts, subsets and inner splits: by class, and never tearing a group apart (section 2.3)."""

import hashlib
import warnings

import numpy as np
import pandas as pd

from medq.datasets.index import DatasetWarning
from medq.datasets.spec import SPLITS
from medq.errors import UserError

ATTEMPTS = 100  # draws of an inner split before it is given up


def folds(index, spec, seed=42):
    """The fold in which each image is held out: DataFrame [image_id, label, group, fold], in the index's order.

    `index` is a frame of medq.datasets.index. Each fold 0 … spec.folds.n - 1 is held out in turn and the others train. A
    release with a fixed split has the one fold 0, its held-out part; images of its training part have -1. Section 2.3:
    stratified by class, and by group if the dataset has groups (scikit-learn's StratifiedKFold and StratifiedGroupKFold,
    shuffled with `seed`). Raises UserError for classes with fewer images, or groups, than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    table = index[["image_id", "label", "group"]].reset_index(drop=True)
    if spec.folds.scheme == "fixed":
        return table.assign(fold=np.where(index["split"].to_numpy() == "held_out", 0, -1))
    n, unit = spec.folds.n, "group" if spec.grouped else "image_id"
    found = table.groupby("label")[unit].nunique().reindex(range(len(spec.classes)), fill_value=0)
    few = [f"{spec.classes[label]} ({count})" for label, count in found.items() if count < n]
    if few:
        units = "groups" if spec.grouped else "images"
        raise UserError(
            f"{spec.name}: {n} folds need at least {n} {units} of each class, but found only "
            f"{', '.join(few)}: add images or lower folds.n in params/datasets.yaml."
        )
    fold = np.empty(len(table), dtype=np.int64)
    labels, groups = table["label"].to_numpy(), table["group"].to_numpy(dtype=object)
    splitter = (StratifiedGroupKFold if spec.grouped else StratifiedKFold)(n, shuffle=True, random_state=seed)
    for k, (_, held_out) in enumerate(splitter.split(labels, labels, groups if spec.grouped else None)):
        fold[held_out] = k
        absent = [name for label, name in enumerate(spec.classes) if label not in labels[held_out]]
        if absent:
            warnings.warn(f"{spec.name}: fold {k} holds no {', '.join(absent)}", DatasetWarning, stacklevel=2)
    return table.assign(fold=fold)


def subset(folds, sizes, fold, seed=42):
    """The images of one cell: `folds` [image_id, label, group, fold] with a column `part`, "train" or "held_out".

    `sizes` {"train": n or None, "held_out": n or None} limits each part (None: all). A limited part keeps the shares of
    the classes, at least one image of each, and whole groups, so it may differ from n by a few images. The choice
    depends on ids and seed alone. Raises UserError for an unknown fold or a size below the number of classes.
    """
    known = sorted(set(folds["fold"]) - {-1})
    if fold not in known:
        raise UserError(f"unknown fold {fold!r}: known are {', '.join(map(str, known))}.")
    chosen = []
    for part in SPLITS:
        rows = folds[(folds["fold"] == fold) == (part == "held_out")].assign(part=part)
        size, n_classes = sizes[part], rows["label"].nunique()
        if size is not None and size < n_classes:
            raise UserError(f"subset.{part} is {size}: {n_classes} classes need at least one image each.")
        chosen.append(rows if size is None or size >= len(rows) else rows[_drawn(rows, size, seed)])
    return pd.concat(chosen, ignore_index=True)


def inner_split(train, fraction=0.2, seed=42):
    """Split the training rows for model selection inside them: (fit, selection), two frames like `train`.

    `train` has image_id, label and group; about `fraction` of each class goes to the second frame, whole groups only,
    at least one image of each class on either side. Raises UserError if no such split is found, as for classes with
    fewer than two groups.
    """
    size = max(train["label"].nunique(), round(fraction * len(train)))
    for attempt in range(ATTEMPTS):
        taken = _drawn(train, size, seed if not attempt else f"{seed}/{attempt}", leave=1)
        lost = set(train["label"]) - (set(train["label"][taken]) & set(train["label"][~taken]))
        if not lost:
            return train[~taken].reset_index(drop=True), train[taken].reset_index(drop=True)
    raise UserError(
        "selection: inner needs two images (or groups) of each class in the training part, so that each side of the "
        f"split has one; none was found for label {', '.join(map(str, sorted(lost)))}."
    )


def _drawn(rows, size, seed, leave=0):
    """Mask over `rows`: about `size` images in the classes' shares, whole groups, `leave` groups of each class left out.

    A group with several classes counts for the rarest of them. Groups come in the order of a hash of seed and name, so
    that neither other rows nor a library's generator matter; one that would exceed the share of its class is skipped,
    unless the class has none yet.
    """
    rarity = rows.groupby("label")["group"].nunique()
    first = rows.assign(rarity=rows["label"].map(rarity)).sort_values(["rarity", "label"], kind="stable")
    groups = first.groupby("group", sort=True).agg(label=("label", "first"), images=("label", "size"))
    rank = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in groups.index]
    groups = groups.assign(rank=rank).sort_values("rank")
    shares = _shares(groups.groupby("label")["images"].sum(), size)
    taken = set()
    for label, of_class in groups.groupby("label"):
        room, most = shares[label], len(of_class) - leave
        smallest = of_class["images"].min()
        for name, images in of_class["images"].items():
            first = room == shares[label] and images <= max(room, smallest)
            if most > 0 and (images <= room or first):
                taken.add(name)
                room, most = room - images, most - 1
    for label in rarity.index:  # a class whose groups all count for rarer ones may still be absent
        holders = set(rows["group"][rows["label"] == label])
        if not holders & taken:
            taken.add(next(name for name in groups.index if name in holders))
    return rows["group"].isin(taken).to_numpy()


def _shares(available, size):
    """`size` divided among classes in proportion to `available` (largest remainders), at least 1 each."""
    exact = available * size / available.sum()
    share = np.maximum(1, np.floor(exact).astype(int))
    while share.sum() > size:
        share[(share - exact).where(share > 1, -np.inf).idxmax()] -= 1
    for label in (exact - np.floor(exact)).sort_values(ascending=False, kind="stable").index:
        if share.sum() < size and share[label] < available[label]:
            share[label] += 1
    return share
