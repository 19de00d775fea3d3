"""A result folder back as the finished cells that it was collected from: without checkpoints, notebooks and logs.

So a grid can be made in several sittings, or on several machines, and only its results kept in between.
"""

import json
from pathlib import Path

import pandas as pd

from medq import artefacts, collect, paths, stages
from medq.errors import UserError

MANIFEST = "manifest.json"


def unpack(results, runs):
    """Write the cells, studies and datasets of the folder `results` below `runs`, each with its completion record.

    They carry no key and no inputs: only a collection can use them. Raises `UserError` where `results` is not a whole
    result folder.
    """
    results, runs = Path(results), Path(runs)
    try:
        provenance = json.loads((results / "provenance.json").read_text(encoding="utf-8"))
        cells = pd.read_csv(results / "cells.csv", dtype=str, keep_default_na=False)
        data, profile = provenance["data"], provenance["profile"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{results}: is not a result folder that can be added to ({type(error).__name__}: {error}); "
                        "collect without --keep, or into another folder.") from None
    manifest = {key: provenance[key] for key in (
        "parameters", "versions", "written", "first_written", "platform", "cpu", "gpu", "commit", "quantized_engines",
        "threads", "machines", "commits") if key in provenance}
    for dataset, known in data.items():
        _dataset(results, runs / dataset / "data", dataset, manifest | known)
    history = _text(results / "history.csv")
    for row in cells[cells["status"] == "failed"].to_dict("records"):
        artefacts.write_json(_place(runs, row) / artefacts.FAILED, {"reason": row["reason"]})
    for row in cells[cells["status"].isin(artefacts.STATUSES)].to_dict("records"):
        sizes = {key: data.get(row["dataset"], {}).get(key) for key in ("n_train", "n_held_out", "fingerprint")}
        _cell(results, runs, row, history, manifest | {key: n for key, n in sizes.items() if n is not None})
    for path in sorted((results / "predictions").glob(f"*/*/{collect.PEERS}/*.parquet")):
        _peer(path, runs)
    for file in collect.STUDIES:
        if (results / file).is_file():
            elsewhere = provenance.get("studied", {}).get(collect.STUDIES[file])
            _studies(results / file, runs, profile, manifest | ({"machines": elsewhere} if elsewhere else {}))


def _dataset(results, folder, dataset, manifest):
    files = {"folds.csv": results / "folds" / f"{dataset}.csv", "audit.csv": results / "audit" / f"{dataset}.csv"}
    found = {name: path for name, path in files.items() if path.is_file()}
    for name, path in found.items():
        artefacts.write_text(folder / name, path.read_text(encoding="utf-8"))
    if len(found) == len(files):
        _finish(folder, [*found], manifest)


def _place(runs, row):
    return runs / row["dataset"] / row["backbone"] / row["regime"] / f"fold{row['fold']}"


def _cell(results, runs, row, history, manifest):
    folder = _place(runs, row)
    files = []
    for name, (suffix, _, _) in collect.VARIANTS.items():
        path = results / "predictions" / row["dataset"] / row["backbone"] / f"{row['regime']}{suffix}.parquet"
        frame = pd.read_parquet(path) if path.is_file() else pd.DataFrame({"fold": []})
        frame = frame[frame["fold"] == int(row["fold"])]
        if len(frame):
            artefacts.write_parquet(folder / name, frame.reset_index(drop=True))
            files.append(name)
    history = history[(history[["dataset", "backbone", "regime", "fold"]] == [
        row[c] for c in ("dataset", "backbone", "regime", "fold")]).all(axis=1)] if len(history) else history
    if len(history):
        artefacts.write_csv(folder / "history.csv", history.drop(columns=["dataset", "backbone", "regime", "fold"]))
        files.append("history.csv")
    facts = {"status": row["status"], "train_seconds": float(row["train_seconds"]), "epochs": int(float(row["epochs"]))}
    facts |= {name: row[name] for name in ("reason", "engine_note") if row[name]}
    if row["engine_agrees"]:
        facts["engine_agrees"] = row["engine_agrees"] == "True"
    _finish(folder, files, manifest, **facts)


def _peer(path, runs):
    """The predictions of another runtime, in the folder of each fold; `_studies` completes it."""
    dataset, backbone = path.parts[-4:-2]
    for fold, frame in pd.read_parquet(path).groupby("fold"):
        folder = runs / dataset / backbone / collect.PEERS / f"fold{fold}"
        artefacts.write_parquet(folder / f"predictions.{path.name}", frame.reset_index(drop=True))


def _studies(path, runs, profile, manifest):
    """Give each study's folder its rows of a table of all."""
    stage = collect.STUDIES[path.name]
    table = pd.read_parquet(path) if path.suffix == ".parquet" else _text(path)
    conditions = {(c["stage"], c["dataset"], c["backbone"], c["fold"] or "0"): {"conditions": c}
                  for c in _text(path.parent / collect.CONDITIONS).to_dict("records")}
    keys = ["backbone"] if stage == "latency" else [c for c in ("dataset", "backbone", "regime", "fold") if c in table]
    for values, rows in table.groupby(keys, sort=False):
        at = {"dataset": "", "regime": "", "fold": "0"} | dict(zip(keys, values))
        folder = stages.folder(stage, paths.Cell(profile, at["dataset"], at["backbone"], at["regime"], at["fold"]))
        folder = runs / folder.relative_to(paths.runs() / profile)
        (artefacts.write_parquet if path.suffix == ".parquet" else artefacts.write_csv)(folder / path.name, rows)
        timed = conditions.get((stage, at["dataset"], at["backbone"], str(at["fold"])), {})
        _finish(folder, sorted(p.name for p in folder.iterdir() if p.name not in (MANIFEST, artefacts.DONE)), manifest | timed)


def _finish(folder, files, manifest, **facts):
    artefacts.write_json(folder / MANIFEST, manifest)
    artefacts.finish(folder, [*files, MANIFEST], **facts)


def _text(path):
    """A table with every entry as it is written, so that it can be written again to the same bytes."""
    return pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else pd.DataFrame()
