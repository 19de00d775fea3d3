"""What the result of a stage for one cell depends on, and the key that `done.json` stores of it.

A cell whose stored `inputs` differ from today's is stale, and `changes` says in which of them.
"""

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

from medq import artefacts, params as profiles, paths, regimes
from medq.errors import UserError
from medq.stages import STAGES

PACKAGE = Path(__file__).parent
# How cells are configured, stored and shown. What of it bears on a number is among a stage's parameters.
CONTROL = frozenset(
    "artefacts batch config errors figures keys notebook params paths provenance regimes results slots stages tables".split()
)
# What these make of the images is hashed as the content of the stage `datasets`.
IMAGES = frozenset(f"datasets.{name}" for name in "audit dicom fetch index phantoms pixels spec".split())


# --- the code that a stage runs -----------------------------------------------------------------------------------------


@cache
def code(stage):
    """Digest of the code that a stage imports; comments, blank lines and docstrings do not count."""
    digest = hashlib.sha256()
    for name in modules(stage):
        tree = ast.parse(_source(name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            first = body[0] if isinstance(body, list) and body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                first.value = ast.Constant("")
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]


@cache
def modules(stage):
    """Names of the package's modules that bear on a stage's numbers: what its own imports, without `CONTROL`.

    For later stages the modules of `IMAGES` do not count: their outcome is hashed instead.
    """
    left_out = CONTROL if stage in ("datasets", "collect") else CONTROL | IMAGES
    found, ahead = set(), [STAGES[stage].module or stage]
    while ahead:
        name = ahead.pop()
        if name not in found and name.split(".")[0] not in left_out and name not in left_out:
            found.add(name)
            ahead += imports(name)
    return sorted(found)


@cache
def imports(name):
    """Names of the package's modules that a module of it imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(_source(name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "medq":
            base = node.module.partition(".")[2]
            members = [f"{base}.{alias.name}".strip(".") for alias in node.names]
            found |= {member if _source(member).is_file() else base for member in members}
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("medq.")}
    return sorted(found - {name, ""})


def _source(name):
    """The file of a module."""
    path = PACKAGE / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


# --- inputs -----------------------------------------------------------------------------------------------------------


def parameters(params, stage, cell):
    """The values of the profile and the catalogues that a stage reads for `cell`, by dotted name."""
    if stage != "datasets":
        backbone = profiles.backbones()[cell.backbone].model_dump(exclude={"title"})
    if stage == "latency":  # weights and images change no time
        return {
            "latency": params.latency.model_dump(),
            "calibration": {"images": params.calibration.images},
            "backbone": backbone,
            "device": params.device,
            "regimes": [name for name in params.regimes if name != "fp32"],
        }
    read = {"name", "layout", "classes", "folder", "splits", "pattern", "table", "phantom", "folds"}
    read |= {"release"} if cell.dataset.startswith("phantom") else set()
    spec = profiles.datasets()[cell.dataset].model_dump(mode="json", include=read)
    values = {"dataset": spec, "image_size": params.image_size, "seed": params.seed}
    if stage == "datasets":
        return values
    values |= {"backbone": backbone, "train": params.training(cell.backbone).model_dump()}
    values |= {"weights": _weights(params.weights_of(cell.backbone), cell.backbone), "device": params.device}
    values |= {"compile": params.compile, "subset": params.subset.model_dump(), "deduplicate": params.deduplicate}
    values |= {} if cell.seed is None else {"training_seed": cell.seed}
    reads = STAGES[stage].reads
    studied = regimes.REGIMES.get(cell.regime.removeprefix(f"{stage}-"))  # `diagnosis-qat-fbgemm`: of that cell
    if "qat" in reads or studied and studied.schedule == "qat":
        values["qat"] = params.quantization(cell.backbone).model_dump()
    if stage != "finetune":
        sizes = set() if "calibration.sizes" in reads else {"sizes", "subsets"}
        values["calibration"] = params.calibration.model_dump(exclude=sizes)
    if "regimes" in reads:
        values["regimes"] = sorted({*params.regimes, *params.controls})
    if "latency" in reads:
        values["latency"] = params.latency.model_dump()
    if "recipes" in reads:
        values["recipes"] = {
            name: r.model_dump(exclude={"title"})
            for name, r in profiles.recipes().items()
            if params.study.recipes is None or name in ("default", *params.study.recipes)
        }
    return values


def _weights(weights, backbone):
    """`imagenet`, `none`, or a digest of the file of weights: a file replaced under its name makes its cells stale."""
    from medq.backbones import weights_file

    try:
        path = weights_file(weights, backbone)
    except UserError:
        return Path(weights).name  # a file that is not there is refused where it is loaded
    if path is None:
        return weights
    stat = path.stat()
    return f"sha256 {_digest(path, stat.st_mtime_ns, stat.st_size)}"


@cache
def _digest(path, *_):
    return artefacts.sha256(path)


def inputs(params, stage, cell, key_of=None):
    """Everything the result of `stage` for `cell` depends on, as a mapping of plain data; of `datasets` but for its images.

    `key_of(folder)` gives the content key of the folder of an earlier stage; by default it is read from the disk.
    """
    key_of = key_of or (lambda path: content_key(artefacts.record(path)))
    place = [cell.dataset, cell.backbone, cell.regime, cell.fold, *([] if cell.seed is None else [cell.seed])]
    value = {"code": code(stage), "cell": place, "parameters": parameters(params, stage, cell)}
    if stage not in ("datasets", "latency"):
        own = regimes.REGIMES.get(cell.regime) if stage in ("finetune", "quantize") else None
        start = own.start if own else "fp32"
        value["images"] = key_of(paths.data_folder(cell.profile, cell.dataset))
        if start:
            value["starts from"] = key_of(cell.of(start).folder)
    return json.loads(json.dumps(value))


def key(value):
    """Hash of `inputs`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def content_key(record):
    """Key of a finished folder that dependants store: the content hash for datasets, else the folder's key."""
    return (record.get("content") or record.get("key")) if record else None


def changes(stored, current, name=""):
    """Which inputs differ, as short phrases: `train.epochs: 5 → 3`, `code`, …; `name` is that of a part of them."""
    if isinstance(stored, dict) and isinstance(current, dict):
        parts = {part: f"{name}.{part}".removeprefix(".") for part in sorted({*stored, *current})}
        return [phrase for part in parts for phrase in changes(stored.get(part), current.get(part), parts[part])]
    if stored == current:
        return []
    if name in ("code", "images", "starts from"):
        return [name]
    return [f"{name.removeprefix('parameters.')}: {stored} → {current}"]
