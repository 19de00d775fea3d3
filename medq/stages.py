"""The stages: one table of the steps of a batch.

A stage is one notebook, one module and one rule of the Snakefile, all of its name. What its results depend on is in
`medq.keys`. A new study is a row here, its module and its notebook.
"""

import re
from dataclasses import dataclass, field
from functools import cache

from medq import paths, regimes

CELL = "{dataset}/{backbone}/{regime}/{place}"


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of a batch."""

    name: str
    folder: str  # where it writes, below the folder of the batch
    needs: str = ""  # the stage that must be done before it, for the same dataset, backbone and fold
    module: str = ""  # of medq, where it is not the stage's name
    methods: tuple = ()  # regimes that its notebook takes, by method; empty: it takes none
    tables: dict = field(default_factory=dict)  # {file: columns} that a result folder holds for all cells together
    reads: tuple = ()  # of the profile, what it alone depends on (`medq.keys.parameters`)
    title: str = ""  # what the banner of results calls it
    calibrates: bool = False  # needs `calibration.images` training images
    cnn: bool = False  # has nothing to show for a transformer
    every_engine: bool = False  # a study of each PTQ regime of the profile, not of the first alone
    every_regime: bool = False  # needs the models of all regimes that are trained from FP32, not FP32 alone
    timed: bool = False  # measures time: nothing else runs beside it
    on_demand: bool = False  # a study that is made only of backbones that the profile names

    @property
    def study(self):
        """Whether it analyses trained cells of the backbones that the profile names under `study`."""
        return self.name not in ("datasets", "finetune", "quantize", "collect")

    @property
    def output(self):
        """The executed notebook, which is what the Snakefile's rule makes."""
        return f"{self.folder}/{self.name}.ipynb"


def _study(name, title, tables, folder="", **more):
    """A stage that analyses trained cells: what it is called, the tables that it writes, and what is special about it."""
    engine = "-{engine}" if "methods" in more else ""
    folder = folder or f"{{dataset}}/{{backbone}}/{name}{engine}/{{place}}"
    return Stage(name, folder, "finetune", tables=tables, title=title, **more)


_PTQ, _INT8 = ("ptq",), ("ptq", "qat")
_ROWS = (
    Stage("datasets", "{dataset}/data", module="datasets.partition"),
    Stage("finetune", CELL, "datasets", methods=("float",)),
    Stage("quantize", CELL, "finetune", "quantize.stage", _INT8, calibrates=True),
    _study(
        "calibration_size",
        "calibration sizes",
        {"calibration_size.csv": "dataset backbone regime fold n_calibration subset auprc"},
        cnn=True,
        methods=_PTQ,
        reads=("calibration.sizes",),
    ),
    _study(
        "ablation",
        "recipes",
        {
            "ablation.csv": "dataset backbone recipe engine run_engine fold form weights activations reduce_range fused "
            "rounded training_mode normalised auprc auroc ece ece_top_label brier"
        },
        calibrates=True,
        cnn=True,
        reads=("recipes",),
    ),
    _study(
        "diagnosis",
        "layers",
        {
            "layers.csv": "dataset backbone regime fold layer operator sqnr_db saturation weight_range_ratio "
            "channel_range_ratio normed_range_ratio kernel_sqnr_db kernel_max_steps"
        },
        calibrates=True,
        every_engine=True,
        methods=_INT8,
    ),
    _study(
        "remedies",
        "remedies",
        {"remedies.csv": "dataset backbone regime fold remedy auprc ece ece_top_label brier p50_ms"},
        calibrates=True,
        methods=_PTQ,
    ),
    _study(
        "attention",
        "class activation maps",
        {
            "attention.csv": "dataset backbone regime form view fold method grid measure n value low high",
            "gallery.csv": "dataset backbone regime form view fold moved place image_id rank_correlation change image "
            "map_fp32 map",
        },
        calibrates=True,
        cnn=True,
        every_regime=True,
        reads=("qat", "regimes"),
    ),
    _study(
        "latency",
        "timings",
        {
            "latency.csv": "dataset backbone regime baseline engine device batch_size threads n_batches mean_ms p50_ms "
            "p50_low p50_high p90_ms p99_ms throughput convert_seconds size_mb",
            "latency_raw.parquet": "dataset backbone regime baseline batch_size batch ms",
        },
        folder="latency/{backbone}",
        timed=True,
    ),
    _study(
        "peers",
        "other runtimes",
        {
            "peers.csv": "dataset backbone fold runtime precision image_size batch_size auroc auprc ece ece_top_label "
            "brier p50_ms p99_ms p50_low p50_high size_mb convert_seconds",
            "peers_raw.parquet": "dataset backbone fold runtime precision batch_size batch ms",
        },
        calibrates=True,
        timed=True,
        on_demand=True,
        reads=("latency",),
    ),
    Stage("collect", "collect"),
)
STAGES = {row.name: row for row in _ROWS}  # in an order in which they can run
TABLES = {table: row.name for row in _ROWS for table in row.tables}


def folder(stage, cell):
    """Where a stage writes what it makes of a cell; studies lie beside the regimes, timings and the collection apart."""
    names = vars(cell) | {"place": cell.place, "engine": cell.regime.removeprefix("ptq-")}
    return paths.runs() / cell.profile / STAGES[stage].folder.format(**names)


@cache
def stage_of(name):
    """The stage that makes a folder of a batch, from the folder's path there; empty for one that none makes."""
    anything = dict.fromkeys(("dataset", "backbone", "engine"), "[^/]+")
    for row in _ROWS:
        own = "|".join(regime.name for regime in regimes.REGIMES.values() if regime.stage == row.name)
        if re.fullmatch(row.folder.format(**anything, regime=f"({own})", place=r"(seed\d+/)?fold\d+"), name):
            return row.name
    return ""


@cache
def notebook_parameters(stage):
    """Names of the parameters that a stage's notebook declares."""
    import papermill

    return tuple(papermill.inspect_notebook(str(paths.NOTEBOOKS / f"{stage}.ipynb")))
