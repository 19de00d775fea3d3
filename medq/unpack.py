"""A result folder back as the finished cells that it was collected from: without checkpoints, notebooks and logs.

So a grid can be made in several sittings, or on several machines, and only its results kept in between.
"""

from pathlib import Path

import pandas as pd

from medq import artefacts, collect, metrics, paths, stages
from medq.errors import UserError
from medq.results import AGAIN, PREDICTION_COLUMNS, SCHEMA, Results, read_table

MANIFEST = "manifest.json"
FACTS = (
    "profile",
    "written",
    "data",
    "parameters",
    "parameters.profile",
    "parameters.seed",
    "parameters.subset",
    "parameters.bootstrap.resamples",
)  # of provenance.json, that a collection needs
AUDIT_COLUMNS = ("image_id", "group_id", "kind")
WITHOUT = "collect into another folder, or delete this one"


def unpack(results, runs):
    """Write the cells, studies and datasets of the folder `results` below `runs`, each with its completion record.

    They carry no key and no inputs: only a collection can use them. Raises `UserError` naming the file, before anything is
    written, where `results` is not a whole result folder: what one file of it lacks would be gone from all.
    """
    results, runs = Path(results), Path(runs)
    try:
        provenance, cells = _whole(results)
    except UserError as error:
        raise UserError(str(error).replace(AGAIN, WITHOUT)) from None
    data, profile = provenance["data"], provenance["profile"]
    manifest = {
        key: provenance[key]
        for key in (
            "parameters",
            "versions",
            "written",
            "first_written",
            "platform",
            "cpu",
            "gpu",
            "commit",
            "quantized_engines",
            "threads",
            "machines",
            "commits",
        )
        if key in provenance
    }
    for dataset, known in data.items():
        _dataset(results, runs / dataset / "data", dataset, manifest | known)
    history = _text(results / "history.csv")
    for row in cells[cells["status"] == "failed"].to_dict("records"):
        artefacts.write_json(_place(runs, row) / artefacts.FAILED, {"reason": row["reason"]})
    for row in cells[cells["status"].isin(artefacts.STATUSES)].to_dict("records"):
        sizes = {key: data.get(row["dataset"], {}).get(key) for key in ("n_train", "n_held_out", "fingerprint")}
        loaded = provenance.get("weights", {}).get(row["backbone"])
        facts = {key: n for key, n in (sizes | {"loaded": loaded}).items() if n is not None}
        _cell(results, runs, row, history, manifest | facts)
    for path in sorted((results / "predictions").glob(f"*/*/{collect.PEERS}/*.parquet")):
        _peer(path, runs, manifest)
    for file in collect.STUDIES:
        if (results / file).is_file():
            elsewhere = provenance.get("studied", {}).get(collect.STUDIES[file])
            _studies(results / file, runs, profile, manifest | ({"machines": elsewhere} if elsewhere else {}))


def _whole(results):
    """(provenance, cells as text) of a result folder whose files can all be read and hold the same datasets and cells."""
    found = Results(results.name, results)
    provenance = found.provenance
    lacking = next((key for key in FACTS if _fact(provenance, key) is None), None)
    if lacking:
        _refuse(results / "provenance.json", f"it lacks {lacking}")
    cells = read_table(results / "cells.csv", SCHEMA["cells.csv"], dtype=str, keep_default_na=False)
    for file in SCHEMA:
        getattr(found, file.split(".")[0])
        if file in provenance.get("rows", {}) and not (results / file).is_file():
            _refuse(results / file, "it is missing")
    finished = cells["status"].isin(artefacts.STATUSES)
    wrong = (
        ~(finished | cells["status"].eq("failed"))
        | ~cells["regime"].isin(collect.REGIMES)
        | ~cells["fold"].str.fullmatch(r"\d+")
        | finished & found.cells[["train_seconds", "epochs"]].isna().any(axis=1)
    )
    if wrong.any():
        _refuse(results / "cells.csv", f"its row {wrong.to_numpy().argmax() + 1} is damaged")
    images = _check_datasets(found, provenance["data"])
    _check_predictions(found, cells, images)
    return provenance, cells


def _fact(value, key):
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _refuse(path, why):
    why = why if path.is_file() else "it is missing"
    raise UserError(f"{path}: is not part of a result folder that can be added to ({why}); {WITHOUT}.")


def _check_datasets(found, data):
    """{dataset: ids of its images}; refuses a folder that lacks a part of a dataset."""
    images = {}
    here = {path.stem for name in ("folds", "audit") for path in (found.path / name).glob("*.csv")}
    for dataset in sorted({*data, *here}):
        for name in ("folds", "audit"):
            if not (found.path / name / f"{dataset}.csv").is_file():
                _refuse(found.path / name / f"{dataset}.csv", "it is missing")
        if not {"fingerprint", "n_images"} <= {*data.get(dataset, ())}:
            _refuse(found.path / "provenance.json", f"its data lacks {dataset}, or facts of it")
        read_table(found.path / "audit" / f"{dataset}.csv", AUDIT_COLUMNS)
        images[dataset] = set(found.folds(dataset)["image_id"])
    return images


def _check_predictions(found, cells, images):
    """Refuse a folder whose cells, numbers and predictions are not of the same cells and runtimes."""
    stored, measured = _stored(found, images), _measured(found)
    status = cells.set_index(["dataset", "backbone", "regime", "fold"])["status"]
    done, finished = ({*status.index[status.isin(states)]} for states in (["done"], artefacts.STATUSES))
    of_cells = {
        (dataset, backbone, name.split(".")[0], fold) for dataset, backbone, name, fold in stored if "/" not in name
    }
    for lacking, file in (
        ((measured | done) - stored, "predictions/{}/{}/{}.parquet"),
        (of_cells - finished, "cells.csv"),
        (stored - measured, "metrics.csv"),
    ):
        for dataset, backbone, name, fold in sorted(lacking)[:1]:
            file = "peers.csv" if file == "metrics.csv" and "/" in name else file.format(dataset, backbone, name)
            _refuse(
                found.path / file, f"it lacks fold {fold} of {dataset}/{backbone}/{name}, which other files there hold"
            )


def _stored(found, images):
    """{(dataset, backbone, name of the file, fold)} of all predictions, peers' as `peers/<runtime>`."""
    stored = set()
    for path in sorted((found.path / "predictions").glob("*/*/**/*.parquet")):
        dataset, backbone, name = path.relative_to(found.path / "predictions").with_suffix("").as_posix().split("/", 2)
        frame = read_table(path, PREDICTION_COLUMNS)
        try:
            metrics.validate(*collect._arrays(frame)[:2])
        except ValueError as error:
            _refuse(path, str(error).rstrip("."))
        if dataset in images and not images[dataset].issuperset(frame["image_id"]):
            _refuse(found.path / "folds" / f"{dataset}.csv", f"it lacks images that {path} holds")
        stored |= {(dataset, backbone, name, str(fold)) for fold in frame["fold"].unique()}
    return stored


def _measured(found):
    """What metrics.csv and peers.csv hold numbers of, named as in `_stored`."""
    suffixes = {(recipe, form): suffix for suffix, recipe, form in collect.VARIANTS.values()}
    cells = found.metrics[["dataset", "backbone", "regime", "recipe", "form", "fold"]].drop_duplicates()
    peers = found.peers[["dataset", "backbone", "runtime", "precision", "fold"]].drop_duplicates()
    return {
        (dataset, backbone, regime + suffixes.get((recipe, form), ""), fold)
        for dataset, backbone, regime, recipe, form, fold in cells.to_numpy()
        if fold != "pooled"
    } | {
        (dataset, backbone, f"{collect.PEERS}/{runtime}-{precision}", fold)
        for dataset, backbone, runtime, precision, fold in peers.to_numpy()
    }


def _dataset(results, folder, dataset, manifest):
    for name in ("folds", "audit"):
        artefacts.write_text(folder / f"{name}.csv", (results / name / f"{dataset}.csv").read_text(encoding="utf-8"))
    _finish(folder, ["folds.csv", "audit.csv"], manifest)


def _place(runs, row):
    place = paths.Cell("", row["dataset"], row["backbone"], row["regime"], row["fold"], row.get("seed") or None).place
    return runs / row["dataset"] / row["backbone"] / row["regime"] / place


def _first_seed(manifest, backbone):
    """The seed that studies of a backbone are made for, None where the profile has one alone."""
    parameters = manifest["parameters"]
    own = ((parameters.get("overrides") or {}).get(backbone) or {}).get("seeds")
    return (own or parameters.get("seeds") or [None])[0]


def _cell(results, runs, row, history, manifest):
    folder = _place(runs, row)
    files = []
    for name, (suffix, _, _) in collect.VARIANTS.items():
        path = results / "predictions" / row["dataset"] / row["backbone"] / f"{row['regime']}{suffix}.parquet"
        frame = pd.read_parquet(path) if path.is_file() else pd.DataFrame({"fold": []})
        frame = frame[frame["fold"] == int(row["fold"])]
        frame = frame[frame["seed"] == int(row["seed"])].drop(columns="seed") if "seed" in frame else frame
        if len(frame):
            artefacts.write_parquet(folder / name, frame.reset_index(drop=True))
            files.append(name)
    keys = [key for key in ("dataset", "backbone", "regime", "fold", "seed") if key in history]
    if keys:
        history = history[(history[keys] == [row[key] for key in keys]).all(axis=1)]
    if len(history):
        artefacts.write_csv(folder / "history.csv", history.drop(columns=keys))
        files.append("history.csv")
    facts = {"status": row["status"], "train_seconds": float(row["train_seconds"]), "epochs": int(float(row["epochs"]))}
    facts |= {name: row[name] for name in ("reason", "engine_note") if row[name]}
    if row["engine_agrees"]:
        facts["engine_agrees"] = row["engine_agrees"] == "True"
    _finish(folder, files, manifest, **facts)


def _peer(path, runs, manifest):
    """The predictions of another runtime, in the folder of each fold; `_studies` completes it."""
    dataset, backbone = path.parts[-4:-2]
    for fold, frame in pd.read_parquet(path).groupby("fold"):
        folder = _place(
            runs,
            {"dataset": dataset, "backbone": backbone, "regime": collect.PEERS, "fold": fold}
            | {"seed": _first_seed(manifest, backbone)},
        )
        artefacts.write_parquet(folder / f"predictions.{path.name}", frame.reset_index(drop=True))


def _studies(path, runs, profile, manifest):
    """Give each study's folder its rows of a table of all."""
    stage = collect.STUDIES[path.name]
    table = pd.read_parquet(path) if path.suffix == ".parquet" else _text(path)
    conditions = {
        (c["stage"], c["dataset"], c["backbone"], c["fold"] or "0"): {"conditions": c}
        for c in _text(path.parent / collect.CONDITIONS).to_dict("records")
    }
    keys = ["backbone"] if stage == "latency" else [c for c in ("dataset", "backbone", "regime", "fold") if c in table]
    for values, rows in table.groupby(keys, sort=False):
        at = {"dataset": "", "regime": "", "fold": "0"} | dict(zip(keys, values))
        seed = _first_seed(manifest, at["backbone"])
        cell = paths.Cell(profile, at["dataset"], at["backbone"], at["regime"], at["fold"], seed)
        folder = stages.folder(stage, cell)
        folder = runs / folder.relative_to(paths.runs() / profile)
        (artefacts.write_parquet if path.suffix == ".parquet" else artefacts.write_csv)(folder / path.name, rows)
        timed = conditions.get((stage, at["dataset"], at["backbone"], str(at["fold"])), {})
        _finish(
            folder,
            sorted(p.name for p in folder.iterdir() if p.name not in (MANIFEST, artefacts.DONE)),
            manifest | timed,
        )


def _finish(folder, files, manifest, **facts):
    artefacts.write_json(folder / MANIFEST, manifest)
    artefacts.finish(folder, [*files, MANIFEST], **facts)


def _text(path):
    """A table with every entry as it is written, so that it can be written again to the same bytes."""
    return read_table(path, dtype=str, keep_default_na=False) if path.is_file() else pd.DataFrame()
