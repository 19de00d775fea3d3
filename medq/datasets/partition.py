"""The stage `datasets`, and what each later cell takes from it: the rows to train on, to select with, to report on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medq import artefacts, keys, params as profiles, paths, provenance
from medq.datasets.audit import audit, twins_to_remove
from medq.datasets.folds import folds, inner_split, subset
from medq.datasets.index import index
from medq.datasets.pixels import pixels
from medq.errors import one_of
from medq.groups import connected

FOLDS, AUDIT = "folds.csv", "audit.csv"


@dataclass(frozen=True)
class Partition:
    """One fold of one dataset: decoded images, and positions in them."""

    images: np.ndarray  # uint8 [n, size, size, 3], memory-mapped
    labels: np.ndarray  # int [n]
    image_id: np.ndarray  # str [n]
    classes: tuple
    train: np.ndarray  # positions, ascending
    selection: np.ndarray  # positions that early stopping looks at
    held_out: np.ndarray  # positions that predictions are reported for
    group: np.ndarray  # str [n], the same for images of one group and for copies of each other


def prepare(params, dataset):
    """Folds, audit and decoded pixels of `dataset` for this profile; returns their folder.

    When all is there and no image has changed, it only checks that. Raises `UserError` for whatever is wrong with the
    images.
    """
    spec = profiles.datasets()[one_of("dataset", dataset, list(profiles.datasets()))]
    folder = paths.data_folder(params.profile, dataset)
    frame = index(spec, params.root())
    array, images = pixels(frame, params.image_size, paths.pixels())
    inputs = _inputs(params, dataset) | {"images": images}
    key = keys.key(inputs)
    with lock(folder):
        if artefacts.is_finished(folder, key):
            return folder
        assigned = folds(frame, spec, seed=params.seed)
        artefacts.write_csv(folder / FOLDS, assigned)
        artefacts.write_csv(folder / AUDIT, audit(frame, assigned))
        artefacts.write_json(
            folder / "manifest.json",
            provenance.manifest(params, dataset=dataset, fingerprint=images, n_images=len(array)),
        )
        content = {name: artefacts.sha256(folder / name) for name in (FOLDS, AUDIT)}  # all that a cell takes from here
        content |= {"images": images, "image_size": params.image_size}
        artefacts.finish(
            folder,
            [FOLDS, AUDIT, "manifest.json"],
            key=key,
            inputs=inputs,
            content=keys.key(content),
            pixels=str(Path(array.filename).relative_to(paths.runs())),
        )
    return folder


def _inputs(params, dataset):
    return keys.inputs(params, "datasets", paths.Cell(params.profile, dataset, "", ""))


def _prepared(params, dataset):
    """The prepared folder; an existing one made from the same parameters is taken without looking at every image."""
    folder = paths.data_folder(params.profile, dataset)
    facts = artefacts.record(folder)
    stored = {name: value for name, value in (facts or {}).get("inputs", {}).items() if name != "images"}
    same = facts and stored == _inputs(params, dataset)
    return folder if same and (paths.runs() / facts["pixels"]).is_file() else prepare(params, dataset)


def lock(folder):
    """An inter-process lock on one folder under `runs/`."""
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder / ".lock")


def once(params, stage, cell, make, folder=None):
    """The folder of `cell` in a stage (default: its own), made by `make(inputs)` under its lock unless it is finished."""
    folder, inputs = folder or cell.folder, keys.inputs(params, stage, cell)
    with lock(folder):
        if not artefacts.is_finished(folder, keys.key(inputs)):
            make(inputs)
    return folder


def training_sizes(params, spec, frame, numbers):
    """{fold: images to train on} of the folds `numbers` of an index; with `deduplicate` there may be fewer."""
    assigned = folds(frame, spec, seed=params.seed)
    no_twins = pd.DataFrame(columns=["image_id", "group_id"])
    return {fold: len(_parts(params, assigned, no_twins, fold)["train"]) for fold in numbers}


def _parts(params, assigned, twins, fold):
    """{train, selection, held_out: rows} of one fold, as the profile's subset, `deduplicate` and selection say.

    `twins` is the audit's table of images that are copies of each other, which never stand on both sides of the inner
    split, as the images of a group do not.
    """
    if params.deduplicate:
        assigned = assigned[~assigned["image_id"].isin(twins_to_remove(twins, assigned, fold))]
    parts = dict(list(subset(assigned, params.subset.model_dump(), fold, params.seed).groupby("part")))
    parts["selection"] = parts["held_out"]
    if params.train.selection == "inner":
        grouped = parts["train"].assign(group=_with_twins(parts["train"], twins))
        parts["train"], parts["selection"] = inner_split(grouped, seed=params.seed)
    return parts


def _with_twins(rows, twins):
    """The group of each of `rows`, groups that share copies made one: named after the first of them."""
    return rows["group"].groupby(connected(rows["image_id"], rows["group"], twins)).transform("min")


def partition(params, dataset, fold):
    """The `Partition` of one fold, subset and deduplicated as the profile says (`UserError` for an unknown fold).

    With `deduplicate`, training images with an identical, near or mirrored twin in the held-out part are left out. With
    `selection: inner`, early stopping looks at a part of the training images instead of the held-out ones.
    """
    spec = profiles.datasets()[one_of("dataset", dataset, list(profiles.datasets()))]
    folder = _prepared(params, dataset)
    assigned = pd.read_csv(folder / FOLDS, dtype={"image_id": str, "group": str}, keep_default_na=False)
    twins = pd.read_csv(folder / AUDIT, dtype={"image_id": str}, keep_default_na=False)
    position = pd.Series(np.arange(len(assigned)), index=assigned["image_id"])
    parts = _parts(params, assigned, twins, fold)
    rows = {name: np.sort(position[part["image_id"]].to_numpy()) for name, part in parts.items()}
    images = np.load(paths.runs() / artefacts.record(folder)["pixels"], mmap_mode="r")
    ids, group = assigned["image_id"].to_numpy(dtype=str), _with_twins(assigned, twins).to_numpy(dtype=str)
    return Partition(images, assigned["label"].to_numpy(), ids, spec.classes, **rows, group=group)
