"""Tables as HTML text: ours with its interval, the paper's below, marks and lettered notes."""

import re
from html import escape

import pandas as pd

from medq.results import REGIMES, class_title, title
from medq.tables.entries import DISAGREES, FIELDS, absent, is_outside

STYLE = """<style>
.medq-scroll {overflow-x: auto}
.medq-scroll table {border-collapse: collapse; font-size: .9em; margin: 0}
.medq-scroll th, .medq-scroll td {padding: .3em .6em; text-align: right; vertical-align: top;
  border-bottom: 1px solid rgba(128, 128, 128, .4); white-space: nowrap}
.medq-scroll th {white-space: normal; vertical-align: bottom}
.medq-scroll td.text {text-align: left; white-space: normal}
.medq-scroll td span {display: block; font-size: .85em}
.medq-scroll td.outside span.paper {text-decoration: underline wavy 1px; text-underline-offset: .2em}
.medq-notes {font-size: .85em; margin-top: .4em}
</style>"""
STATUS = {"done": "✓ done", "unsupported": "∅ unsupported", "failed": "✗ failed", "missing": "· missing"}


def show(frame, *, caption=False):
    """Any table of this module as HTML text, in one scrolling block with its notes.

    Beside the paper's: ours, its interval in parentheses, the paper's value below, `≠` where that lies
    outside our interval, bold for the best of a row (ours and the paper's apart), and lettered notes for
    what is missing, unsupported or computed by kernels that disagree with their simulation.
    """
    notes = _Notes(frame.attrs.get("interval", "our 95 % interval"))
    wide = isinstance(frame.columns, pd.MultiIndex) and set(FIELDS) <= set(frame.columns.get_level_values(-1))
    cells, classes = _beside_paper(frame, notes) if wide else _flat(frame)
    styler = cells.style.hide(axis="index").set_td_classes(classes).set_table_attributes('class="medq-table"')
    styler.uuid, styler.cell_ids = "medq", False
    if caption:
        styler = styler.set_caption(escape(frame.attrs.get("caption", "")))
    label = escape(frame.attrs.get("caption", "Table"), quote=True)
    lines = [*frame.attrs.get("notes", []), *notes.lines()]
    below = "".join(f"<div>{escape(line)}</div>" for line in lines)
    return (
        f'{STYLE}\n<div class="medq-scroll" role="region" tabindex="0" aria-label="{label}">'
        f'{styler.to_html(doctype_html=False)}</div>\n<div class="medq-notes">{below}</div>'
    )


class _Notes:
    """Lettered notes, one letter per distinct sentence, and the marks that were used."""

    def __init__(self, interval):
        self.sentences, self.marks, self.interval = {}, set(), interval

    def letter(self, sentence):
        return self.sentences.setdefault(sentence, chr(ord("a") + len(self.sentences) % 26))

    def lines(self):
        said = {"≠": f"≠ the paper's value lies outside {self.interval}.", "bold": "Bold: the best of the row."}
        return [said[m] for m in said if m in self.marks] + [f"{k}: {s}." for s, k in self.sentences.items()]


def _beside_paper(frame, notes):
    """HTML of each cell (a DataFrame of text) and its CSS classes, from columns with FIELDS below them."""
    attrs, names = frame.attrs, list(dict.fromkeys(frame.columns.get_level_values(0)))
    formats, labels = attrs.get("formats", {}), attrs.get("labels", {})
    among = [n for n in attrs.get("best_among", names) if n in names]
    index = frame.index.to_frame(index=False)
    cells, classes = [], []
    for (_, row), keys in zip(frame.iterrows(), index.to_dict("records")):
        best = {f: _best(row, among, f) if attrs.get("best") == "min" else None for f in ("ours", "paper")}
        text = {_head(k): _name(k, v, keys) for k, v in keys.items()}
        style = dict.fromkeys(text, "text")
        for name in names:
            form = formats.get(name, formats.get(None, "{:.4g}"))
            compared = name in attrs.get("compared", names)
            bold = {f for f in best if name in among and best[f] is not None and row[name][f] == best[f]}
            head = labels.get(name, title(name))
            text[head], style[head] = _cell(row[name], form, compared, bold, notes)
        cells.append(text)
        classes.append(style)
    columns = [_head(k) for k in index.columns] + [labels.get(n, title(n)) for n in names]
    return pd.DataFrame(cells, columns=columns), pd.DataFrame(classes, columns=columns)


def _best(row, among, field):
    values = [row[n][field] for n in among if not absent(row[n][field])]
    return min(values) if values else None


def _cell(entry, form, compared, bold, notes):
    state = entry["state"] if isinstance(entry["state"], str) else ""
    mark = f"<sup>{notes.letter(state)}</sup>" if state else ""
    doubt = "⚠ " if DISAGREES in state else ""
    if absent(entry["ours"]):
        ours = escape(state.split(":")[0]) or "missing"
    else:
        ours = form.format(entry["ours"])
        ours = f"<strong>{ours}</strong>" if "ours" in bold else ours
    bounds = [form.format(entry[f]) for f in ("low", "high") if not absent(entry[f])]
    interval = f"<span>({'–'.join(bounds)})</span>" if len(bounds) == 2 else ""
    outside = compared and is_outside(entry)
    paper = ""
    if not absent(entry["paper"]):
        value = form.format(entry["paper"])
        value = f"<strong>{value}</strong>" if "paper" in bold else value
        paper = f'<span class="paper">paper {value}{" ≠" if outside else ""}</span>'
    notes.marks |= ({"≠"} if outside else set()) | ({"bold"} if bold else set())
    return f"{doubt}{ours}{mark}{interval}{paper}", "outside" if outside else "number"


TERMS = {"auroc": "ROC-AUC", "p50 ms": "p50 (ms)", "p99 ms": "p99 (ms)"}


def _head(name):
    """A column's name as it is printed."""
    words = str(name).replace("_", " ")
    for short in ("auroc", "auprc", "ece", "fp32", "ptq", "qat", "p50 ms", "p99 ms"):
        words = re.sub(rf"\b{short}\b", TERMS.get(short, short.upper()), words)
    return words[:1].upper() + words[1:]


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
    return escape(str(value))


def _flat(frame):
    """HTML of each cell and its CSS classes, of a table without the paper's numbers."""
    formats, labels = frame.attrs.get("formats", {}), frame.attrs.get("labels", {})
    index = frame.index.names != [None]
    plain = frame.reset_index() if index else frame.reset_index(drop=True)
    cells = pd.DataFrame(index=plain.index)
    classes = pd.DataFrame(index=plain.index)
    for column in plain:
        values, head = plain[column], labels.get(column) or (title(column) if column in REGIMES else _head(column))
        if pd.api.types.is_bool_dtype(values):
            cells[head] = values.map({True: "✓", False: ""})
        elif pd.api.types.is_numeric_dtype(values):
            form = formats.get(column, formats.get(None, "{:.4g}"))
            cells[head] = ["–" if absent(v) else form.format(v) for v in values.astype(float)]
        else:
            cells[head] = [
                STATUS.get(v) or _name(column, v, r) if isinstance(v, str) else escape(str(v))
                for v, r in zip(values, plain.to_dict("records"))
            ]
            classes[head] = "text"
            continue
        classes[head] = "number"
    return cells, classes
