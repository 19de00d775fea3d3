"""Every table by its name: the function that makes it. `show` prints it as `looks.yaml` says, `data` returns it."""

from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jinja2
import pandas as pd

from medq.config import read_yaml
from medq.errors import one_of
from medq.results import class_title, counterpart, title
from medq.tables import about, beyond, paper, plotted
from medq.tables.attention import attention
from medq.tables.entries import comparable, covers
from medq.tables.html import STYLE, Look, to_html

_OF_ONE_NAME = (
    *(paper.table1, paper.table2, paper.table3, paper.table4, paper.speedups),
    *(beyond.engine_check, beyond.smallest_change, beyond.recipes_against_table1, beyond.remedies, attention),
    *(beyond.worst_layers, beyond.silent, beyond.flips, beyond.leak, beyond.leak_effect, beyond.qat_control),
    *(beyond.peers, beyond.recommended, beyond.advice),
    *(about.balance, about.folds, about.conditions, about.versions, about.selection),
    *(about.cell_numbers, about.cell_classes),
)
TABLES = {  # name: function of (results, **options)
    **{function.__name__: function for function in _OF_ONE_NAME},
    "figure1": partial(plotted.regimes_data, metric="auroc"),
    "figure2": plotted.tradeoff_data,
    "figure3": plotted.forest_data,
    "figure4": plotted.calibration_data,
    "figure5": partial(plotted.regimes_data, metric="auprc"),
    "figure6": plotted.latency_data,
    "figure7": plotted.reliability_data,
    **{kind: partial(beyond.beside_variant, kind=kind) for kind in beyond.VARIANTS},
    "batch_norm_sizes": lambda results: about.batch_norm_sizes(),
}
LEVELS = (
    "The paper's values are shown but not compared: its models were fine-tuned from ImageNet weights at 224 pixels, "
    "and these were not."
)


class Shown(NamedTuple):
    """A table: its numbers, one row each, its caption, and its HTML."""

    data: pd.DataFrame
    caption: str
    html: str

    def _repr_html_(self):
        return f"{STYLE}\n<p>{self.caption}</p>{self.html}"


def data(name, results, **options):
    """The numbers behind a table or figure (a name in `TABLES`), one row each; `UserError` for an unknown name."""
    return TABLES[one_of("table or figure", name, TABLES)](results, **options)


def show(name, results, **options):
    """A table by its name, as a `Shown`: numbers, caption and HTML."""
    frame, look = data(name, results, **options), _look(name, results, options)
    wide = frame
    if look.across == "column":
        columns = zip(frame["dataset"], frame["class"], frame["metric"])
        wide = frame.assign(column=[f"{class_title(d, klass)} {title(metric)}" for d, klass, metric in columns])
    return Shown(frame, look.caption, to_html(wide, look))


def _look(name, results, options):
    """The entry of `looks.yaml`, filled in."""
    floors = results.intervals.query("metric == 'ece_floor' and backbone == 'mean' and regime == 'fp32'")
    facts = options | {
        "results": results,
        "floors": ", ".join(f"{title(d)} {v:.4f}" for d, v in zip(floors["dataset"], floors["value"])),
        "sizes": "/".join(f"{size:g}" for size in sorted(results.peers["image_size"].dropna().unique())),
    }
    functions = {f.__name__: f for f in (title, counterpart, covers, beyond.disturbed, beyond.other_models)}
    constants = {k: getattr(beyond, k) for k in ("COLLAPSE", "REPRODUCED", "GAP")}
    environment = jinja2.Environment()
    environment.globals |= facts | functions | constants

    def fill(value):
        if isinstance(value, dict):
            return {key: fill(v) for key, v in value.items()}
        if isinstance(value, list):
            return tuple(map(fill, value))
        return environment.from_string(value).render() if isinstance(value, str) else value

    look = fill(_looks()[name])
    if look.pop("levels", False) and not comparable(results):
        look |= {"compared": (), "notes": (*look["notes"], LEVELS)}
    return Look(**look)


@cache
def _looks():
    return read_yaml(Path(__file__).with_name("looks.yaml"))
