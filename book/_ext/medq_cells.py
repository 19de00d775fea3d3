"""The map of all cells, and the pages of a chosen few: one cell is a dataset, a backbone and a regime."""

import shlex
import shutil
from html import escape
from pathlib import Path

import pandas as pd
from docutils import nodes
from medq_links import repository_url
from sphinx.util.docutils import SphinxDirective

import medq_book as book
from medq import paths, regimes, tables
from medq import results as result_folders
from medq.results import CELL, scores, title

CHOSEN = ("resnet50", "mobilenetv2")  # the paper's example, and the backbone that an engine's defect hits
MARKS = {"done": "✓", "wrong": "⚠", "unsupported": "∅", "failed": "✗", "missing": "·"}
TEMPLATE = Path(__file__).with_name("cell.txt")


def page_name(dataset, backbone, regime):
    """Name of a cell's page and files."""
    return book.file_name(f"{dataset}-{backbone}-{regime}")


def chosen(results):
    """Cells that have a page: all that were tried of two backbones, `CHOSEN` or else the first that were."""
    tried = results.status[results.status["status"] != "missing"]
    backbones = [b for b in dict.fromkeys((*CHOSEN, *results.backbones)) if b in set(tried["backbone"])][:2]
    return list(tried.loc[tried["backbone"].isin(backbones), CELL].itertuples(index=False, name=None))


def write_pages(folder, results):
    """Write the chosen cells' pages into `folder`/cells and remove those of an earlier build."""
    folder, template = Path(folder) / "cells", TEMPLATE.read_text(encoding="utf-8")
    wanted = {f"{page_name(*cell)}.md": _page(template, results, cell) for cell in chosen(results)}
    for old in folder.glob("*-*.md"):
        if old.name not in wanted:
            old.unlink()
    for name, content in wanted.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            path.write_text(content, encoding="utf-8")


def _page(template, results, cell):
    """A cell's page: the parts of the template that this cell has something for."""
    head, *parts = template.split("<!-- part: ")
    there = {
        "numbers": len(tables.of_cell(results.metrics, *cell)),
        "training": len(tables.of_cell(results.history, *cell)) and regimes.method(cell[2]) != "ptq",
        "layers": len(tables.of_cell(results.layers, *cell)),
        "files": True,
    }
    text = head + "".join(body for name, _, body in (part.partition(" -->\n") for part in parts) if there[name])
    values = {
        "@HEADING@": " · ".join(book.plain(title(name)) for name in cell),
        "@CELL@": repr(dict(zip(CELL, cell))),
        "@NAME@": page_name(*cell),
        "@STATE@": _state(results, *cell),
        "@FILES@": _files(results, *cell),
    }
    for mark, value in values.items():
        text = text.replace(mark, value)
    return text


def _state(results, dataset, backbone, regime):
    """Links to the other regimes of the same images and backbone, and a warning where the cell is not sound."""
    state, pages = results.state(dataset, backbone, regime), chosen(results)
    links = [f"**{book.plain(title(r))}**" if r == regime else f"[{book.plain(title(r))}]({page_name(dataset, backbone, r)}.md)"
             for r in results.regimes if (dataset, backbone, r) in pages]  # fmt: skip
    lines = f"[All cells](index.md) · {' · '.join(links)}"
    if state["status"] != "done":
        warning = f"This cell is **{state['status']}**: {book.plain(state['reason'] or 'no reason is recorded')}."
    elif state["engine_agrees"] is False:
        warning = "The engine's integer kernels do not compute what this model's own simulation computes: "
        warning += f"{book.plain(state['note'] or 'no note is recorded')}. See {{doc}}`/beyond/relu6`."
    else:
        return lines
    return f"{lines}\n\n:::{{warning}}\n{warning}\n:::"


def _files(results, dataset, backbone, regime):
    """The executed notebook where there is one, the predictions, and the command that makes them again."""
    stem, found = page_name(dataset, backbone, regime), {}
    for root in (paths.runs() / results.name, results.path / "notebooks"):
        for path in sorted((root / dataset / backbone / regime).glob("**/fold*/*.ipynb")):
            place = paths.Cell.at("", path.parent.relative_to(root).as_posix())
            of_seed = "" if place.seed is None else f"seed {place.seed}, "
            found[f"Executed notebook, {of_seed}fold {place.fold}"] = path
    lines = [] if found else ["- The executed notebook is not among these results; the command below makes it again."]
    predictions = results.path / "predictions" / dataset / backbone / f"{regime}.parquet"
    if predictions.is_file():
        found["Predictions (parquet): every held-out image and its probabilities"] = predictions
    for k, (name, source) in enumerate(found.items()):
        path, uri = book.asset(f"{stem}-{k}{source.suffix}")
        shutil.copyfile(source, path)
        lines.append(f"- {{download}}`{name} <{uri}>`")
    stage = regimes.REGIMES[regime].stage
    profile = results.provenance.get("profile", results.name)
    lines.append(f"- Parameterised notebook: [{stage}.ipynb]({repository_url(f'notebooks/{stage}.ipynb')})")
    only = shlex.join([f"dataset={dataset}", f"backbone={backbone}", f"regime={regime}"])
    command = f"medq batch params/{profile}.yaml --only {only}"
    return "\n".join([*lines, "", "```console", f"$ {command}", "```"])


class Matrix(SphinxDirective):
    """Every cell by its AUPRC, coloured and marked by outcome; an entry leads to the cell's page or file."""

    def run(self):
        ours = result_folders.current()
        values, pages = scores(ours, "auprc").set_index(CELL)["value"].to_dict(), set(chosen(ours))
        heads = [("Backbone", "text"), *((escape(title(r)), "number") for r in ours.regimes)]
        html = ""
        for dataset in ours.datasets:
            rows = [
                [(escape(title(b)), "text"), *(_entry(ours, (dataset, b, r), values, pages) for r in ours.regimes)]
                for b in ours.backbones
            ]
            html += tables.grid(heads, rows, f"Cells of {title(dataset)}", caption=title(dataset), css="medq-matrix")
        return [nodes.raw("", html, format="html")]


def _entry(results, cell, values, pages):
    """(HTML, class, hint) of one cell in the map."""
    state = results.state(*cell)
    kind = "wrong" if state["status"] == "done" and state["engine_agrees"] is False else state["status"]
    label = f"{MARKS[kind]} " + (f"{values[cell]:.3f}" if cell in values else state["status"])
    if cell in pages:
        label = f'<a href="{escape(page_name(*cell), quote=True)}.html">{label}</a>'
    elif kind != "missing":
        label = f'<a href="../files/{escape(_write_csv(results, cell), quote=True)}" download>{label}</a>'
    return label, kind, "; ".join(filter(None, (state["status"], state["reason"], state["note"])))


def _write_csv(results, cell):
    """Write all that is known of one cell; the file's name below the book's `files/`."""
    path, _ = book.asset(f"files/{page_name(*cell)}.csv")
    frame = tables.of_cell(results.metrics, *cell)
    if frame.empty:
        state = results.state(*cell)
        frame = pd.DataFrame([dict(zip(CELL, cell), status=state["status"], reason=state["reason"])])
    frame.to_csv(path, index=False)
    return path.name


def setup(app):
    app.add_directive("matrix", Matrix)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
