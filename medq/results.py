"""Result folders: what their files hold (`SCHEMA`), and one lazy, read-only view of a folder (`Results`).

Everything in the book is a function of such a folder. A file that is not there reads as an empty table with
the right columns, so that the results of a half-finished batch can be shown.
"""

import itertools
import json
import os
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medq import artefacts, metrics, paths, regimes, stages
from medq.config import read_yaml
from medq.errors import UserError
from medq.params import Positive

REGIMES = {name: row.title for name, row in regimes.REGIMES.items()}  # the paper's titles, and our controls'
CONTROL = "fp32-continued"
SIMULATED = ".fake-quant"  # the fake-quantized form: suffix of its predictions, and of methods in bootstrap.csv
VARIANTS = {  # suffix of a file of predictions: (recipe, form; empty: float or converted, in print)
    "": ("default", "", "as deployed"),
    SIMULATED: ("default", "fake-quant", "simulated"),
    ".mended": ("mended", "converted", "patched engine"),
    ".as-trained": ("as-trained", "converted", "converted with the trained scales"),
}
PEER_REFERENCE = "pytorch-fp32"  # the runtime that the others of the same checkpoint are compared with
STUDY_TITLES = {name: row.title for name, row in stages.STAGES.items() if row.title}
RUNTIMES = {"pytorch": "PyTorch", "inductor": "Inductor", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
PHANTOM = "phantom-"
METRICS = {name: row.title for name, row in metrics.TABLE.items()}
LOWER_IS_BETTER = {name for name, row in metrics.TABLE.items() if row.better == "lower"}

# File -> columns, of the tables of studies as in `medq.stages`. Columns in KEYS are text and must be there, as must those in
# NEEDED; the others are numbers (or text where named in TEXT) and read as missing where a file lacks them. ratios.csv
# holds Table 4's two ratios, which the paper prints beside the milliseconds: only published/ has it.
SCHEMA = {
    file: columns.split()
    for file, columns in {
        **{file: columns for row in stages.STAGES.values() for file, columns in row.tables.items()},
        "cells.csv": "dataset backbone regime fold status reason train_seconds epochs engine_agrees engine_note",
        "metrics.csv": "dataset backbone regime recipe form fold metric class value",
        "intervals.csv": "dataset backbone regime form metric class value low high between_std n_models trainings",
        "bootstrap.csv": "dataset backbone method_a method_b metric n_resamples delta_pp low_pp high_pp images_low_pp "
        "images_high_pp p_value p_equation3 p_holm n_models trainings",
        "silent.csv": "dataset backbone regime form fold class threshold sensitivity_reference sensitivity "
        "specificity_reference specificity prevalence_reference prevalence crossed_up crossed_down n",
        "flips.csv": "dataset backbone regime_a regime_b fold flipped flipped_to_right flipped_to_wrong n",
        "leak.csv": "dataset backbone regime form metric subset n value",
        "conditions.csv": "stage dataset backbone fold threads interop_threads cores governor load_before load_after others seconds cpu "
        "instructions commit written",
        "history.csv": "dataset backbone regime fold epoch train_loss train_accuracy accuracy",
        "ratios.csv": "dataset backbone regime batch_size speedup size_ratio",
    }.items()
}
KEYS = set(
    "dataset backbone regime regime_a regime_b method_a method_b fold recipe stage form metric class "
    "subset remedy layer runtime precision view measure moved image_id".split()
)
FACTORS = ("weights", "activations", "reduce_range", "fused", "rounded", "training_mode", "normalised")  # of a recipe
TEXT = {
    *FACTORS,
    *"status reason engine_agrees engine_note baseline engine run_engine device operator cores governor".split(),
    *"cpu instructions commit written method image map_fp32 map".split(),
}
NEEDED = set("status batch_size value delta_pp low_pp high_pp p_value".split())
CELL = ["dataset", "backbone", "regime"]
FILES = {file.split(".")[0]: file for file in SCHEMA}
AGAIN = "collect the results again"


class _Facts(BaseModel):
    model_config = ConfigDict(strict=True)


class _Images(_Facts):
    n_images: int | None = None
    n_release: int | None = None
    n_train: int | None = None
    n_held_out: int | None = None


class _Parameters(_Facts):
    datasets: list[str] = []
    backbones: list[str] = []
    regimes: list[str] = []
    controls: list[str] = []
    weights: str | None = None
    subset: dict[str, int | None] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    bootstrap: dict[str, Positive] = {}
    overrides: dict[str, dict] | None = None
    latency: dict = {}
    calibration: dict = {}


class Provenance(_Facts):
    """What is read of provenance.json, whose keys are those of a cell's manifest. Every key may be missing."""

    profile: str = ""
    source: str = ""  # only where nothing was run: a sentence that says where the numbers are from
    parameters: _Parameters = _Parameters()  # the profile, whole
    data: dict[str, _Images] = {}  # of each dataset
    versions: dict = {}  # {package: version}
    commit: dict[str, str | bool | None] | None = None  # {hash, modified} of the code
    cpu: dict | None = None  # of the newest cell: model, cores, instructions
    gpu: dict | None = None  # the same: name
    commits: list[str] = []
    written: str | None = None  # when the newest cell was written, ISO 8601, UTC
    first_written: str = ""  # the oldest
    machines: list[dict] = []  # all that cells were made on
    studied: dict[str, list[dict]] = {}  # {stage: machines} of the studies that were made on others


def read_table(path, needed=(), **options):
    """A parquet or CSV file (`options` of pandas) as a DataFrame.

    `UserError` where it cannot be read, is cut short, or lacks one of the columns `needed`.
    """
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            text = path.read_bytes()
            if text and not text.endswith(b"\n"):
                raise ValueError("it is cut short: its last line does not end")
            frame = pd.read_csv(path, **options)
            if not frame.index.equals(pd.RangeIndex(len(frame))):  # pandas takes what is left of the first row as names
                raise ValueError("its rows have more entries than there are columns")
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a table ({' '.join(str(error).split())}); {AGAIN}.") from None
    for column in needed:
        if column not in frame:
            raise UserError(f"{path}: lacks the column {column!r}; {AGAIN}.")
    return frame


def _read(path, columns, first_seed=False):
    """One tidy file as a DataFrame with exactly `columns`; empty where the file is missing."""
    kinds = {c: "str" if c in KEYS | TEXT else "float64" for c in columns}
    if not path.is_file():
        return pd.DataFrame(columns=columns).astype(kinds)
    text, numbers = ([c for c in columns if kinds[c] == kind] for kind in ("str", "float64"))
    needed = [c for c in columns if c in KEYS | NEEDED]
    missing = dict.fromkeys(numbers, ["", "nan", "NaN"])  # only numbers: a class may well be called "NA"
    frame = read_table(path, needed, dtype=dict.fromkeys(text, "str"), keep_default_na=False, na_values=missing)
    for column in columns:
        if column not in frame:
            frame[column] = "" if column in text else float("nan")
        elif column in text:
            frame[column] = frame[column].astype("str")
        elif not pd.api.types.is_any_real_numeric_dtype(frame[column]):
            numbers = pd.to_numeric(frame[column].astype("str"), errors="coerce").astype("float64")
            wrong = frame.index[numbers.isna() & frame[column].notna()]
            if len(wrong):
                place = f"{str(frame[column][wrong[0]])!r} in row {wrong[0] + 1} of the column {column!r}"
                raise UserError(f"{path}: {place} is not a number; {AGAIN}.")
            frame[column] = numbers
    return _of_seeds(frame, first_seed)[columns]


def _of_seeds(frame, first=False):
    """Of a table of several training seeds (column `seed`) the rows of their mean, else (or if `first`) of each cell's first seed.

    What became of the cells concerns them all.
    """
    if "seed" not in frame or "status" in frame:
        return frame
    chosen = frame["seed"].astype("str") == "mean"
    if first or not chosen.any():
        frame = frame[~chosen]
        seed = pd.to_numeric(frame["seed"], errors="coerce").fillna(-1)
        cell = [frame[c] for c in CELL if c in frame] if "backbone" in frame else [seed.notna()]
        chosen = seed == seed.groupby(cell).transform("min")
    return frame[chosen].reset_index(drop=True)


@dataclass(frozen=True, eq=False)
class Results:
    """A result folder. Every file is read once, when first asked for; do not change what you get.

    It has one attribute for each file of `SCHEMA`, of its name without the suffix: a DataFrame with the columns that
    `SCHEMA` names, empty where the folder lacks the file. `UserError` names a file that is damaged: cut short, without a
    column it must have, or with an entry in one that is not a number.
    """

    name: str
    path: Path
    of_first_seed: bool = False

    def __getattr__(self, name):
        if name not in FILES:
            raise AttributeError(name)
        self.check(FILES[name])
        frame = vars(self)[name] = _read(self.path / FILES[name], SCHEMA[FILES[name]], self.of_first_seed)
        return frame

    @cached_property
    def first_seed(self):
        """The same folder with the first training of each cell in place of the mean of several: the model that is studied."""
        several = (self.provenance.get("parameters") or {}).get("seeds")
        return Results(self.name, self.path, of_first_seed=True) if several else self

    @cached_property
    def _checksums(self):
        found = artefacts.read_json(self.path / "checksums.json")
        return found if isinstance(found, dict) else {}  # the paper's numbers, and tables made by hand, have none

    def check(self, name):
        """`UserError` where a file of the folder is not as it was collected: cut short, changed or missing."""
        path, digest = self.path / name, self._checksums.get(name)
        if digest is not None and (not path.is_file() or artefacts.sha256(path) != digest):
            what = "does not match its checksum" if path.is_file() else "is missing"
            raise UserError(f"{path}: {what}; {AGAIN}.")

    @cached_property
    def provenance(self):
        """`provenance.json` as a dict (keys in `Provenance`), empty where the folder lacks it."""
        path = self.path / "provenance.json"
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            Provenance.model_validate(found)
        except ValidationError as error:
            wrong = error.errors()[0]
            key = ".".join(map(str, wrong["loc"]))
            why = (
                f"{key}: {wrong['msg'].lower()}, not {str(wrong['input'])[:60]!r}" if key else "must hold a JSON object"
            )
        except ValueError as error:
            why = f"is not valid JSON ({error})"
        else:
            return found
        raise UserError(f"{path}: {why}; {AGAIN}.")

    def _table(self, name, columns, **options):
        """A table beside those of `SCHEMA`, which must have `columns` (all text where the folder lacks it, and empty)."""
        if not (self.path / name).is_file():
            return pd.DataFrame(columns=columns, dtype="str")
        self.check(name)
        return read_table(self.path / name, columns, keep_default_na=False, **options)

    def folds(self, dataset):
        """`folds/<dataset>.csv`: image_id, label, group, fold as text; empty where the folder lacks it."""
        return self._table(f"folds/{dataset}.csv", ["image_id", "label", "group", "fold"], dtype="str")

    def audit(self, dataset):
        """`audit/<dataset>.csv`: groups of copies (`medq.datasets.audit`); empty where the folder lacks it."""
        columns = ["image_id", "group_id", "kind", "spans", "label"]
        return self._table(f"audit/{dataset}.csv", columns, dtype={"image_id": "str"})

    def trained_on(self, dataset):
        """`trained_on/<dataset>.csv`: fold, image_id of the images trained on; empty where the folder lacks it."""
        return self._table(f"trained_on/{dataset}.csv", ["fold", "image_id"], dtype={"image_id": "str"})

    def predictions(self, dataset, backbone, regime, variant=""):
        """Stored predictions of a cell (of several seeds the first), all folds: image_id, fold, label, `p_<class>` in label order.

        `variant` is "" (what would be deployed), "fake-quant", "mended" or "as-trained". Empty where the folder lacks them.
        """
        name = f"predictions/{dataset}/{backbone}/{regime}{'.' if variant else ''}{variant}.parquet"
        columns = ["image_id", "fold", "label"]
        if not (self.path / name).is_file():
            return pd.DataFrame(columns=[*columns, *(f"p_{c}" for c in self.classes(dataset))])
        self.check(name)
        return _of_seeds(read_table(self.path / name, columns)).drop(columns="seed", errors="ignore")

    @lru_cache(maxsize=1024)  # noqa: B019  (a folder is read once and kept)
    def classes(self, dataset):
        """Class names in label order: from predictions, else the catalogue, else the metrics."""
        files = sorted((self.path / "predictions" / dataset).glob("*/*.parquet"))
        stored = [c[2:] for c in read_table(files[0]).columns if c.startswith("p_")] if files else []
        seen = self.metrics.loc[self.metrics["dataset"] == dataset, "class"]
        return stored or list(_catalogue("datasets").get(dataset, {}).get("classes") or [c for c in seen.unique() if c])

    def _named(self, column, known):
        """Names in `column` of the main files and the profile, known ones first and in their order."""
        keys = ["regimes", "controls"] if column == "regime" else [column + "s"]
        planned = [name for key in keys for name in self.provenance.get("parameters", {}).get(key, [])]
        frames = (self.cells, self.metrics, self.latency, self.calibration_size)
        seen = dict.fromkeys([*planned, *(n for f in frames for n in f[column].unique())])
        names = [n for n in seen if n not in ("", "mean", "all", "cnn", "transformer")]  # no groups
        return [n for n in known if n in names] + [n for n in names if n not in known]

    @cached_property
    def datasets(self):
        """Datasets in these results or planned by their profile, in the paper's order."""
        return self._named("dataset", list(_catalogue("datasets")))

    @cached_property
    def backbones(self):
        """Backbones in these results or planned by their profile, in the paper's order."""
        return self._named("backbone", list(_catalogue("backbones")))

    @cached_property
    def regimes(self):
        """Regimes in these results or planned by their profile, in the paper's order, the control last."""
        return self._named("regime", list(REGIMES))

    @cached_property
    def status(self):
        """What became of each cell: dataset, backbone, regime, status, reason, engine_agrees, note.

        Over a cell's folds, `done` wins over `unsupported`, and that over `failed`; a cell that no file mentions is
        `missing`. `engine_agrees` is False as soon as one fold's kernels disagree with their own simulation.
        """
        return pd.DataFrame(self._states.values(), columns=[*CELL, *_cell_status([], False)])

    @cached_property
    def _states(self):
        of_cell = {}
        for row in self.cells.to_dict("records"):
            of_cell.setdefault(tuple(row[c] for c in CELL), []).append(row)
        measured = set(self.metrics[CELL].itertuples(index=False, name=None))
        return {
            cell: dict(zip(CELL, cell)) | _cell_status(of_cell.get(cell, []), cell in measured)
            for cell in itertools.product(self.datasets, self.backbones, self.regimes)
        }

    def state(self, dataset, backbone, regime):
        """The row of `status` of one cell as a dict; status `missing` where nothing mentions the cell."""
        return self._states.get((dataset, backbone, regime), _cell_status([], False))

    def banner(self):
        """Markdown: what these numbers are and are not, `banner.md` filled in from `provenance.json` and the cells."""
        import jinja2

        text = Path(__file__).with_name("banner.md").read_text(encoding="utf-8")
        template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(text)
        return template.render(_banner_facts(self)).strip()


def _cell_status(rows, measured):
    """What `Results.status` says of a cell: `rows` of cells.csv (dicts), one per fold, and whether it has metrics."""
    found = {row["status"] for row in rows}
    known = next((s for s in ("done", "unsupported", "failed") if s in found), "missing")
    status = known if rows or not measured else "done"
    agreed = {row["engine_agrees"].lower() for row in rows}
    notes = dict.fromkeys(row["engine_note"] for row in rows if row["engine_agrees"].lower() == "false")
    return {
        "status": status,
        "reason": "; ".join(dict.fromkeys(r["reason"] for r in rows if r["status"] == status and r["reason"])),
        "engine_agrees": False if "false" in agreed else True if "true" in agreed else "",
        "note": "; ".join(filter(None, notes)),
    }


def _banner_facts(results):
    """What `banner.md` is filled in with."""
    p, status, cells = results.provenance, results.status, results.cells[results.cells["status"] == "done"]
    given, subset = p.get("parameters", {}), p.get("parameters", {}).get("subset") or {}
    elsewhere = {}
    for stage, machines in p.get("studied", {}).items():
        elsewhere.setdefault(" and ".join(map(_machine, machines)), []).append(STUDY_TITLES.get(stage, stage))
    return {
        "p": p,
        "name": results.name,
        "given": {"latency": {}} | given,
        "datasets": [
            p.get("data", {}).get(name, {})
            | {
                "title": title(name),
                "done": sorted(cells.loc[cells["dataset"] == name, "fold"].unique()),
                "n_folds": _catalogue("datasets").get(name, {}).get("folds", {}).get("n"),
            }
            for name in results.datasets
        ],
        "phantoms": any(name.startswith(PHANTOM) for name in results.datasets),
        "subset": [
            f"{subset[part]:,} to {what} on"
            for part, what in (("train", "train"), ("held_out", "evaluate"))
            if subset.get(part)
        ],
        "machine": _machine(p),
        "torch": "torch" in p.get("versions", {}) and f"PyTorch {p['versions']['torch']}",
        "day": (p.get("written") or "")[:10],
        "commit": (p.get("commit") or {}).get("hash") and f"commit `{p['commit']['hash'][:10]}`",
        "elsewhere": elsewhere,
        "timed": len(results.latency) > 0,
        "n_cells": len(status),
        "counts": status["status"].value_counts().to_dict(),
        "disagreeing": int(status["engine_agrees"].eq(False).sum()),
    }


def _machine(facts):
    """A machine in words: processor, cores, VNNI, GPU."""
    cpu, gpu = facts.get("cpu") or {}, facts.get("gpu") or {}
    if not cpu and not gpu:
        return "a machine that was not recorded"
    vnni = any("vnni" in i for i in cpu.get("instructions", []))
    cores = f"{cpu['cores']} cores" if cpu.get("cores") else None
    return ", ".join(
        filter(None, [cpu.get("model"), cores, f"with{'' if vnni else 'out'} VNNI", gpu.get("name") or "no GPU"])
    )


# --- names ----------------------------------------------------------------------------------------


@cache
def _catalogue(kind):
    """`params/<kind>.yaml` as a plain dict: labels and order of what is known."""
    return read_yaml(paths.PARAMS / f"{kind}.yaml")


def title(name):
    """How tables and figures print a dataset, backbone, regime, metric or runtime; an unknown name stays as it is."""
    entry = _catalogue("backbones").get(name)
    if entry:
        return entry["title"]
    runtime, _, precision = name.partition(" ")  # "pytorch-x86 int8"
    runtime, _, engine = runtime.partition("-")
    if precision and runtime in RUNTIMES:
        return " ".join(filter(None, (RUNTIMES[runtime], engine, precision.upper())))
    return REGIMES.get(name) or METRICS.get(name) or name.replace(PHANTOM, "phantom ")


def words(name):
    """How tables and figures print a remedy or recipe: `worst-3-in-fp32` as "worst 3 in FP32"."""
    return name.replace("-", " ").replace("fp32", "FP32").replace("relu6", "ReLU6")


def class_title(dataset, name):
    """How tables and figures print a class of a dataset."""
    return _catalogue("datasets").get(dataset, {}).get("titles", {}).get(name, name)


def family(backbone):
    """`cnn` or `transformer`, from the catalogue; a backbone it does not know counts as a CNN.

    The paper's Table 2 names families in place of backbones: these are their own.
    """
    if backbone in ("cnn", "transformer"):
        return backbone
    return _catalogue("backbones").get(backbone, {}).get("family", "cnn")


def counterpart(dataset):
    """The paper's dataset that `dataset` is compared with: itself, what a phantom stands for, or None."""
    entry = _catalogue("datasets").get(dataset, {})
    name = entry.get("phantom", {}).get("stands_for", dataset.removeprefix(PHANTOM))
    return name if name in ("BrainMRI", "ChestXray", "SkinCancer") else None


# --- finding results ------------------------------------------------------------------------------


def load(path_or_name):
    """The result folder at a path, or of that name under `results/`; `UserError` where there is none."""
    path = Path(path_or_name)
    for candidate in (path, paths.RESULTS / path):
        if candidate.is_dir():
            return Results(candidate.resolve().name, candidate.resolve())
    known = sorted(p.name for p in paths.RESULTS.glob("*") if p.is_dir())
    raise UserError(f"{path_or_name}: no such result folder; results/ holds {', '.join(known) or 'none'}.")


def variant(results, kind):
    """The results of the same profile with one key changed (`deduplicated`, `inner`), or None where there are none.

    They lie beside `results`, in a folder of the same name with `-<kind>` behind it.
    """
    path = results.path.with_name(f"{results.path.name}-{kind}")
    return Results(path.name, path) if (path / "metrics.csv").is_file() else None


@cache
def published():
    """The paper's own numbers (Tables 1 to 4) as a result set.

    Table 1: backbone `mean`; INT8 in the form `fake-quant` (section 3.2). Table 3 names neither engine nor
    form: regimes `ptq` and `qat`, form empty. Table 2: backbone `cnn` or `transformer`, batch 32
    (throughput times p50). Table 4: dataset empty (medians over the three), batch 1, its ratios in
    `ratios`.
    """
    return load(paths.RESULTS / "published")


def current():
    """The results that the book shows: `MEDQ_RESULTS` (a path or a name), else `reference`, else `smoke`."""
    chosen = os.environ.get("MEDQ_RESULTS")
    if chosen:
        return load(os.path.expanduser(chosen))
    return load("reference" if (paths.RESULTS / "reference" / "metrics.csv").is_file() else "smoke")


def companions(results, names=("pretrained",)):
    """`results` and, beside `reference`, the folders called `names` that exist: results of the paper's protocol."""
    folders = [results.path.with_name(name) for name in names if results.name == "reference"]
    return [results, *(Results(path.name, path) for path in folders if (path / "metrics.csv").is_file())]


# --- numbers --------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _split(results, table):
    """`metrics` or `intervals` of a folder as {(metric, class): rows}."""
    return dict(list(getattr(results, table).groupby(["metric", "class"])))


def _rows_of(results, table, metric, klass):
    return _split(results, table).get((metric, klass), getattr(results, table).iloc[:0])


@lru_cache(maxsize=1024)
def scores(results, metric, *, form="converted", klass="", recipe="default"):
    """One metric of every cell: dataset, backbone, regime, value, low, high.

    `form` chooses between the INT8 forms (`converted` or `fake-quant`); floating-point regimes have only one. `klass`
    names a class; empty is the macro average. The value is that of the pooled predictions where they were pooled, else
    the mean over folds. `low` and `high` are the 95 % bootstrap interval within the cell, missing where none is stored.
    """
    m = _rows_of(results, "metrics", metric, klass)
    m = m[m["recipe"].isin([recipe, ""]) & m["form"].isin(["float", form, ""])]
    m = m[(m["backbone"] != "mean") & m["value"].notna()]
    pooled = m[m["fold"].isin(["pooled", ""])].set_index(CELL)["value"]
    apart = m[~m["fold"].isin(["pooled", ""])].groupby(CELL)["value"].mean()
    out = (pooled.combine_first(apart) if len(apart) else pooled).rename("value").to_frame()
    i = _rows_of(results, "intervals", metric, klass)
    i = i[i["form"].isin(["float", form, ""])]
    bounds = i.drop_duplicates(CELL).set_index(CELL)[["low", "high"]]
    out = out.join(bounds if recipe == "default" else bounds.iloc[:0])
    return _in_order(results, out.reset_index())


def _in_order(results, frame):
    """Rows in the order of the paper's tables."""

    def rank(column):
        names = getattr(results, column.name + "s")
        return column.map({name: k for k, name in enumerate(names)}).fillna(len(names))

    return frame.sort_values([c for c in CELL if c in frame], key=rank).reset_index(drop=True)


@lru_cache(maxsize=1024)
def means(results, metric, *, form="converted"):
    """One metric averaged over backbones: dataset, regime, value, low, high, between_std, backbones (a tuple).

    `low` and `high` are the stored 95 % bootstrap interval of the mean (the same resamples for every backbone), and
    `between_std` the sample standard deviation between backbones: two different things, kept apart.
    """
    m = _rows_of(results, "metrics", metric, "")
    given = m[(m["backbone"] == "mean") & m["form"].isin(["float", form])]
    if len(given):
        out = given[["dataset", "regime", "value"]].reset_index(drop=True)
        return out.assign(low=float("nan"), high=float("nan"), between_std=float("nan"), backbones=[()] * len(out))
    s = scores(results, metric, form=form)
    groups = s.groupby(["dataset", "regime"], sort=False)
    out = groups["value"].agg(value="mean", between_std="std")
    out["backbones"] = groups["backbone"].agg(tuple)
    i = _rows_of(results, "intervals", metric, "")
    i = i[(i["backbone"] == "mean") & i["form"].isin(["float", form])]
    out = out.join(i.drop_duplicates(["dataset", "regime"]).set_index(["dataset", "regime"])[["low", "high"]])
    out = out.reset_index()[["dataset", "regime", "value", "low", "high", "between_std", "backbones"]]
    return _in_order(results, out)


def cpu_times(results, batch_size):
    """Rows of latency.csv of a batch size that were timed on the CPU; the paper's name no device."""
    t = results.latency
    return t[(t["batch_size"] == batch_size) & t["device"].isin(["cpu", ""])]


def timings(results, batch_size):
    """CPU latency per backbone and regime, floating point eager: the median over datasets, as in Tables 2 and 4.

    Columns are those of `latency.csv`.
    """
    t = cpu_times(results, batch_size)
    t = t[~t["regime"].isin(["fp32", "fp16"]) | t["baseline"].isin(["eager", ""])]
    numbers = [c for c in SCHEMA["latency.csv"] if c not in KEYS | TEXT and c != "batch_size"]
    return _in_order(results, t.groupby(["backbone", "regime"])[numbers].median().reset_index())


def peer_means(results):
    """`peers.csv` averaged over folds: one row per dataset, backbone, runtime, precision and batch size.

    Only folds count in which most runtimes of the model were measured: means over different folds cannot be compared.
    """
    model, rows = ["dataset", "backbone", "batch_size"], results.peers
    found = rows.groupby([*model, "fold"])["runtime"].transform("size")
    rows = rows[found == found.groupby([rows[c] for c in model]).transform("max")]
    numbers = [c for c in SCHEMA["peers.csv"] if c not in KEYS | TEXT and c != "batch_size"]
    return rows.groupby([*model, "runtime", "precision"], sort=False)[numbers].mean().reset_index()
