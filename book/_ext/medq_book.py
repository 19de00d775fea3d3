"""What the cells of the book's pages call: a table or a figure by name, with its numbers to download.

A cell returns a `Shown`. Inside a build (`MEDQ_BOOK` names the book's folder) its content goes to files under
`_build/assets/`, which the page includes as figures and tables; a notebook shows it as HTML.
"""

import hashlib
import io
import json
import os
import re
import warnings
from html import escape
from pathlib import Path

import pandas as pd

from medq import figures, results, tables

ASSETS = "_build/assets"
SMALL = 4.2  # inches: a figure that fits a phone as it is


class Shown:
    """MyST for the book and, for a notebook, HTML of the same content."""

    def __init__(self, myst, html=None):
        self.myst, self.html = myst, html

    def _repr_mimebundle_(self, include=None, exclude=None):
        if building() or self.html is None:
            return {"text/markdown": self.myst, "text/plain": self.myst}
        return {"text/html": self.html, "text/plain": self.myst}


def building():
    """Whether a page runs inside a build of the book."""
    return bool(os.environ.get("MEDQ_BOOK"))


def asset(name):
    """Path of the asset `name` (its folder is made), and how a page refers to it."""
    name = "/".join(map(file_name, name.split("/")))
    path = Path(os.environ["MEDQ_BOOK"]) / ASSETS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path, f"/{ASSETS}/{name}"


def file_name(name):
    """`name` as it is if a link can hold it; otherwise with _ for other signs, after a hash that keeps names apart."""
    plain = re.sub(r"[^\w.-]+", "_", name)
    return name if plain == name else f"{hashlib.sha256(name.encode()).hexdigest()[:6]}-{plain}"


def plain(text):
    """`text` for MyST, in which none of its signs is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#$|~])", r"\\\1", " ".join(text.split()))


def example(ours):
    """The backbone of Table 3 and Figure 7: the paper's ResNet-50, or the first where that is not there."""
    done = set(ours.status.loc[ours.status["status"] == "done", "backbone"])
    return next((b for b in ("resnet50", *ours.backbones) if b in done), "resnet50")


def joined(*parts):
    """Several outputs as one, below each other."""
    html = "".join(p.html or f"<p>{escape(p.myst)}</p>" for p in parts)
    return Shown("\n\n".join(p.myst for p in parts), html)


def beside(*parts):
    """Several outputs as one, next to each other where the page is wide enough."""
    items = "\n".join(f":::{{div}}\n{p.myst}\n:::" for p in parts)
    return Shown(f"::::{{div}} medq-beside\n{items}\n::::", "".join(p.html or "" for p in parts))


def tabs(parts):
    """Several outputs {label: output} as tabs; a sentence where there is none."""
    if not parts:
        return Shown("*These results hold nothing to show here.*")
    items = "\n".join(f"::::{{tab-item}} {plain(label)}\n{p.myst}\n::::" for label, p in parts.items())
    return Shown(f":::::{{tab-set}}\n{items}\n:::::", joined(*parts.values()).html)


# --- figures ----------------------------------------------------------------------------------------------------------


def figure(draw, *args, name, caption="", data=None, numbered=True, phone=True, **options):
    """The figure that `draw(*args, **options)` returns, with its SVG and, where `data` is given, its numbers as CSV.

    For a build it is drawn for a wide page and, unless `phone` is false, for a phone, which else shows it smaller. One that is numbered can be referred to as {numref}`name`.
    """
    drawn, notes = _drawn(draw, *args, **options)
    alt = figures.alt_text(drawn)
    if not building():
        buffer = io.BytesIO()
        drawn.savefig(buffer, format="svg")
        return Shown(alt, buffer.getvalue().decode() + "".join(f"<p>{escape(note)}</p>" for note in notes))
    path, uri = asset(f"{name}.svg")
    figures.save(drawn, path)
    lines = [f":name: {json.dumps(name, ensure_ascii=False)}"] if numbered else []
    if phone and drawn.get_figwidth() > SMALL:
        narrow, narrow_uri = asset(f"narrow/{name}.svg")
        with figures.narrow():
            figures.save(_drawn(draw, *args, **options)[0], narrow)
        lines.append(f":narrow: {narrow_uri}")
    lines.append(f":alt: {json.dumps(alt, ensure_ascii=False)}")
    links = [f"{{download}}`SVG <{uri}>`", *([download(data, name)] if data is not None else [])]
    below = [*(f"*{plain(note)}*\n" for note in notes), files(links)]
    return Shown("\n".join([f"```{{plot}} {uri}", *lines, "", caption, "```", "", *below]))


def _drawn(draw, *args, **options):
    """(figure, sentences on signs without a font): a page shows them without the path that a warning has."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", figures.FontWarning)
        drawn = draw(*args, **options)
    fonts = [item.message for item in seen if issubclass(item.category, figures.FontWarning)]
    for item in seen:
        if item.message not in fonts:
            warnings.warn(item.message, stacklevel=2)
    return drawn, [f"{message}." for message in map(str, fonts)]


def each_dataset(draw, name, caption, data, ours=None):
    """`draw(ours, dataset)` as a figure for each dataset that has rows in `data`; {dataset} in the caption is its title.

    `ours` are results other than those of the book.
    """
    ours = ours or results.current()
    there = [d for d in ours.datasets if d in set(data["dataset"])]
    shown = [
        figure(
            draw,
            ours,
            d,
            name=f"{name}-{d}",
            caption=caption.format(dataset=plain(results.title(d))),
            data=data[data["dataset"] == d],
        )
        for d in there
    ]
    lacking = ", ".join(plain(results.title(d)) for d in ours.datasets if d not in there)
    return joined(*shown, *([Shown(f"Missing from these results: {lacking}.")] if lacking else []))


def interactive(figure, name):
    """A plotly figure of medq.figures, which the reader can hover over and zoom."""
    alt = figures.alt_text(figure)
    if not figure.data:
        return Shown(f"*{alt}*")
    html = figure.to_html(
        full_html=False,
        include_plotlyjs=False if building() else "cdn",
        div_id=f"plotly-{name}",
        config={"displayModeBar": False, "responsive": True},  # the bar would cover the titles
    )
    if not building():
        return Shown(alt, html)
    path, uri = asset(f"{name}.html")
    path.write_text(html, encoding="utf-8")
    return Shown(f"```{{interactive}} {uri}\n:alt: {json.dumps(alt, ensure_ascii=False)}\n```")


# --- tables -----------------------------------------------------------------------------------------------------------


def table(table, caption="", *, name="", numbered=True, sortable=False, ours=None, **options):
    """A table by its name in `medq.tables.TABLES` (with its `options`), or any DataFrame, with its numbers as CSV.

    `ours` are results other than those of the book; `sortable` lets the reader sort and filter rows. One that is numbered can be referred to as {numref}`name`.
    """
    if isinstance(table, str):
        name = name or table.replace("_", "-")
        data, own, html = tables.show(table, ours or results.current(), **options)
        caption = caption or f"{own}."
    else:
        data, html = table, tables.to_html(table, tables.Look(caption, **options))
    if not building():
        return Shown(caption, f"{tables.STYLE}<p>{escape(caption)}</p>{html}")
    path, uri = asset(f"{name}.html")
    path.write_text(f'<div class="medq-sortable">{html}</div>' if sortable else html, encoding="utf-8")
    label = f":name: {json.dumps(name, ensure_ascii=False)}\n" if numbered else ""
    return Shown(f"```{{tabular}} {uri}\n{label}\n{caption}\n```\n\n{files([download(data, name)])}")


def download(frame, name):
    """MyST link to a table's numbers as CSV."""
    path, uri = asset(f"{name}.csv")
    index = frame.index.names != [None] or not isinstance(frame.index, pd.RangeIndex)
    frame.to_csv(path, index=index)
    return f"{{download}}`CSV <{uri}>`"


def files(links):
    """A line of links to what stands behind a figure or table."""
    return f"{{.medq-files}}\nDownload: {' · '.join(links)}"
