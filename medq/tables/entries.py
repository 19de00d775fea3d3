"""What tables are made of: a number of ours with its interval, the paper's, and what is doubtful."""

import math

from medq import regimes
from medq.results import PHANTOM, title

FIELDS = ("ours", "low", "high", "paper", "state")
PAPER_REGIMES = list(regimes.PAPER)
DISAGREES = "kernels disagree with their simulation"


def by_key(frame, keys):
    """Rows of a frame as {key: row dict}."""
    return {tuple(row[k] for k in keys): row for row in frame.to_dict("records")}


def entry(row, paper, state=""):
    """FIELDS of one number of ours (a dict with value, low, high, or None) beside the paper's."""
    ours = [(row or {}).get(k, math.nan) for k in ("value", "low", "high")]
    return dict(zip(FIELDS, (*ours, paper, state)))


def cell_state(results, dataset, backbone, regime, form="converted"):
    """In words what a reader must know about a cell before its number; empty for a sound one."""
    cell = results.state(dataset, backbone, regime)
    if cell["status"] != "done":
        return cell["status"] + (f": {cell['reason']}" if cell["reason"] else "")
    if cell["engine_agrees"] is False and form == "converted":
        return DISAGREES + (f": {cell['note']}" if cell["note"] else "")
    return ""


def mean_state(results, dataset, regime, used, form):
    """In words which backbones a mean lacks, and in which of them the engine's kernels are wrong."""
    states = {b: cell_state(results, dataset, b, regime, form) for b in results.backbones}
    if not used:
        kinds, reasons = (sorted({s.partition(": ")[k] for s in states.values()} - {""}) for k in (0, 2))
        return (" / ".join(kinds) or "missing") + (f": {'; '.join(reasons)}" if reasons else "")
    lacking = [f"{title(b)} {s or 'missing'}" for b, s in states.items() if b not in used]
    wrong = [title(b) for b in used if states.get(b, "").startswith(DISAGREES)]
    parts = [f"{len(used)} of {len(results.backbones)} backbones ({'; '.join(lacking)})"] if lacking else []
    return "; ".join(parts + ([f"{DISAGREES}: {', '.join(wrong)}"] if wrong else []))


def absent(value):
    """Whether an entry's field holds no number."""
    return value is None or isinstance(value, float) and math.isnan(value)


def is_outside(entry):
    """Whether the paper's value lies outside our interval; False where either is missing."""
    if any(absent(entry[f]) for f in ("low", "high", "paper")):
        return False
    return not entry["low"] <= entry["paper"] <= entry["high"]


def comparable(results):
    """Whether models are the paper's or like them: fine-tuned from pretrained weights, real images of 224 pixels."""
    used = results.provenance.get("parameters", {})
    real = bool(results.datasets) and not any(d.startswith(PHANTOM) for d in results.datasets)
    like = (used.get("weights") or "none") != "none" and used.get("image_size", 0) >= 224
    return "source" in results.provenance or real and like


def covers(results):
    """What the intervals of a result folder cover, as a sentence for the note of a table."""
    if (results.intervals["trainings"] > 1).any():
        return "Intervals cover other images and another training."
    return "Each model was trained once: intervals cover other images alone, not another training."
