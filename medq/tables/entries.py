"""What tables are made of: a number of ours with its interval, the paper's, and what is doubtful."""

import math

import pandas as pd

from medq import regimes
from medq.results import title

FIELDS = ("ours", "low", "high", "paper", "state")
PAPER_REGIMES = list(regimes.PAPER)
DISAGREES = "kernels disagree with their simulation"


def captioned(frame, caption, *notes, **attributes):
    """Attach what `show` needs: caption, notes, and formats (column or row label -> format)."""
    frame.attrs = {"caption": caption, "notes": [n for n in notes if n], **attributes}
    return frame


def wide_layout(tidy, rows, column, order):
    """Tidy entries as the paper's layout: `rows` down, `column` across in `order`, FIELDS below each."""
    columns = pd.MultiIndex.from_product([order, FIELDS], names=[column, "field"])
    if tidy.empty:
        return pd.DataFrame(columns=columns, index=pd.MultiIndex.from_arrays([[]] * len(rows), names=rows))
    wide = tidy.pivot(index=rows, columns=column, values=list(FIELDS)).swaplevel(axis=1)
    wide = wide.reindex(columns=columns)
    found = tidy[rows].drop_duplicates()
    return wide.reindex(pd.MultiIndex.from_frame(found) if len(rows) > 1 else pd.Index(found[rows[0]]))


def by_key(frame, keys):
    """Rows of a frame as {key: row dict}."""
    return {tuple(row[k] for k in keys): row for row in frame.to_dict("records")}


def entry(row, paper, state=""):
    """FIELDS of one number of ours (a dict with value, low, high, or None) beside the paper's."""
    found = row or {}
    return {
        "ours": found.get("value", math.nan),
        "low": found.get("low", math.nan),
        "high": found.get("high", math.nan),
        "paper": paper,
        "state": state,
    }


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
    if not used:
        states = {cell_state(results, dataset, b, regime, form) for b in results.backbones} - {""}
        kinds, reasons = (sorted({s.partition(": ")[k] for s in states} - {""}) for k in (0, 2))
        return (" / ".join(kinds) or "missing") + (f": {'; '.join(reasons)}" if reasons else "")
    parts = []
    lacking = [b for b in results.backbones if b not in used]
    if lacking:
        why = [f"{title(b)} {cell_state(results, dataset, b, regime, form) or 'missing'}" for b in lacking]
        parts.append(f"{len(used)} of {len(results.backbones)} backbones ({'; '.join(why)})")
    wrong = [title(b) for b in used if cell_state(results, dataset, b, regime, form).startswith(DISAGREES)]
    if wrong:
        parts.append(f"{DISAGREES}: {', '.join(wrong)}")
    return "; ".join(parts)


def absent(value):
    """Whether an entry's field holds no number."""
    return value is None or isinstance(value, float) and math.isnan(value)


def is_outside(entry):
    """Whether the paper's value lies outside our interval; False where either is missing."""
    if any(absent(entry[f]) for f in ("low", "high", "paper")):
        return False
    return not entry["low"] <= entry["paper"] <= entry["high"]


def covers(results):
    """What the intervals of a result folder cover, as a sentence for the note of a table."""
    if (results.intervals["trainings"] > 1).any():
        return "Intervals cover other images and another training."
    return "Each model was trained once: intervals cover other images alone, not another training."
