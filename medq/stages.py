"""What each stage depends on, as data: the parameters it reads, the code it runs, the stages before it.

The answer for one cell is its `inputs`; a hash of them is the cell's key, stored in `done.json`. A cell whose stored
inputs differ from today's is stale, and `changes` says in which of them.
"""

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

from medq import artefacts, params as profiles, paths
from medq.errors import UserError

PACKAGE = Path(__file__).parent
_TRAIN = ("fit", "augment", "evaluate", "backbones", "datasets/partition", "datasets/folds")
_QUANTIZE = (
    *_TRAIN,
    "finetune",
    "quantize/engines",
    "quantize/observers",
    "quantize/static",
    "quantize/dynamic",
    "quantize/kernels",
    "quantize/storage",
    "quantize/stage",
)

MODULES = {
    "datasets": (
        "datasets/index",
        "datasets/folds",
        "datasets/pixels",
        "datasets/audit",
        "datasets/phantoms",
        "datasets/partition",
    ),
    "finetune": (*_TRAIN, "finetune"),
    "quantize": _QUANTIZE,
    "calibration_size": (*_QUANTIZE, "calibration_size"),
    "ablation": (*_QUANTIZE, "ablation"),
    "diagnosis": (*_QUANTIZE, "diagnosis"),
    "remedies": (*_QUANTIZE, "remedies"),
    "latency": (*_QUANTIZE, "latency"),
    "peers": (*_QUANTIZE, "latency", "peers"),
    "collect": ("collect", "metrics", "bootstrap"),
}
PER_ENGINE = ("calibration_size", "diagnosis", "remedies")  # studies with a folder per engine


def stage_of(regime):
    """The stage that makes a regime's predictions."""
    return "quantize" if regime.startswith(("ptq", "qat")) else "finetune"


def folder(stage, cell):
    """Where a stage writes what it makes of a cell; studies lie beside the regimes, timings and the collection apart."""
    if stage == "datasets":
        return paths.data_folder(cell.profile, cell.dataset)
    if stage == "latency":
        return paths.runs() / cell.profile / "latency" / cell.backbone
    if stage == "collect":
        return paths.runs() / cell.profile / "collect"
    if stage in PER_ENGINE:
        return cell.of(f"{stage}-{cell.regime.removeprefix('ptq-')}").folder
    return cell.folder if stage in ("finetune", "quantize") else cell.of(stage).folder


def upstream(cell):
    """The cell whose checkpoint this one starts from, or None."""
    return None if cell.regime in ("fp32", "fp16") else cell.of("fp32")


@cache
def code(stage):
    """Digest of the code of a stage's modules; comments, blank lines and docstrings do not count."""
    digest = hashlib.sha256()
    for path in _sources(stage):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if (
                isinstance(body, list)
                and body
                and isinstance(body[0], ast.Expr)
                and isinstance(body[0].value, ast.Constant)
            ):
                body[0].value = ast.Constant("")
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]


def _sources(stage):
    """Files of a stage's modules and packages."""
    for name in sorted(set(MODULES[stage])):
        package = PACKAGE / name
        yield from sorted(package.glob("*.py")) if package.is_dir() else [PACKAGE / f"{name}.py"]


def parameters(params, stage, dataset, backbone=None, regime=None, seed=None):
    """The values of the profile and the catalogues that a stage reads, by dotted name."""
    spec = profiles.datasets()[dataset].model_dump(
        mode="json",
        include={"name", "layout", "classes", "folder", "splits", "pattern", "table", "phantom", "folds"}
        | ({"release"} if dataset.startswith("phantom") else set()),
    )
    values = {"dataset": spec, "image_size": params.image_size, "seed": params.seed}
    if stage == "datasets":
        return values
    values |= {} if seed is None else {"training_seed": seed}
    values |= {
        "weights": _weights(params.weights_of(backbone), backbone),
        "deduplicate": params.deduplicate,
        "device": params.device,
    }
    values |= {"compile": params.compile, "subset": params.subset.model_dump()}
    values["backbone"] = profiles.backbones()[backbone].model_dump(exclude={"title"})
    values["train"] = params.training(backbone).model_dump()
    if regime == "fp32-continued" or "qat" in (regime or ""):
        values["qat"] = params.quantization(backbone).model_dump()
    if stage not in ("finetune", "datasets"):
        values["calibration"] = params.calibration.model_dump(
            exclude=None if stage == "calibration_size" else {"sizes", "subsets"}
        )
    if stage == "peers":
        values["latency"] = params.latency.model_dump()
    if stage == "ablation":
        values["recipes"] = {
            name: r.model_dump(exclude={"title"})
            for name, r in profiles.recipes().items()
            if params.study.recipes is None or name in ("default", *params.study.recipes)
        }
    return values


def _weights(weights, backbone):
    """`imagenet`, `none`, or what a file of weights holds: replaced under its name, it makes its cells stale."""
    from medq.backbones import weights_file

    try:
        path = weights_file(weights, backbone)
    except UserError:
        return Path(weights).name  # what is not there is refused where it is loaded
    if path is None:
        return weights
    stat = path.stat()
    return f"sha256 {_digest(path, stat.st_mtime_ns, stat.st_size)}"


@cache
def _digest(path, *_):
    return artefacts.sha256(path)


def _timed(params, backbone):
    """The values that a timing depends on; weights and images are not among them: they change no time."""
    return {
        "latency": params.latency.model_dump(),
        "calibration": {"images": params.calibration.images},
        "backbone": profiles.backbones()[backbone].model_dump(exclude={"title"}),
        "device": params.device,
        "regimes": [name for name in params.regimes if name != "fp32"],
    }


def inputs(params, stage, cell, key_of=None):
    """Everything the result of `stage` for `cell` depends on, as a JSON-able mapping.

    `key_of` gives what `made` says of the folder of an earlier stage; without it, what stands there is asked.
    """
    key_of = key_of or _key
    if stage == "latency":
        return json.loads(
            json.dumps(
                {"parameters": _timed(params, cell.backbone), "code": code(stage), "cell": ["", cell.backbone, "", 0]}
            )
        )
    before = upstream(cell) if stage in ("finetune", "quantize") else cell.of("fp32")
    value = {
        "parameters": parameters(params, stage, cell.dataset, cell.backbone, cell.regime, cell.seed),
        "code": code(stage),
        "images": key_of(paths.data_folder(cell.profile, cell.dataset)),
        "cell": [cell.dataset, cell.backbone, cell.regime, cell.fold, *([] if cell.seed is None else [cell.seed])],
    }
    if before is not None and before != cell:
        value["starts from"] = key_of(before.folder)
    return json.loads(json.dumps(value))


def key(value):
    """Hash of `inputs`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _key(folder):
    return made(artefacts.record(folder))


def made(record):
    """What later cells depend on in a finished folder: of images, what was found in them; otherwise the folder's key.

    So that images that are looked at again by other code make no cell stale as long as pixels, folds and twins are the same.
    """
    return (record.get("content") or record.get("key")) if record else None


def changes(stored, current):
    """Which inputs differ, as short phrases: `parameters.train.epochs: 5 → 3`, `code`, …"""
    found = []

    def walk(old, new, name):
        if isinstance(old, dict) and isinstance(new, dict):
            for part in sorted({*old, *new}):
                walk(old.get(part), new.get(part), f"{name}.{part}" if name else part)
        elif old != new:
            short = name.removeprefix("parameters.")
            found.append(short if name in ("code", "images", "starts from") else f"{short}: {old} → {new}")

    walk(stored or {}, current, "")
    return found
