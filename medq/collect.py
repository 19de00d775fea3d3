"""The command `medq collect`, and the stage `collect`: finished cells of a batch become the tidy tables of `medq.results`.

A result folder keeps what was computed for each cell: its predictions, its rows of the studies' tables and a record
(`records.json`). Adding a batch to it is a union of cells, from which `medq.aggregate` makes all other tables. Only cells
whose completion record matches their files are taken; what is left out is named, with the reason.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from medq import artefacts, keys, paths, regimes, stages
from medq.errors import UserError, one_of
from medq.results import SCHEMA

RECORDS, CHECKSUMS, TRAINED_ON = "records.json", "checksums.json", "trained_on.csv"
PEER_FILE = re.compile(r"predictions\.([a-z0-9-]+)\.parquet")
SHARED = ("image_size", "weights", "subset", "deduplicate", "seed")  # never mixed within a result folder
NEWEST = "parameters versions platform cpu gpu commit quantized_engines threads".split()  # known of a result folder
RUN = (*NEWEST, "machines", "commits")  # of a manifest: the settings and the machine
FACTS = "written first_written fingerprint n_images n_train n_held_out loaded machine".split()  # of a manifest
OUTCOME = "status reason train_seconds epochs engine_agrees engine_note".split()  # of a completion record
CELL = ("dataset", "backbone", "regime", "fold", "seed")
DIRECTORIES = ("predictions", "folds", "audit", "trained_on")


@dataclass(frozen=True)
class Part:
    """One finished folder of a batch, or what a result folder keeps of it."""

    name: str  # its path below the batch's folder; of a study without the seed, which is the profile's first
    facts: dict  # `FACTS` and `OUTCOME`
    run: dict  # `RUN`: the settings and the machine that made it
    folder: Path | None = None  # where its files are; None for what a result folder keeps
    files: tuple = ()

    @property
    def stage(self):
        """The stage that made it."""
        return stages.stage_of(self.name)

    @property
    def place(self):
        """The `paths.Cell` of its folder; None for images and timings, which belong to no fold."""
        return paths.Cell.at("", self.name) if self.name.count("/") > 2 else None

    @property
    def cell(self):
        """The cell of the grid that it is, or None."""
        return self.place if self.place and self.place.regime in regimes.REGIMES else None

    @property
    def keys(self):
        """What tables call a cell: `CELL`, the seed as text and empty where the profile has one alone."""
        seed = "" if self.cell.seed is None else str(self.cell.seed)
        return {name: getattr(self.cell, name) for name in CELL} | {"seed": seed}

    @property
    def start(self):
        """Name of the cell whose checkpoint a cell starts from, or None."""
        start = regimes.REGIMES[self.cell.regime].start if self.cell else ""
        return str(self.cell.of(start)) if start else None


# --- the command and the stage ----------------------------------------------------------------------------------------


def add_arguments(parser):
    """Arguments of `medq collect`."""
    stays = "folder to write, results/<profile>; what only it holds stays there"
    parser.add_argument("runs", metavar="RUNS", help="folder of a batch, runs/<profile>")
    parser.add_argument("results", metavar="RESULTS", help=stays)
    a_part = "a part of RUNS, e.g. stage=calibration_size,peers dataset=BrainMRI"
    parser.add_argument("--only", nargs="+", metavar="KEY=NAMES", help=a_part)


def run(args):
    """Collect, and print what was left out."""
    only = parse_only(args.only, {"stage": list(stages.STAGES), "dataset": None, "backbone": None})
    for name, reason in collect(args.runs, args.results, only=only).items():
        print(f"left out {name}: {reason}", file=sys.stderr)


def parse_only(words, known):
    """`--only dataset=A,B regime=fp32` as {"dataset": ["A", "B"], …}; `UserError` for what is not in `known`.

    `known`: {key: names, or None for any}.
    """
    only = {}
    for word in words or ():
        key, separator, names = word.partition("=")
        if not separator or not names:
            raise UserError(f"--only {word}: write it as key=name,name with one of the keys {', '.join(known)}.")
        one_of("key of --only", key, list(known))
        only.setdefault(key, []).extend(names.split(","))
        for name in only[key] if known[key] else ():
            one_of(key, name, known[key])
    return only


def stage(params, results=""):
    """The stage `collect`: the batch of `params` into `results` (default: results/<profile>); returns that folder.

    Leaves a completion record, so that a batch knows whether the tables are those of its cells.
    """
    runs = paths.runs() / params.profile
    results = Path(results) if results else paths.RESULTS / params.profile
    folder, key = stages.folder("collect", paths.Cell(params.profile, "", "", "")), state(runs, results)
    left_out = collect(runs, results)
    for name, reason in left_out.items():
        print(f"left out {name}: {reason}")
    artefacts.finish(folder, [], key=key, left_out=left_out)
    return results


def state(runs, results):
    """A hash of all that the tables in `results` depend on: completion and failure records, and the code."""
    digest = hashlib.sha256(f"{Path(results).absolute()} {keys.code('collect')}".encode())
    for path in sorted(path for name in (artefacts.DONE, artefacts.FAILED) for path in Path(runs).rglob(name)):
        if path.parent.name != "collect":
            digest.update(str(path.relative_to(runs)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def collect(runs, results, only=None):
    """Add the finished cells and studies of the batch in `runs` to the folder `results`; returns {what was left out: why}.

    `only` {stage, dataset or backbone: names} takes a part of `runs` alone. What `results` holds and `runs` does not stays;
    what is new and does not fit it (settings, images, FP32 model) is left out. The folder is written beside its place and
    moved there when whole; files in it that are not results (a README) stay.

    A result folder given as both makes its tables again from what it keeps.
    Raises `UserError` where `runs` holds nothing that can be added, or `results` cannot be written, holds `runs` or is damaged.
    """
    runs, results, only = Path(runs), Path(results).absolute(), only or {}
    again = (results / RECORDS).is_file() and runs.resolve() == results.resolve()
    if not runs.is_dir():
        known = ", ".join(sorted(p.name for p in paths.runs().glob("[!.]*"))) or "none"
        raise UserError(f"{runs}: no such folder; batches in {paths.runs()}: {known}.")
    if not again and results.resolve() in (runs.resolve(), *runs.resolve().parents):
        raise UserError(
            f"{results}: holds the batch itself and would be replaced; choose another folder for the tables."
        )
    if results.exists() and not results.is_dir():
        raise UserError(f"{results}: is a file; choose another folder for the tables.")
    finished, left_out, failed = ({}, {}, {}) if again else _finished(runs)
    new, left_out, failed = (_wanted(found, only) for found in (finished, left_out, failed))
    images = {f"{name.split('/')[0]}/data" for name in new}
    new |= {name: part for name, part in finished.items() if name in images}
    if not again:
        _check_some(new, runs, only, left_out)
    with _replacing(results) as folder:
        kept = _kept(results)
        if not again:
            new = _fitting(new, finished, kept, results, failed, left_out)
            if not kept:
                _check_some(new, runs, only, left_out)
        parts = kept | new
        for name, reason in failed.items():
            if name not in kept or kept[name].facts["status"] == "failed":  # else what it gave before is still there
                parts[name] = Part(name, {"status": "failed", "reason": reason}, kept[name].run if name in kept else {})
        parts = {name: parts[name] for name in sorted(parts, key=Path)}
        _write(folder, results, parts)
    n = sum(part.cell is not None and part.facts["status"] != "failed" for part in parts.values())
    others = sum(part.cell is None for part in parts.values())
    print(f"{results}: {n} cells, {others} other parts" + (f", {len(left_out)} left out" if left_out else "") + ".")
    return left_out


def _wanted(found, only):
    """Those of `found` {name of a finished folder: …} that `only` asks for."""
    chosen = {}
    for name, value in found.items():
        parts, stage = name.split("/"), stages.stage_of(name)
        facts = {"stage": stage, "dataset": "" if stage == "latency" else parts[0], "backbone": parts[1]}
        if all(facts[key] in names for key, names in only.items()):
            chosen[name] = value
    return chosen


def _check_some(new, runs, only, left_out):
    """`UserError` where there is nothing to collect."""
    if any(not name.endswith("/data") for name in new):
        return
    why = next((f" ({name}: {reason.rstrip('.')})" for name, reason in left_out.items()), "")
    if only:
        words = " ".join(f"{key}={','.join(names)}" for key, names in only.items())
        raise UserError(f"--only {words}: fits nothing that is finished in {runs}{why}; leave out one of these words.")
    raise UserError(
        f"{runs}: holds no finished cell that can be collected{why}; run `medq batch`, and give runs/<profile>."
    )


# --- parts of a batch and of a result folder --------------------------------------------------------------------------


def _finished(runs):
    """The parts below `runs` by name: ({those finished}, {why others are not or are damaged}, {why cells failed})."""
    found, left_out, failed = {}, {}, {}
    traces = (artefacts.DONE, artefacts.FAILED, "predictions.parquet", "resume.pt")
    for folder in sorted({path.parent for name in traces for path in runs.rglob(name)}):
        name = folder.relative_to(runs).as_posix()
        if stages.stage_of(name) in ("", "collect"):
            continue  # what a study keeps for itself, the record of an earlier collection
        record = artefacts.record(folder)
        wanted = [f for f in (record or {}).get("files", {}) if not f.endswith(".safetensors")]
        manifest, reason = artefacts.read_json(folder / "manifest.json"), artefacts.damage(folder, names=wanted)
        if reason or not manifest:
            noted = (artefacts.failure(folder) or {}).get("reason")
            left_out[name] = noted or reason or "its manifest cannot be read"
            if noted is not None and Part(name, {}, {}).cell:
                failed[name] = noted
            continue
        facts = {key: manifest[key] for key in FACTS if key in manifest}
        facts |= {key: record[key] for key in OUTCOME if record.get(key) not in (None, "")}
        inputs = record.get("inputs", {})
        facts |= {"key": keys.content_key(record)}
        facts |= {key: inputs[key] for key in ("images", "starts from") if inputs.get(key)}
        run = {key: manifest[key] for key in RUN if key in manifest}
        part = Part(name, facts, run, folder, tuple(record["files"]))
        if part.place and not part.cell:  # a study: its model has the seed, its own name does not
            facts["model"] = str(part.place.of("fp32"))
            part = replace(part, name=str(replace(part.place, seed=None)))
        found[part.name] = part
    return found, left_out, failed


def _kept(results):
    """{name: Part} of what a result folder holds; `UserError` where it cannot be added to."""
    if not any((results / name).exists() for name in ("provenance.json", "cells.csv", RECORDS)):
        return {}
    way_out = "so nothing can be added to its folder; collect into another one, or delete this one"
    try:
        file = CHECKSUMS
        sums = json.loads((results / file).read_text(encoding="utf-8")).items()
        for file, digest in sums:
            if artefacts.sha256(results / file) != digest:
                raise UserError(f"{results / file}: does not match its checksum, {way_out}.")
        file = RECORDS
        found = json.loads((results / file).read_text(encoding="utf-8"))
        return {
            name: Part(name, facts, found["runs"][facts.pop("run")] if "run" in facts else {})
            for name, facts in found["parts"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{results / file}: is missing or damaged, {way_out}.") from None


def _fitting(new, finished, kept, results, failed, left_out):
    """Those of `new` that can be in one table with what stays of `kept`; the others go to `left_out`.

    A kept cell that failed in this batch under other settings does not stay: what it gave belongs to the old ones.
    """
    newest = _newest(new.values())
    for name in {*kept} & {*failed} - {*new}:
        if kept[name].run and _differing(kept[name], newest.run["parameters"]):
            del kept[name]
    stays = [part for name, part in kept.items() if name not in new and part.facts["status"] != "failed"]
    stays = [part for part in stays if part.stage != "datasets"]
    cells = [part for part in stays if part.cell] or stays
    standard = (_newest(cells) if cells else newest).run["parameters"]
    where = f"of the cells in {results}" if cells else "of the newest cell"
    models = [name for name, part in kept.items() if part.cell and part.cell.regime == "fp32" and name in finished]
    retrained = {name for name in models if _digest(results, kept[name]) != _digest(results, finished[name])}
    blocked = ({part.start for part in stays} | (retrained - {*new})) & retrained
    datasets, fitting = {part.name.split("/")[0] for part in stays}, {}
    for name, part in new.items():
        dataset = name.split("/")[0]
        data = f"{dataset}/data"
        images = kept[data] if data in kept and dataset in datasets else new.get(data)
        reason = _misfit(part, standard, finished, images, where)
        if not reason and part.cell and {part.start, name} & blocked:
            reason = (
                f"starts from another FP32 model than cells in {results} do; run all of them, or choose another folder"
            )
        if not reason:
            fitting[name] = part
        elif not (name == data and name in kept):  # else its cells are named
            left_out[name] = reason
    return fitting


def _misfit(part, standard, finished, images, where):
    """Why a part does not fit the parameters `standard` and the part `images`, or its own batch today; or an empty string."""
    own = finished.get(f"{part.name.split('/')[0]}/data")
    fingerprint = part.facts.get("fingerprint") or (own and own.facts["fingerprint"])
    if key := _differing(part, standard):
        return f"its {key} is not that {where}; run the batch again, or choose another folder"
    if images and fingerprint and fingerprint != images.facts["fingerprint"]:
        return f"was made from other images than those {where}; run the batch again, or choose another folder"
    if own and own.name != part.name and part.facts.get("images", own.facts["key"]) != own.facts["key"]:
        return "was made from other images; run the batch again"
    if "starts from" in part.facts:
        model = finished.get(part.start or part.facts.get("model"))
        known = model.facts["key"] if model else None if part.cell else part.facts["starts from"]
        if part.facts["starts from"] != known:
            return "starts from an FP32 checkpoint that is no longer there; run the batch again"
    return ""


def _newest(parts):
    """The newest cell of the grid, or the newest of all where there is none."""
    parts = list(parts)
    return max([p for p in parts if p.cell] or parts, key=lambda part: (part.facts["written"], part.name))


def _differing(part, standard):
    """The first setting in which a part differs from `standard` (parameters), of those that concern it; or an empty string."""
    own, parts = part.run["parameters"], part.name.split("/")
    found = [key for key in SHARED if own.get(key) != standard.get(key)]
    if len(parts) > 2:
        row = regimes.REGIMES.get(parts[2].removeprefix(f"{part.stage}-"))  # `diagnosis-qat-fbgemm`: of that cell
        reads = stages.STAGES[part.stage].reads if part.stage else ()
        for key in ("train", "qat") if "qat" in reads or row and row.schedule == "qat" else ("train",):
            both = [(p.get(key), (p.get("overrides") or {}).get(parts[1], {}).get(key)) for p in (own, standard)]
            found += [key] if both[0] != both[1] else []
    return found[0] if found else ""


def _digest(results, part):
    """A digest of a cell's predictions, to the last bit."""
    frame = _predictions(results, part, part.cell.regime, "predictions.parquet")
    return None if frame is None else hashlib.sha256(pd.util.hash_pandas_object(frame, index=False).values).hexdigest()


def _predictions(results, part, stem, file):
    """Predictions of a part: its own `file`, or its rows of `<stem>.parquet` in a result folder; None without any."""
    path = Path(results, "predictions", *part.name.split("/")[:2], f"{stem}.parquet")
    if part.folder:
        return pd.read_parquet(part.folder / file) if file in part.files else None
    if not path.is_file():
        return None
    frame = pd.read_parquet(path)
    frame = frame[frame["fold"] == part.place.fold]
    if "seed" in frame:
        frame = frame[frame["seed"] == part.place.seed].drop(columns="seed")
    return frame.reset_index(drop=True) if len(frame) else None


def _read(path):
    """A table; CSV as text, so that it keeps every digit."""
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str, keep_default_na=False)


# --- writing ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _replacing(results):
    """Yield a folder that then takes the place of `results`, with those of its files that no collection writes.

    Where an earlier collection was killed while its folder took this place, the tables of before are restored first.
    """
    ours = re.compile(re.escape(f".{results.name}.") + r"[a-z0-9_]{8}\.old")  # as they are made below
    try:
        results.parent.mkdir(parents=True, exist_ok=True)
        for folder in sorted(path for path in results.parent.iterdir() if ours.fullmatch(path.name)):
            if not results.exists() and (folder / "results").is_dir():
                os.rename(folder / "results", results)
            shutil.rmtree(folder, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{results.name}.", suffix=".part", dir=results.parent))
    except OSError as error:
        raise UserError(
            f"{results}: cannot be written ({error.strerror}); choose another folder for the tables."
        ) from None
    try:
        new = scratch / "new"
        yield new
        if results.is_dir():
            written = {path.name for path in new.iterdir()} | {*DIRECTORIES, *SCHEMA}
            for path in results.iterdir():
                if path.name not in written:
                    (shutil.copytree if path.is_dir() else shutil.copy2)(path, new / path.name)
            old = Path(tempfile.mkdtemp(prefix=f".{results.name}.", suffix=".old", dir=results.parent))
            os.rename(results, old / "results")
            os.rename(new, results)
            shutil.rmtree(old)
        else:
            os.rename(new, results)
        results.chmod(0o755)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(folder, results, parts):
    """Every file of a result folder: what is kept of each part, then the tables made of them."""
    from medq import aggregate

    newest = _newest([part for part in parts.values() if part.run and part.facts["status"] != "failed"])
    parameters = newest.run["parameters"]
    models, peers = _write_predictions(folder, results, parts)
    folds, audits, trained = _write_datasets(folder, results, parts)
    intervals, differences = aggregate.resampled(models, folds, audits, parameters)
    peer_rows = aggregate.peer_differences(peers, folds, audits, parameters)
    silent, flips = aggregate.decisions(models)
    tables = {
        "cells.csv": _cells(parts),
        "metrics.csv": aggregate.metric_table(models),
        "intervals.csv": intervals,
        "bootstrap.csv": pd.concat([differences, peer_rows], ignore_index=True),
        "silent.csv": silent,
        "flips.csv": flips,
        "leak.csv": aggregate.leak(models, audits, trained),
    }
    for name in ("history.csv", "conditions.csv", *stages.TABLES):
        tables[name] = _union(name, results, parts, parameters)
    for name, frame in tables.items():
        if len(frame) or name == "cells.csv":
            frame = frame.reindex(columns=[*SCHEMA[name], *(c for c in ("seed", "seed_std") if c in frame)])
            (artefacts.write_parquet if name.endswith(".parquet") else artefacts.write_csv)(folder / name, frame)
    artefacts.write_json(folder / "provenance.json", _provenance(newest, parts))
    runs = []
    for part in parts.values():
        runs += [part.run] if part.run and part.run not in runs else []
    records = {name: part.facts | ({"run": runs.index(part.run)} if part.run else {}) for name, part in parts.items()}
    artefacts.write_json(folder / RECORDS, {"runs": runs, "parts": records})
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    artefacts.write_json(folder / CHECKSUMS, {p.relative_to(folder).as_posix(): artefacts.sha256(p) for p in files})


def _write_predictions(folder, results, parts):
    """Write the predictions of all cells and of other runtimes; returns both as `medq.aggregate` takes them."""
    from medq import aggregate

    found = {}  # {(dataset, backbone, stem of the file): tables of folds and seeds}
    for part in parts.values():
        dataset, backbone, kind = (part.name.split("/") + ["", ""])[:3]
        files = {f"{kind}{suffix}": f"predictions{suffix}.parquet" for suffix in aggregate.VARIANTS if part.cell}
        if kind == "peers":
            own = [match[1] for match in map(PEER_FILE.fullmatch, part.files) if match]
            kept = sorted((results / "predictions" / dataset / backbone / "peers").glob("*.parquet"))
            runtimes = own if part.folder else [path.stem for path in kept]
            files = {f"peers/{runtime}": f"predictions.{runtime}.parquet" for runtime in runtimes}
        for stem, file in files.items():
            frame = _predictions(results, part, stem, file)
            if frame is not None:
                if part.place.seed is not None:
                    frame.insert(frame.columns.get_loc("fold") + 1, "seed", part.place.seed)
                found.setdefault((dataset, backbone, stem), []).append(frame)
    models, peers = {}, {}
    for (dataset, backbone, stem), tables in found.items():
        whole = pd.concat(tables).sort_values("fold", kind="stable", ignore_index=True)
        artefacts.write_parquet(folder / "predictions" / dataset / backbone / f"{stem}.parquet", whole)
        kind, _, runtime = stem.partition("/")
        regime, dot, variant = kind.partition(".")
        if runtime:
            peers[dataset, backbone, runtime] = whole
        else:
            models[dataset, backbone, regime, dot + variant] = whole
    return models, dict(sorted(peers.items()))


def _write_datasets(folder, results, parts):
    """Write folds, audits and ids of training images; returns ({dataset: folds}, {dataset: audit}, {(dataset, fold): ids})."""
    tables, trained = {"folds": {}, "audit": {}}, {}
    for part in [part for part in parts.values() if part.stage == "datasets"]:
        dataset = part.name.split("/")[0]
        for kind, found in tables.items():
            source = part.folder / f"{kind}.csv" if part.folder else results / kind / f"{dataset}.csv"
            (folder / kind).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / kind / f"{dataset}.csv")
            found[dataset] = pd.read_csv(source, dtype={"image_id": str, "group": str}, keep_default_na=False)
        cells = [p for p in parts.values() if p.cell and p.cell.dataset == dataset]
        path = results / "trained_on" / f"{dataset}.csv"
        seen = {int(fold): rows for fold, rows in _read(path).groupby("fold")} if path.is_file() else {}
        seen |= {c.cell.fold: _read(c.folder / TRAINED_ON) for c in cells if TRAINED_ON in c.files}
        if seen:
            table = pd.concat([seen[fold].assign(fold=fold) for fold in sorted(seen)])[["fold", "image_id"]]
            artefacts.write_csv(folder / "trained_on" / f"{dataset}.csv", table)
        trained |= {(dataset, fold): set(rows["image_id"]) for fold, rows in seen.items()}
    return tables["folds"], tables["audit"], trained


def _cells(parts):
    from medq.aggregate import without_empty_seed

    rows = []
    for part in [part for part in parts.values() if part.cell]:
        facts = part.facts
        row = part.keys | {"status": facts["status"]}
        if facts["status"] != "failed":
            row |= {"train_seconds": float(facts.get("train_seconds", 0)), "epochs": float(facts.get("epochs", 0))}
        row |= {key: str(facts[key]) for key in ("reason", "engine_agrees", "engine_note") if key in facts}
        rows.append(row)
    frame = pd.DataFrame(rows, columns=[*SCHEMA["cells.csv"], "seed"])
    if frame["epochs"].notna().all():
        frame["epochs"] = frame["epochs"].astype(int)
    return without_empty_seed(frame.sort_values(list(CELL), ignore_index=True))


def _union(name, results, parts, parameters):
    """A table of all parts: rows that `results` keeps of parts that stay, and those of the new ones."""
    from medq.aggregate import without_empty_seed

    stage, tables = stages.TABLES.get(name, ""), {}
    if (results / name).is_file():
        old = _read(results / name)
        keys = [c for c in ("stage", *CELL) if c in old]
        for values, rows in old.groupby(keys, sort=False):
            tables.setdefault(_name_of(stage, dict(zip(keys, values))), []).append(rows)
    for part in parts.values():
        if part.folder:
            rows = _rows_of(name, stage, part)
            tables[part.name] = [] if rows is None else [rows]
    found = [rows for part in parts for rows in tables.get(part, []) if len(rows)]
    if not found:
        return pd.DataFrame()
    frame = pd.concat(found, ignore_index=True)
    if name == "history.csv":
        return without_empty_seed(frame.fillna({"seed": ""}))
    by = ["stage", "dataset", "backbone", "fold"] if "stage" in frame else ["dataset", "backbone", "regime"]
    order = {n: k for key in ("datasets", "backbones") for k, n in enumerate(parameters.get(key, []))}
    order |= {n: k for k, n in enumerate(regimes.REGIMES)}
    return frame.sort_values(
        [c for c in by if c in frame],
        key=lambda column: column.map(lambda n: (order.get(n, len(order)), str(n))),
        kind="stable",
        ignore_index=True,
    )


def _rows_of(name, stage, part):
    """What a new part adds to a table, or None."""
    if name == "conditions.csv":
        return pd.DataFrame([_condition(part)]) if "machine" in part.facts else None
    if name not in part.files or not (stage or part.cell):
        return None
    rows = _read(part.folder / name)
    if not stage:
        return rows.assign(**part.keys)
    return rows.assign(fold=part.place.fold) if "fold" in SCHEMA[name] and "fold" not in rows else rows


def _name_of(stage, at):
    """Name of the part that rows of a table belong to; `at`: their keys."""
    stage, seed = at.get("stage", stage), int(at["seed"]) if at.get("seed") else None
    cell = paths.Cell("", at.get("dataset", ""), at["backbone"], at.get("regime", ""), int(at.get("fold") or 0), seed)
    return stages.folder(stage, cell).relative_to(paths.runs()).as_posix() if stage else str(cell)


def _condition(part):
    parts, machine, cpu = part.name.split("/"), part.facts["machine"], part.run.get("cpu") or {}
    alone = part.stage == "latency"  # of datasets and folds
    row = {
        "stage": part.stage,
        "dataset": "" if alone else parts[0],
        "backbone": parts[1],
        "fold": "" if alone else part.place.fold,
        "cores": " ".join(map(str, machine.get("cores") or [])),
        "cpu": cpu.get("model"),
        "instructions": " ".join(cpu.get("instructions", [])),
        "commit": (part.run.get("commit") or {}).get("hash"),
        "written": part.facts["written"],
    }
    row |= {key: machine.get(key) for key in ("governor", "threads", "interop_threads", "others", "seconds")}
    loads = [key for key in ("load_before", "load_after") if machine.get(key)]
    row |= {key: f"{machine[key][0]:.2f}" for key in loads}  # of the last minute
    return {key: "" if value is None else str(value) for key, value in row.items()}


def _provenance(newest, parts):
    """What `Results.banner` reads: facts of the newest cell, of each dataset, and of studies from elsewhere."""
    from medq import params

    made = [part for part in parts.values() if part.run]
    cells = [part for part in made if part.cell]
    known, data = params.datasets(), {}
    for part in [part for part in made if part.stage == "datasets"]:
        dataset = part.name.split("/")[0]
        ours = [c.facts for c in cells if c.cell.dataset == dataset]
        release = known[dataset].release if dataset in known else {}
        data[dataset] = {key: part.facts.get(key) for key in ("fingerprint", "n_images")}
        data[dataset]["n_release"] = sum(sum(of.values()) for of in release.values()) or None
        data[dataset] |= {k: max((f[k] for f in ours if k in f), default=None) for k in ("n_train", "n_held_out")}
    machines = _machines(cells or made)
    studied = {stage: _machines([p for p in made if p.stage == stage]) for stage in sorted({*stages.TABLES.values()})}
    commits = {h for p in made for h in p.run.get("commits", [(p.run.get("commit") or {}).get("hash")])} - {None}
    loaded = {c.cell.backbone: c.facts.get("loaded") or {} for c in cells if c.cell.regime == "fp32"}
    weights = {backbone: facts for backbone, facts in sorted(loaded.items()) if "sha256" in facts}
    parameters = newest.run["parameters"]
    return {
        **{key: newest.run.get(key) for key in NEWEST},
        "written": newest.facts["written"],
        "profile": parameters["profile"],
        "data": data,
        "seeds": parameters.get("seeds") or [parameters["seed"]],
        "commits": sorted(commits),
        "first_written": min(p.facts.get("first_written", p.facts["written"]) for p in made if "written" in p.facts),
        "machines": machines,
        "studied": {stage: found for stage, found in studied.items() if found and found != machines},
        **({"weights": weights} if weights else {}),
        "train_hours": round(sum(c.facts.get("train_seconds", 0) for c in cells) / 3600, 3),
    }


def _machines(parts):
    """[{cpu, gpu}] of the machines that made these parts."""
    found = {
        json.dumps(machine, sort_keys=True)
        for part in parts
        for machine in part.run.get("machines", [{"cpu": part.run.get("cpu"), "gpu": part.run.get("gpu")}])
    }
    return [json.loads(machine) for machine in sorted(found)]
