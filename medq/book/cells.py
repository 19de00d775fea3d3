"""The map of all cells, and the pages of a chosen few: one cell is a dataset, a backbone and a regime."""

import shutil
from html import escape
from pathlib import Path

import pandas as pd

from medq import paths
from medq.book.show import asset, beside, building, download, figure, files, joined, repository_url, table, text
from medq.results import class_title, title

CHOSEN = ("resnet50", "mobilenetv2")  # the paper's example, and the backbone that an engine's defect hits
MARKS = {"done": "✓", "unsupported": "∅", "failed": "✗", "missing": "·"}
METRICS = ("auroc", "auprc", "ece", "ece_top_label", "brier", "accuracy", "nll")
PAGE = """---
file_format: mystnb
kernelspec: {{name: python3, display_name: Python 3}}
orphan: true
notebook: notebooks/evaluate.ipynb
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
    return f"{dataset}-{backbone}-{regime}"


def chosen(results):
    """Cells that have a page: those of `CHOSEN` backbones (the first two where none of them is there) that ended."""
    backbones = [b for b in results.backbones if b in CHOSEN] or results.backbones[:2]
    status = results.status
    status = status[status["backbone"].isin(backbones) & (status["status"] != "missing")]
    return list(status[["dataset", "backbone", "regime"]].itertuples(index=False, name=None))


def write_cell_pages(folder, results):
    """Write the chosen cells' pages into `folder`/cells and remove those of an earlier build."""
    folder = Path(folder) / "cells"
    wanted = {}
    for cell in chosen(results):
        heading = " · ".join(title(name) for name in cell)
        layers = LAYERS if len(_layers(results, *cell)) else ""
        wanted[f"{page_name(*cell)}.md"] = PAGE.format(heading=heading, cell=tuple(cell), layers=layers)
    for old in folder.glob("*-*.md"):
        if old.name not in wanted:
            old.unlink()
    for name, content in wanted.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            path.write_text(content, encoding="utf-8")


# --- the map ----------------------------------------------------------------------------------------------------------

def matrix(results):
    """Every cell as a small table of AUPRC, coloured and marked by outcome; an entry leads to the cell's page or file."""
    value = _values(results, "auprc")
    pages = set(chosen(results))
    regimes = results.regimes
    head = "".join(f"<th scope='col'>{escape(title(r))}</th>" for r in regimes)
    blocks = []
    for dataset in results.datasets:
        rows = []
        for backbone in results.backbones:
            entries = [_entry(results, (dataset, backbone, r), value, pages) for r in regimes]
            rows.append(f"<tr><th scope='row'>{escape(title(backbone))}</th>{''.join(entries)}</tr>")
        blocks.append(f"<table class='medq-matrix'><caption>{escape(title(dataset))}</caption><thead><tr><th scope='col'>Backbone</th>"
                      f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>")
    html = "".join(f"<div class='medq-scroll' role='region' tabindex='0' aria-label='Cells of {escape(title(d), quote=True)}'>{b}</div>"
                   for d, b in zip(results.datasets, blocks))
    if not building():
        return text(html)
    path, uri = asset("matrix.html")
    path.write_text(html, encoding="utf-8")
    frame = results.status.rename(columns={"note": "engine_note"})
    return text(f"```{{tabular}} {uri}\n```\n\n{files([download(frame, 'cells')])}")


def _values(results, metric):
    from medq.results import scores

    frame = scores(results, metric)
    return {tuple(row[:3]): row[3] for row in frame[["dataset", "backbone", "regime", "value"]].itertuples(index=False, name=None)}


def _entry(results, cell, value, pages):
    state = results.state(*cell)
    status, wrong = state["status"], state["engine_agrees"] is False
    shown = f"{value[cell]:.3f}" if cell in value else status
    mark = "⚠" if wrong and status == "done" else MARKS[status]
    label = f"{mark} {shown}"
    hint = escape("; ".join(filter(None, [status, state["reason"], state["note"]])), quote=True)
    kind = "wrong" if wrong and status == "done" else status
    if cell in pages:
        label = f"<a href='{escape(page_name(*cell), quote=True)}.html'>{label}</a>"
    elif status != "missing" and building():
        label = f"<a href='../files/{escape(_cell_csv(results, cell), quote=True)}' download>{label}</a>"
    return f"<td class='{kind}' title='{hint}'>{label}</td>"


def _cell_csv(results, cell):
    """Write all that is known of one cell as CSV; the file's name below the book's `files/`."""
    path, _ = asset(f"files/{page_name(*cell)}.csv")
    frame = _metrics(results, *cell)
    if frame.empty:
        state = results.state(*cell)
        frame = pd.DataFrame([dict(zip(("dataset", "backbone", "regime"), cell), status=state["status"], reason=state["reason"])])
    frame.to_csv(path, index=False)
    return path.name


def _metrics(results, dataset, backbone, regime):
    m = results.metrics
    return m[(m["dataset"] == dataset) & (m["backbone"] == backbone) & (m["regime"] == regime)]


# --- one cell ---------------------------------------------------------------------------------------------------------

def cell_head(results, dataset, backbone, regime):
    """What became of the cell, and links to the other regimes of the same images and backbone."""
    state = results.state(dataset, backbone, regime)
    others = [f"**{title(r)}**" if r == regime else f"[{title(r)}]({page_name(dataset, backbone, r)}.md)"
              for r in results.regimes if r == regime or (dataset, backbone, r) in chosen(results)]
    said = [f"[All cells](index.md) · {' · '.join(others)}"]
    if state["status"] != "done":
        said.append(f":::{{warning}}\nThis cell is **{state['status']}**: {state['reason'] or 'no reason is recorded'}.\n:::")
    elif state["engine_agrees"] is False:
        said.append(f":::{{warning}}\nThe engine's integer kernels do not compute what this model's own simulation says: "
                    f"{state['note'] or 'no note is recorded'}. See {{doc}}`/beyond/relu6`.\n:::")
    said.append(f":::{{admonition}} Which results are these?\n:class: medq-banner dropdown\n{results.banner()}\n:::")
    return text("\n\n".join(said))


def cell_numbers(results, dataset, backbone, regime):
    """Every macro metric of the cell, by stage and recipe, with its interval where one is stored."""
    frame = _metrics(results, dataset, backbone, regime)
    frame = frame[(frame["class"] == "") & frame["metric"].isin(METRICS)]
    if frame.empty:
        return text("*No numbers: the cell did not end with predictions.*")
    frame = frame.assign(model=[_model(s, r) for s, r in zip(frame["stage"], frame["recipe"])])
    whole = frame[frame["fold"] == "pooled"] if (frame["fold"] == "pooled").any() else frame
    wide = whole.groupby(["metric", "model"], sort=False)["value"].mean().unstack("model")
    wide = wide.reindex([m for m in METRICS if m in wide.index])
    wide = wide[sorted(wide.columns, key=lambda c: not c.startswith("deployed"))]
    i = results.intervals
    i = i[(i["dataset"] == dataset) & (i["backbone"] == backbone) & (i["regime"] == regime) & (i["class"] == "")
          & i["stage"].isin(["float", "converted"])].drop_duplicates("metric").set_index("metric")
    bounds = [f"{i.loc[m, 'low']:.4f}–{i.loc[m, 'high']:.4f}" if m in i.index else "–" for m in wide.index]
    wide.insert(1, "95 % interval", bounds)
    wide = wide.reset_index()
    wide.columns.name = None
    wide.attrs = {"formats": {None: "{:.4f}"}}
    return table(wide, page_name(dataset, backbone, regime) + "-numbers", "Metrics on the held-out images", frame, numbered=False)


def _model(stage, recipe):
    name = {"float": "deployed", "converted": "deployed (converted)", "fake-quant": "fake-quantized"}.get(stage, stage)
    return recipe if recipe not in ("default", "") else name


def cell_classes(results, dataset, backbone, regime):
    """AUPRC, ROC-AUC and ECE of each class."""
    frame = _metrics(results, dataset, backbone, regime)
    frame = frame[(frame["class"] != "") & frame["stage"].isin(["float", "converted"]) & frame["recipe"].isin(["default", ""])
                  & frame["metric"].isin(["auprc", "auroc", "ece"])]
    if frame.empty:
        return text("*No numbers per class.*")
    wide = frame.groupby(["class", "metric"], sort=False)["value"].mean().unstack("metric").reset_index()
    wide.columns.name = None
    wide["class"] = [class_title(dataset, c) for c in wide["class"]]
    wide.attrs = {"formats": {None: "{:.4f}"}}
    return table(wide, page_name(dataset, backbone, regime) + "-classes", "By class", frame, numbered=False)


def cell_reliability(results, dataset, backbone, regime):
    """Reliability diagram and confusion matrix of the deployed model."""
    from medq import figures

    predictions = results.predictions(dataset, backbone, regime)
    label, name = f"{title(backbone)}, {title(regime)}", page_name(dataset, backbone, regime)
    return beside(figure(figures.reliability(predictions, regime=regime, label=label), f"{name}-reliability",
                         "Confidence against the share of right answers.", numbered=False),
                  figure(figures.confusion_matrix(predictions, dataset=dataset, label=label), f"{name}-confusion",
                         "True class against predicted class.", numbered=False))


def cell_training(results, dataset, backbone, regime):
    """Training curve; for PTQ, whose model was trained in another cell, a link to that."""
    from medq import figures

    if regime.startswith("ptq"):
        return text(f"Nothing was trained: the weights are those of [the FP32 cell]({page_name(dataset, backbone, 'fp32')}.md)."
                    if (dataset, backbone, "fp32") in chosen(results) else "Nothing was trained: the weights are the FP32 cell's.")
    h = results.history
    h = h[(h["dataset"] == dataset) & (h["backbone"] == backbone) & (h["regime"] == regime)]
    first = h[h["fold"] == h["fold"].min()] if len(h) else h
    return figure(figures.training_curve(first, regime=regime, label=f"{title(backbone)}, {title(regime)}"),
                  page_name(dataset, backbone, regime) + "-training", "Training, epoch by epoch.", h, numbered=False)


def _layers(results, dataset, backbone, regime):
    frame = results.layers
    return frame[(frame["dataset"] == dataset) & (frame["backbone"] == backbone) & (frame["regime"] == regime)]


def cell_layers(results, dataset, backbone, regime):
    """Noise of every quantized layer, and the three worst by name."""
    from medq import figures, tables

    name = page_name(dataset, backbone, regime)
    return joined(figure(figures.sqnr_figure(results, dataset, backbone, regime), f"{name}-layers",
                         "Signal-to-quantization-noise ratio, layer by layer.", _layers(results, dataset, backbone, regime),
                         numbered=False),
                  table(tables.worst_layers(results, dataset, backbone, regime), f"{name}-worst", numbered=False))


def cell_files(results, dataset, backbone, regime):
    """The executed notebook where there is one, the predictions, and the command that makes the cell again."""
    lines, stem = [], page_name(dataset, backbone, regime)
    notebooks = executed(results, dataset, backbone, regime)
    for fold, notebook in notebooks.items():
        path, uri = asset(f"{stem}-fold{fold}.ipynb")
        shutil.copyfile(notebook, path)
        lines.append(f"- {{download}}`Executed notebook, fold {fold} <{uri}>`")
    predictions = results.path / "predictions" / dataset / backbone / f"{regime}.parquet"
    if predictions.is_file():
        path, uri = asset(f"{stem}.parquet")
        shutil.copyfile(predictions, path)
        lines.append(f"- {{download}}`Predictions (parquet) <{uri}>`: every held-out image and its probabilities")
    profile = results.provenance.get("profile", results.name)
    stage = "quantize" if regime.startswith(("ptq", "qat")) else "finetune"
    lines.append(f"- Parameterised notebook: [{stage}.ipynb]({repository_url(f'notebooks/{stage}.ipynb')})")
    if not notebooks:
        lines.append("- The executed notebook is not among these results; this makes it again:")
    lines.append(f"\n```console\n$ medq batch params/{profile}.yaml --only dataset={dataset} backbone={backbone} regime={regime}\n```")
    return text("\n".join(lines))


def executed(results, dataset, backbone, regime):
    """Executed notebooks of a cell {fold: path}: kept with the results, or in the batch's own folder beside them."""
    found = {}
    for root in (paths.runs() / results.name, results.path / "notebooks"):
        for path in sorted((root / dataset / backbone / regime).glob("fold*/*.ipynb")):
            found[path.parent.name.removeprefix("fold")] = path
    return found


