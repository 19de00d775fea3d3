"""Numbered figures and tables with their data to download, and links into the repository.

A page's cell returns a `Shown`. Inside a build (`MEDQ_BOOK` names the book's folder) its content goes to
files under `_build/assets/`, which the page includes as figures and tables; a notebook shows it as HTML.
"""

import hashlib
import io
import json
import os
import re
from functools import cache
from html import escape
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from medq import paths

ASSETS = "_build/assets"


# --- links: `_config.yml` is the one place that names the repository ----------------------------------------


@cache
def config():
    """`_config.yml` at the top of the repository, as a dict."""
    import yaml

    return yaml.safe_load((paths.ROOT / "_config.yml").read_text(encoding="utf-8"))


def repository_url(path=""):
    """Address of a file or folder (relative to the repository's top) on the repository's host."""
    repository = config()["repository"]
    if not path:
        return repository["url"]
    kind = "tree" if (paths.ROOT / path).is_dir() else "blob"
    return f"{repository['url']}/{kind}/{repository['branch']}/{quote(path)}"


def in_repository(path):
    """Whether `path`, relative to the repository's top, exists."""
    return (paths.ROOT / path).exists()


def colab_url(path):
    """Address that opens the notebook at `path` in Colab."""
    owner, name = config()["repository"]["url"].rstrip("/").split("/")[-2:]
    branch = config()["repository"]["branch"]
    return f"{config()['launch_buttons']['colab_url']}/github/{owner}/{name}/blob/{branch}/{quote(path)}"


def binder_url(path=""):
    """Address that opens `path` in JupyterLab on Binder."""
    owner, name = config()["repository"]["url"].rstrip("/").split("/")[-2:]
    hub, branch = config()["launch_buttons"]["binderhub_url"], config()["repository"]["branch"]
    return f"{hub}/v2/gh/{owner}/{name}/{branch}?urlpath=lab/tree/{quote(path)}"


# --- what a cell returns ------------------------------------------------------------------------------------


class Shown:
    """MyST for the book and, for a notebook, Markdown or HTML of the same content."""

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


def text(markdown):
    """Markdown as a cell's output."""
    return Shown(markdown)


def joined(*parts):
    """Several outputs as one, below each other."""
    html = "".join(p.html or f"<p>{escape(p.myst)}</p>" for p in parts)
    return Shown("\n\n".join(p.myst for p in parts), html)


def beside(*parts):
    """Several outputs as one, next to each other where the page is wide enough."""
    items = "\n".join(f":::{{div}}\n{p.myst}\n:::" for p in parts)
    return Shown(f"::::{{div}} medq-beside\n{items}\n::::", "".join(p.html or "" for p in parts))


def figure(figure, name, caption=None, data=None, *, numbered=True):
    """A figure of medq.figures with its SVG and, where `data` (a DataFrame) is given, its numbers as CSV.

    A numbered figure can be referred to as {numref}`name`.
    """
    from medq import figures

    alt = figures.alt_text(figure)
    if not building():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg")
        return Shown(alt, buffer.getvalue().decode())
    path, uri = asset(f"{name}.svg")
    figures.save(figure, path)
    links = [f"{{download}}`SVG <{uri}>`", *([download(data, name)] if data is not None else [])]
    label = f":name: {name}\n" if numbered else ""
    return Shown(
        f"```{{plot}} {uri}\n{label}:alt: {json.dumps(alt, ensure_ascii=False)}\n\n{caption or ''}\n```\n\n"
        f"{files(links)}"
    )


def table(frame, name, caption=None, data=None, *, numbered=True, sortable=False):
    """A table (as medq.tables gives it, or any DataFrame) with its numbers as CSV to download.

    `data` is what the CSV holds, if not the table itself. `sortable` lets the reader sort and filter rows.
    """
    from medq import tables

    caption = caption or frame.attrs.get("caption", name)
    frame.attrs.setdefault("caption", caption)
    html = aligned(tables.show(frame).replace("T_medq", f"T_{name}"))
    return table_of(html, name, caption, frame if data is None else data, numbered=numbered, sortable=sortable)


def table_of(html, name, caption, data, *, numbered=True, sortable=False):
    """A table given as HTML, with `data` (a DataFrame) as CSV to download."""
    from medq import tables

    if not building():
        return Shown(caption, f"<p>{escape(caption)}</p>{html}")
    path, uri = asset(f"{name}.html")
    html = html.replace(tables.STYLE, "")  # the book's own style sheet says the same once
    path.write_text(f'<div class="medq-sortable">{html}</div>' if sortable else html, encoding="utf-8")
    label = f":name: {name}\n" if numbered else ""
    return Shown(f"```{{tabular}} {uri}\n{label}\n{caption}\n```\n\n{files([download(data, name)])}")


def unfolding(summary, lines):
    """HTML of a list that unfolds; nothing for an empty one. The lines are text."""
    items = "".join(f"<li>{escape(line.strip())}</li>" for line in lines if line.strip())
    return f"<details><summary>{escape(summary)}</summary><ul>{items}</ul></details>" if items else ""


def html_table(heads, rows, label):
    """HTML of a table whose cells are HTML already: `heads` and each row hold pairs (HTML, `text` or
    `number`).
    """
    head = "".join(f'<th scope="col" class="{css}">{cell}</th>' for cell, css in heads)
    body = "".join("<tr>" + "".join(f'<td class="{css}">{cell}</td>' for cell, css in row) + "</tr>" for row in rows)
    return (
        f'<div class="medq-scroll" role="region" tabindex="0" aria-label="{escape(label, quote=True)}">'
        f'<table class="medq-unfolds"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def aligned(html):
    """The table's HTML with each heading of a text column marked as text, like the column's cells."""
    for column in re.findall(r'<td[^>]* class="data row0 (col\d+) text"', html):
        html = re.sub(rf'class="col_heading level0 {column}"', f'class="col_heading level0 {column} text"', html)
    return html


def each_dataset(results, draw, name, caption, data):
    """`draw(dataset)` as one figure per dataset that has rows in `data`; {dataset} in the caption becomes its title."""
    from medq.results import title

    there = set(data["dataset"])
    shown = [
        figure(draw(d), f"{name}-{d}", caption.format(dataset=plain(title(d))), data[data["dataset"] == d])
        for d in results.datasets
        if d in there
    ]
    lacking = [plain(title(d)) for d in results.datasets if d not in there]
    return joined(*shown, *([text(f"Missing from these results: {', '.join(lacking)}.")] if lacking else []))


def interactive(figure, name):
    """A plotly figure of medq.figures, which the reader can hover over and zoom."""
    from medq import figures

    if not figure.data:
        return text(f"*{figures.alt_text(figure)}*")
    html = figure.to_html(
        full_html=False,
        include_plotlyjs=False if building() else "cdn",
        div_id=f"plotly-{name}",
        config={"displayModeBar": False, "responsive": True},  # the bar would cover the titles
    )
    alt = figures.alt_text(figure)
    if not building():
        return Shown(alt, html)
    path, uri = asset(f"{name}.html")
    path.write_text(html, encoding="utf-8")
    return Shown(f"```{{interactive}} {uri}\n:alt: {json.dumps(alt, ensure_ascii=False)}\n```")


def download(frame, name):
    """MyST link to a table's numbers as CSV."""
    path, uri = asset(f"{name}.csv")
    index = frame.index.names != [None] or not isinstance(frame.index, pd.RangeIndex)
    frame.to_csv(path, index=index)
    return f"{{download}}`CSV <{uri}>`"


def files(links):
    """A line of links to what stands behind a figure or table."""
    return f"{{.medq-files}}\nDownload: {' · '.join(links)}"


# --- pictures -----------------------------------------------------------------------------------------------


def image_size(path):
    """Width and height in CSS pixels of an SVG or bitmap."""
    path = Path(path)
    if path.suffix != ".svg":
        from PIL import Image

        return Image.open(path).size
    head = path.read_text(encoding="utf-8")[:2000]
    units = {"pt": 4 / 3, "px": 1, "": 1, "in": 96, "cm": 96 / 2.54, "mm": 96 / 25.4}
    found = [re.search(rf'<svg[^>]*\s{side}="([\d.]+)([a-z]*)"', head) for side in ("width", "height")]
    if all(found):
        return tuple(round(float(match[1]) * units[match[2]]) for match in found)
    box = re.search(r'viewBox="[\d.-]+ [\d.-]+ ([\d.]+) ([\d.]+)"', head)
    return round(float(box[1])), round(float(box[2]))


def dark(svg):
    """An SVG's text for a dark page: greys change places with their opposites, colours stay.

    A colour is grey where its channels differ by less than 12 of 255.
    """

    def swap(match):
        digits = match[1] if len(match[1]) == 6 else "".join(2 * d for d in match[1])
        channels = [int(digits[i : i + 2], 16) for i in (0, 2, 4)]
        if max(channels) - min(channels) >= 12:
            return match[0]
        return "#" + "".join(f"{round(230 - 212 * c / 255):02x}" for c in channels)

    swapped = re.sub(r"#([0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b(?![0-9a-zA-Z_-])", swap, svg)
    return re.sub(r"<svg ", '<svg fill="#e6e6e6" ', swapped, count=1)  # what names no colour is black


def fingerprint(folder):
    """Hash of a results folder and of the code that reads it; it changes when a page's output may."""
    digest = hashlib.sha256()
    code = Path(__file__).parents[1]
    for path in sorted([*Path(folder).rglob("*"), *code.rglob("*.py"), *paths.PARAMS.glob("*.yaml")]):
        if path.is_file():
            facts = path.stat()
            digest.update(f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()
