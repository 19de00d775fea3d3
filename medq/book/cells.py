"""The map of all cells, and the pages of a chosen few: one cell is a dataset, a backbone and a regime."""

import shutil
from html import escape
from pathlib import Path

import pandas as pd

from medq import paths, regimes
from medq.book.show import (
    asset,
    beside,
    building,
    download,
    figure,
    file_name,
    files,
    joined,
    plain,
    repository_url,
    table,
    text,
)
from medq.results import CELL, class_title, title

CHOSEN = ("resnet50", "mobilenetv2")  # the paper's example, and the backbone that an engine's defect hits
MARKS = {"done": "✓", "wrong": "⚠", "unsupported": "∅", "failed": "✗", "missing": "·"}
FORMS = {"float": "deployed", "converted": "deployed (converted)", "fake-quant": "fake-quantized"}
DEPLOYED = ("float", "converted")
METRICS = ("auroc", "auprc", "ece", "ece_top_label", "brier", "accuracy", "nll")
PAGE = """---
file_format: mystnb
kernelspec: {{name: python3, display_name: Python 3}}
orphan: true
notebook: notebooks/collect.ipynb
---

# {heading}

```{{code-cell}} ipython3
:tags: [remove-input]
from medq import book, results

ours, cell = results.current(), {cell!r}
book.cell_head(ours, *cell)
```

## Numbers

```{{code-cell}} ipython3
:tags: [hide-input]
book.cell_numbers(ours, *cell)
```

```{{code-cell}} ipython3
:tags: [hide-input]
book.cell_classes(ours, *cell)
```

## Reliability and confusion

```{{code-cell}} ipython3
:tags: [hide-input]
book.cell_reliability(ours, *cell)
```

## Training

```{{code-cell}} ipython3
:tags: [hide-input]
book.cell_training(ours, *cell)
```
{layers}
## Files

```{{code-cell}} ipython3
:tags: [remove-input]
book.cell_files(ours, *cell)
```
"""
LAYERS = """
## Worst layers

```{code-cell} ipython3
:tags: [hide-input]
book.cell_layers(ours, *cell)
```
"""


def page_name(dataset, backbone, regime):
    """Name of a cell's page and files."""
    return file_name(f"{dataset}-{backbone}-{regime}")


def chosen(results):
    """Cells that have a page: all that were tried of two backbones, `CHOSEN` or else the first that were."""
    tried = results.status[results.status["status"] != "missing"]
    backbones = [b for b in dict.fromkeys((*CHOSEN, *results.backbones)) if b in set(tried["backbone"])][:2]
    return list(tried.loc[tried["backbone"].isin(backbones), CELL].itertuples(index=False, name=None))


def write_cell_pages(folder, results):
    """Write the chosen cells' pages into `folder`/cells and remove those of an earlier build."""
    folder = Path(folder) / "cells"
    wanted = {}
    for cell in chosen(results):
        heading = " · ".join(plain(title(name)) for name in cell)
        layers = LAYERS if len(_of(results.layers, *cell)) else ""
        wanted[f"{page_name(*cell)}.md"] = PAGE.format(heading=heading, cell=tuple(cell), layers=layers)
    for old in folder.glob("*-*.md"):
        if old.name not in wanted:
            old.unlink()
    for name, content in wanted.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            path.write_text(content, encoding="utf-8")


# --- the map ------------------------------------------------------------------------------------------------


def matrix(results):
    """Every cell by its AUPRC, coloured and marked by outcome; an entry leads to the cell's page or file."""
    from medq.results import scores

    values = scores(results, "auprc").set_index(CELL)["value"].to_dict()
    pages, html = set(chosen(results)), ""
    head = "".join(f'<th scope="col">{escape(title(r))}</th>' for r in results.regimes)
    for dataset in results.datasets:
        name, rows = escape(title(dataset), quote=True), ""
        for backbone in results.backbones:
            entries = (_entry(results, (dataset, backbone, r), values, pages) for r in results.regimes)
            rows += f'<tr><th scope="row">{escape(title(backbone))}</th>{"".join(entries)}</tr>'
        html += (
            f'<div class="medq-scroll" role="region" tabindex="0" aria-label="Cells of {name}">'
            f'<table class="medq-matrix"><caption>{name}</caption><thead><tr>'
            f'<th scope="col">Backbone</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        )
    if not building():
        return text(html)
    path, uri = asset("matrix.html")
    path.write_text(html, encoding="utf-8")
    return text(f"```{{tabular}} {uri}\n```\n\n{files([download(results.status, 'cells')])}")


def _entry(results, cell, values, pages):
    state = results.state(*cell)
    kind = "wrong" if state["status"] == "done" and state["engine_agrees"] is False else state["status"]
    label = f"{MARKS[kind]} " + (f"{values[cell]:.3f}" if cell in values else state["status"])
    if cell in pages:
        label = f'<a href="{escape(page_name(*cell), quote=True)}.html">{label}</a>'
    elif kind != "missing" and building():
        label = f'<a href="../files/{escape(_write_csv(results, cell), quote=True)}" download>{label}</a>'
    hint = "; ".join(filter(None, (state["status"], state["reason"], state["note"])))
    return f'<td class="{kind}" title="{escape(hint, quote=True)}">{label}</td>'


def _write_csv(results, cell):
    """Write all that is known of one cell; the file's name below the book's `files/`."""
    path, _ = asset(f"files/{page_name(*cell)}.csv")
    frame = _of(results.metrics, *cell)
    if frame.empty:
        state = results.state(*cell)
        frame = pd.DataFrame([dict(zip(CELL, cell), status=state["status"], reason=state["reason"])])
    frame.to_csv(path, index=False)
    return path.name


def _of(frame, dataset, backbone, regime):
    """The rows of one cell."""
    return frame[(frame["dataset"] == dataset) & (frame["backbone"] == backbone) & (frame["regime"] == regime)]


# --- one cell -----------------------------------------------------------------------------------------------


def cell_head(results, dataset, backbone, regime):
    """What became of the cell, and links to the other regimes of the same images and backbone."""
    state, pages = results.state(dataset, backbone, regime), chosen(results)
    others = [
        f"**{plain(title(r))}**" if r == regime else f"[{plain(title(r))}]({page_name(dataset, backbone, r)}.md)"
        for r in results.regimes
        if r == regime or (dataset, backbone, r) in pages
    ]
    said = [f"[All cells](index.md) · {' · '.join(others)}"]
    if state["status"] != "done":
        why = state["reason"] or "no reason is recorded"
        said.append(f":::{{warning}}\nThis cell is **{state['status']}**: {why}.\n:::")
    elif state["engine_agrees"] is False:
        said.append(
            ":::{warning}\nThe engine's integer kernels do not compute what this model's own "
            f"simulation says: {state['note'] or 'no note is recorded'}. "
            "See {doc}`/beyond/relu6`.\n:::"
        )
    said.append(f":::{{admonition}} Which results are these?\n:class: medq-banner dropdown\n{results.banner()}\n:::")
    return text("\n\n".join(said))


def cell_numbers(results, *cell):
    """Every macro metric of the cell, by form and recipe, with its interval where one is stored."""
    frame = _of(results.metrics, *cell)
    frame = frame[(frame["class"] == "") & frame["metric"].isin(METRICS)]
    if frame.empty:
        return text("*No numbers: the cell did not end with predictions.*")
    model = [FORMS.get(s, s) if r in ("default", "") else r for s, r in zip(frame["form"], frame["recipe"])]
    whole = frame.assign(model=model)
    whole = whole[whole["fold"] == "pooled"] if (whole["fold"] == "pooled").any() else whole
    wide = whole.groupby(["metric", "model"], sort=False)["value"].mean().unstack("model")
    wide = wide.reindex([m for m in METRICS if m in wide.index])
    wide = wide[sorted(wide.columns, key=lambda column: not column.startswith("deployed"))]
    known = _of(results.intervals, *cell)
    known = known[(known["class"] == "") & known["form"].isin(DEPLOYED)].drop_duplicates("metric")
    bounds = {r["metric"]: f"{r['low']:.4f}–{r['high']:.4f}" for r in known.to_dict("records")}
    wide.insert(1, "95 % interval", [bounds.get(m, "–") for m in wide.index])
    wide = wide.reset_index().rename_axis(None, axis=1)
    wide.attrs = {"formats": {None: "{:.4f}"}}
    return table(wide, f"{page_name(*cell)}-numbers", "Metrics on the held-out images", frame, numbered=False)


def cell_classes(results, *cell):
    """AUPRC, ROC-AUC and ECE of each class."""
    frame = _of(results.metrics, *cell)
    frame = frame[
        (frame["class"] != "")
        & frame["form"].isin(DEPLOYED)
        & frame["recipe"].isin(["default", ""])
        & frame["metric"].isin(["auprc", "auroc", "ece"])
    ]
    if frame.empty:
        return text("*No numbers per class.*")
    wide = frame.groupby(["class", "metric"], sort=False)["value"].mean().unstack("metric").reset_index()
    wide["class"] = [class_title(cell[0], c) for c in wide["class"]]
    wide = wide.rename_axis(None, axis=1)
    wide.attrs = {"formats": {None: "{:.4f}"}}
    return table(wide, f"{page_name(*cell)}-classes", "By class", frame, numbered=False)


def cell_reliability(results, dataset, backbone, regime):
    """Reliability diagram and confusion matrix of the deployed model."""
    from medq import figures

    predictions = results.predictions(dataset, backbone, regime)
    label, name = f"{title(backbone)}, {title(regime)}", page_name(dataset, backbone, regime)
    return beside(
        figure(
            figures.reliability(predictions, regime=regime, label=label),
            f"{name}-reliability",
            "Confidence against the share of right answers.",
            numbered=False,
        ),
        figure(
            figures.confusion_matrix(predictions, dataset=dataset, label=label),
            f"{name}-confusion",
            "True class against predicted class.",
            numbered=False,
        ),
    )


def cell_training(results, dataset, backbone, regime):
    """Training curve; for PTQ, whose model was trained in another cell, a link to that."""
    from medq import figures

    if regimes.method(regime) == "ptq":
        there = (dataset, backbone, "fp32") in chosen(results)
        fp32 = f"[the FP32 cell]({page_name(dataset, backbone, 'fp32')}.md)" if there else "the FP32 cell"
        return text(f"Nothing was trained: the weights are those of {fp32}.")
    history = _of(results.history, dataset, backbone, regime)
    first = history[history["fold"] == history["fold"].min()] if len(history) else history
    drawn = figures.training_curve(first, regime=regime, label=f"{title(backbone)}, {title(regime)}")
    return figure(
        drawn, f"{page_name(dataset, backbone, regime)}-training", "Training, epoch by epoch.", history, numbered=False
    )


def cell_layers(results, *cell):
    """Noise of every quantized layer, and the three worst by name."""
    from medq import figures, tables

    name = page_name(*cell)
    return joined(
        figure(
            figures.sqnr_figure(results, *cell),
            f"{name}-layers",
            "Signal-to-quantization-noise ratio, layer by layer.",
            _of(results.layers, *cell),
            numbered=False,
        ),
        table(tables.worst_layers(results, *cell), f"{name}-worst", numbered=False),
    )


def cell_files(results, dataset, backbone, regime):
    """The executed notebook where there is one, the predictions, and the command that makes them again."""
    lines, stem = [], page_name(dataset, backbone, regime)
    found = {
        f"Executed notebook, fold {fold}": notebook
        for fold, notebook in executed(results, dataset, backbone, regime).items()
    }
    if not found:
        lines.append("- The executed notebook is not among these results; the command below makes it again.")
    predictions = results.path / "predictions" / dataset / backbone / f"{regime}.parquet"
    if predictions.is_file():
        found["Predictions (parquet): every held-out image and its probabilities"] = predictions
    for k, (name, source) in enumerate(found.items()):
        path, uri = asset(f"{stem}-{k}{source.suffix}")
        shutil.copyfile(source, path)
        lines.append(f"- {{download}}`{name} <{uri}>`")
    stage = regimes.REGIMES[regime].stage
    profile = results.provenance.get("profile", results.name)
    lines.append(f"- Parameterised notebook: [{stage}.ipynb]({repository_url(f'notebooks/{stage}.ipynb')})")
    lines.append(
        f"\n```console\n$ medq batch params/{profile}.yaml --only dataset={dataset} "
        f"backbone={backbone} regime={regime}\n```"
    )
    return text("\n".join(lines))


def executed(results, dataset, backbone, regime):
    """Executed notebooks of a cell {fold: path}: kept with the results, or in the folder of their batch."""
    found = {}
    for root in (paths.runs() / results.name, results.path / "notebooks"):
        for path in sorted((root / dataset / backbone / regime).glob("fold*/*.ipynb")):
            found[path.parent.name.removeprefix("fold")] = path
    return found
