"""Find images that a dataset holds more than once, and copies on both sides of a split.

Three kinds of pairs of decoded images:
identical  the same pixels in RGB at full size.
near       the same picture re-encoded, rescaled or re-lit: the normalised cross-correlation of the grey
           reductions to 64 × 64 is at least 0.995.
mirrored   the same after a left-right or up-down flip, or both.

On the BrainMRI release the best correlation of a test image with a training image is never between 0.992
and 0.997, in any of the four orientations: copies lie above, neighbouring slices below. The threshold is in that gap.
"""

import hashlib

import numpy as np
import pandas as pd

from medq.datasets.pixels import each, read_image
from medq.groups import components

NEAR = 0.995  # correlation at 64 × 64
_SIDE = 64
_COARSE, _CANDIDATE = 32, 0.98  # pairs below this at 32 × 32 are not looked at again
_BLOCK = 1024
_FLIPS = {"near": ((),), "mirrored": ((1,), (2,), (1, 2))}  # axes of [n, height, width]
KINDS = ("identical", *_FLIPS)


def audit(index, folds):
    """Groups of images that are copies of each other.

    `index` is a frame of medq.datasets.index, `folds` that of medq.datasets.folds for it. Returns a DataFrame [image_id,
    group_id (int), kind, spans (bool), label], one row per image and group, sorted. The kinds are independent: a `near`
    group is joined by near or identical pairs, at least one of them not identical, a `mirrored` group by pairs of all
    three kinds, at least one of them mirrored. `spans`: the images of the group are on both sides of the split, or in
    more than one fold. 10,000 images of 224 pixels take about a minute on one core, two thirds of it decoding. Raises
    UserError for unreadable images.
    """
    digests, fine, coarse = zip(*each(_reduced, index["path"].tolist(), "audit"), strict=True)
    _, first, same = np.unique(digests, return_index=True, return_inverse=True)
    pairs = {"identical": {(i, j) for j, i in enumerate(first[same].tolist()) if i != j}}
    unique = np.sort(first)
    fine, coarse = np.stack(fine)[unique], np.stack(coarse)[unique]
    for kind, flips in _FLIPS.items():
        alike = _alike(fine, coarse, flips)
        pairs[kind] = {(int(unique[i]), int(unique[j])) for i, j in alike}
    ids, labels, side = index["image_id"].tolist(), index["label"].tolist(), folds["fold"].to_numpy()
    rows, group_id, joined = [], 0, set()
    for kind in KINDS:
        new = pairs[kind] - joined
        joined |= new
        group = components(len(ids), sorted(joined))
        for number in np.unique(group[sorted({i for pair in new for i in pair})]):
            members = np.flatnonzero(group == number)
            spans = len(set(side[members])) > 1
            rows += [(ids[i], group_id, kind, spans, labels[i]) for i in members]
            group_id += 1
    frame = pd.DataFrame(rows, columns=["image_id", "group_id", "kind", "spans", "label"])
    return frame.astype({"group_id": "int64", "spans": bool, "label": "int64"})


def summary(audit):
    """How much there is of each kind: DataFrame [kind, groups, images, spanning_groups, conflicting_groups].

    A group conflicts if its images carry more than one label.
    """
    groups = audit.groupby(["kind", "group_id"]).agg(
        images=("image_id", "size"), spans=("spans", "first"), labels=("label", "nunique")
    )
    table = groups.groupby("kind").agg(
        groups=("images", "size"),
        images=("images", "sum"),
        spanning_groups=("spans", "sum"),
        conflicting_groups=("labels", lambda labels: int((labels > 1).sum())),
    )
    return table.reindex(KINDS, fill_value=0).rename_axis("kind").reset_index()


def twins_to_remove(audit, folds, fold=0):
    """image_ids, sorted, on the training side of `fold` with a copy in the held-out part (`deduplicate`)."""
    held_out = audit["image_id"].map(folds.set_index("image_id")["fold"] == fold).astype(bool)
    with_both = held_out.groupby(audit["group_id"]).transform("nunique") == 2
    return sorted(set(audit["image_id"][with_both & ~held_out]))


def _reduced(path):
    """Digest of an image's pixels, and its grey reductions uint8 [64, 64] and [32, 32]."""
    from PIL import Image

    image = read_image(path)
    digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
    grey = Image.fromarray(image).convert("L")
    # PIL's bilinear reduction treats left and right alike; its box filter does not at odd ratios.
    return digest, *(np.asarray(grey.resize((n, n), Image.Resampling.BILINEAR)) for n in (_SIDE, _COARSE))


def _alike(fine, coarse, flips):
    """Pairs i < j whose reductions correlate, one of them flipped along one of `flips`."""
    found = set()
    b = _standardised(coarse)
    for axes in flips:
        a = _standardised(np.flip(coarse, axes))
        for start in range(0, len(a), _BLOCK):
            alike = a[start : start + _BLOCK] @ b[start:].T >= _CANDIDATE
            i, j = (indices + start for indices in np.nonzero(alike))
            i, j = i[i < j], j[i < j]
            for part in range(0, len(i), _BLOCK):
                k, m = i[part : part + _BLOCK], j[part : part + _BLOCK]
                exact = np.einsum("ij,ij->i", _standardised(np.flip(fine[k], axes)), _standardised(fine[m]))
                found |= set(zip(k[exact >= NEAR].tolist(), m[exact >= NEAR].tolist(), strict=True))
    return found


def _standardised(images):
    """float32 [n, pixels], of mean 0 and length 1, so that dot products are correlations; flat images: 0."""
    flat = images.reshape(len(images), np.prod(images.shape[1:])).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.where(length < 1, np.inf, length)
