"""Tables as HTML: one writer for every table of the book and of a notebook.

`Look` says how a DataFrame is printed; `to_html` prints it. A cell beside the paper's shows our number, its
interval, the paper's number and marks; any other table shows a value a cell, with its interval. Everything is escaped.
"""

import re
from html import escape
from typing import NamedTuple

import pandas as pd

from medq.results import REGIMES, class_title, title, words
from medq.tables.entries import DISAGREES, absent, is_outside

STYLE = """<style>
.medq-scroll {overflow-x: auto}
.medq-scroll table {border-collapse: collapse; font-size: .9em; margin: 0}
.medq-scroll th, .medq-scroll td {padding: .3em .6em; text-align: right; vertical-align: top;
  border-bottom: 1px solid rgba(128, 128, 128, .4); white-space: nowrap}
.medq-scroll th {white-space: normal; vertical-align: bottom}
.medq-scroll .text {text-align: left; white-space: normal}
.medq-scroll td span {display: block; font-size: .85em}
.medq-scroll td.outside span.paper {text-decoration: underline wavy 1px; text-underline-offset: .2em}
.medq-notes {font-size: .85em; margin-top: .4em}
</style>"""
STATUS = {"done": "✓ done", "unsupported": "∅ unsupported", "failed": "✗ failed", "missing": "· missing"}
VERDICTS = {"supported": "✓ supported", "contradicted": "✗ contradicted", "not testable": "? not testable"} | {
    "outside this protocol's reach": "– outside this protocol's reach"
}


class Look(NamedTuple):
    """How a table is printed. Formats and labels have the column (or the key that runs across) as key."""

    caption: str = ""
    notes: tuple = ()
    formats: dict = {}  # the format of None is that of all other numbers
    labels: dict = {}
    rows: tuple = ()  # only beside the paper: keys that run down
    across: str = ""  # only beside the paper: the key that runs across
    lowest: tuple = ()  # keys among which the lowest of a row is bold, ours and the paper's apart
    compared: tuple | None = None  # keys for which the paper's value is compared with our interval; None: all
    interval: str = "our 95 % interval"
    unfold: tuple = ()  # (column whose lines unfold, column below which they do, summary)


def to_html(frame, look):
    """A DataFrame as HTML text: one block that scrolls sideways, and its notes below."""
    sentences, marks = {}, set()  # lettered notes, one letter for each distinct sentence; marks that were used
    heads, rows = _beside_paper(frame, look, sentences, marks) if look.across else _flat(frame, look)
    lines = [*filter(None, look.notes)]
    lines += [f"≠: the paper's value lies outside {look.interval}."] if "≠" in marks else []
    lines += ["Bold: the lowest of the row, ours and the paper's apart."] if "bold" in marks else []
    lines += [f"{mark}: {sentence}." for sentence, mark in sentences.items()]
    below = "".join(f"<div>{escape(line)}</div>" for line in lines)
    return f'{grid(heads, rows, look.caption or "Table")}\n<div class="medq-notes">{below}</div>'


def grid(heads, rows, label, *, caption="", css="medq-table"):
    """HTML of a table in a block that scrolls. `heads` and each row hold pairs (HTML, class names).

    A third entry of a pair is the cell's hint. The first cell of a row is its header.
    """

    def cell(tag, html, css, hint=""):
        hint = f' title="{escape(hint, quote=True)}"' if hint else ""
        return f'<{tag} class="{css}"{hint}>{html}</{tag.split()[0]}>'

    head = "".join(cell('th scope="col"', *h) for h in heads)
    body = ["".join(cell("td" if k else 'th scope="row"', *entry) for k, entry in enumerate(row)) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in body)
    caption = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="medq-scroll" role="region" tabindex="0" aria-label="{escape(label, quote=True)}">'
        f'<table class="{css}">{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def letter(k):
    """The mark of note `k`, from 0: a to z, then aa, ab, …"""
    return (letter(k // 26 - 1) if k >= 26 else "") + chr(97 + k % 26)


def _beside_paper(frame, look, sentences, marks):
    names = list(dict.fromkeys(frame[look.across])) if len(frame) else []
    heads = [(escape(heading(k)), "text") for k in look.rows]
    heads += [(escape(look.labels.get(n) or title(n)), "number") for n in names]
    rows = []
    for keys, group in frame.groupby(list(look.rows), sort=False):
        keys, entries = dict(zip(look.rows, keys)), {r[look.across]: r for r in group.to_dict("records")}
        lowest = group[group[look.across].isin(look.lowest)][["ours", "paper"]].min()
        row = [(_name(k, v, keys), "text") for k, v in keys.items()]
        for name in names:
            if name not in entries:
                row.append(("–", "number"))
                continue
            entry, form = entries[name], look.formats.get(name, look.formats.get(None, "{:.4g}"))
            bold = {f for f in lowest.index if name in look.lowest and entry[f] == lowest[f]}
            outside = (look.compared is None or name in look.compared) and is_outside(entry)
            marks |= {mark for mark, used in (("≠", outside), ("bold", bold)) if used}
            row.append((_entry(entry, form, outside, bold, sentences), "outside" if outside else "number"))
        rows.append(row)
    return heads, rows


def _entry(entry, form, outside, bold, sentences):
    """HTML of a number of ours beside the paper's."""
    state = entry["state"] if isinstance(entry["state"], str) else ""
    mark = f"<sup>{sentences.setdefault(state, letter(len(sentences)))}</sup>" if state else ""
    shown = {f: "" if absent(entry[f]) else form.format(entry[f]) for f in ("ours", "low", "high", "paper")}
    shown |= {f: f"<strong>{shown[f]}</strong>" for f in bold}
    ours = shown["ours"] or escape(state.split(":")[0]) or "missing"
    interval = f"<span>({shown['low']}–{shown['high']})</span>" if shown["low"] and shown["high"] else ""
    paper = f'<span class="paper">paper {shown["paper"]}{" ≠" if outside else ""}</span>' if shown["paper"] else ""
    return f"{'⚠ ' if DISAGREES in state else ''}{ours}{mark}{interval}{paper}"


def _flat(frame, look):
    plain = frame.reset_index() if frame.index.names != [None] else frame.reset_index(drop=True)
    folded, under, summary = look.unfold or ("", "", "")
    bounds = _bounds(list(plain))
    columns = [c for c in plain if c != folded and c not in {end for ends in bounds.values() for end in ends}]
    numbers = {c for c in columns if pd.api.types.is_numeric_dtype(plain[c])}
    heads = [(escape(heading(c, look.labels)), "number" if c in numbers else "text") for c in columns]
    rows = []
    for record in plain.to_dict("records"):
        row = [_value(c, record, look, c in numbers) for c in columns]
        for k, c in enumerate(columns):
            ends = [record[end] for end in bounds.get(c, ())]
            if ends and not any(map(absent, ends)):
                low, high = (look.formats.get(c, look.formats.get(None, "{:.4g}")).format(end + 0.0) for end in ends)
                row[k] = (f"{row[k][0]}<span>({low} to {high})</span>", row[k][1])
        if folded and record[folded]:
            k, lines = columns.index(under), map(str.strip, re.split(r"[;\n]", record[folded]))
            items = "".join(f"<li>{escape(line)}</li>" for line in lines if line)
            unfolding = f"<details><summary>{escape(summary)}</summary><ul>{items}</ul></details>" if items else ""
            row[k] = (row[k][0] + unfolding, row[k][1])
        rows.append(row)
    return heads, rows


def _bounds(columns):
    """{column: those with the ends of its interval}: `x_low` and `x_high` of `x`, `low` and `high` of the one before."""
    found = {}
    for low, high in zip(columns, columns[1:]):
        before = columns[: columns.index(low)]
        base = (before or [""])[-1] if low == "low" else low.removesuffix("_low")
        if low.endswith("low") and high == f"{low.removesuffix('low')}high" and base in columns:
            found[base] = (low, high)
    return found


def _value(column, record, look, number):
    value = record[column]
    if absent(value):
        return ("–", "number" if number else "text")
    if isinstance(value, bool):
        return ("✓" if value else "", "number")
    if number:
        form = look.formats.get(column, look.formats.get(None, "{:.4g}"))
        return (form.format(value + 0.0), "number")
    if isinstance(value, str):
        return (STATUS.get(value) or VERDICTS.get(value) or _name(column, value, record), "text")
    return (escape(str(value)), "text")


TERMS = {"auroc": "ROC-AUC", "brier": "Brier", "p50 ms": "p50 (ms)", "p99 ms": "p99 (ms)", "sqnr db": "SQNR (dB)"}
TERMS |= {short: short.upper() for short in ("auprc", "ece", "fp32", "ptq", "qat")}


def heading(column, labels={}):  # noqa: B006
    """A column's name as it is printed."""
    if column in labels:
        return labels[column]
    words = title(column) if column in REGIMES else str(column).replace("_", " ")
    for short, term in TERMS.items():
        words = re.sub(rf"\b{short}\b", term, words)
    return words if words in TERMS.values() else words[:1].upper() + words[1:]


def _name(kind, value, row):
    """A key as it is printed, escaped: dataset, class, backbone, regime, metric by their titles."""
    if kind == "class":
        value = class_title(row.get("dataset", ""), value)
    elif kind == "engine":
        value = value.upper()
    elif kind == "family":
        value = {"cnn": "CNN", "transformer": "Transformer"}.get(value, value)
    elif kind in ("dataset", "backbone", "regime", "metric", "regime_a", "regime_b"):
        value = title(value)
    elif kind == "remedy":
        value = words(value)
    return escape(str(value))
