"""The command `medq collect`, and the stage `collect`: finished cells of a batch become the tidy tables of `medq.results`.

Only cells whose completion record matches their files are taken; what is left out is said, with the reason. The tables
are a function of the cells alone: collecting twice gives the same bytes, whatever the profile file says by now.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from medq import artefacts, paths, regimes, stages
from medq.errors import UserError

REGIMES = tuple(regimes.REGIMES)
VARIANTS = {  # file of a cell: (what the result's file is called after, recipe, form; None: float or converted)
    "predictions.parquet": ("", "default", None),
    "predictions.fake-quant.parquet": (".fake-quant", "default", "fake-quant"),
    "predictions.mended.parquet": (".mended", "mended", "converted"),
}
STUDIES = stages.TABLES  # what study cells write as it stands in results/: the stage that makes it
PEERS, CONDITIONS = "peers", "conditions.csv"
PEER_FILE = re.compile(r"predictions\.([a-z0-9-]+)\.parquet")
PART = re.compile(
    r"[^/]+/data|latency/[^/]+|[^/]+/[^/]+/[^/]+/(seed\d+/)?fold\d+"
)  # what a batch writes, by its path there
SHARED = ("image_size", "weights", "subset", "deduplicate", "seed")  # never mixed within a result folder
PAIRS = regimes.pairs()
SIMULATED = ".fake-quant"  # behind the name of a regime: its fake-quantized form, among the methods of bootstrap.csv
COMPARED = (
    *PAIRS,
    *(tuple(r + SIMULATED * (r in regimes.INT8) for r in pair) for pair in PAIRS if set(pair) & set(regimes.INT8)),
    *((regime + SIMULATED, regime) for regime in regimes.INT8),
)
LEAK = ("auroc", "auprc", "ece", "ece_top_label", "brier", "accuracy")


@dataclass(frozen=True)
class Taken:
    """One finished folder of a batch."""

    folder: Path
    name: str  # its path below the batch's folder
    record: dict
    manifest: dict

    @property
    def cell(self):
        """(dataset, backbone, regime, fold), of what is a cell of the grid."""
        dataset, backbone, regime, *_, fold = self.name.split("/")
        return dataset, backbone, regime, int(fold.removeprefix("fold"))

    @property
    def seed(self):
        """The training seed as text; empty where the profile has one alone."""
        return _seed(self.name)


def _seed(name):
    found = re.search(r"/seed(\d+)/", name)
    return found[1] if found else ""


def add_arguments(parser):
    """Arguments of `medq collect`."""
    parser.add_argument("runs", metavar="RUNS", help="folder of a batch, runs/<profile>")
    parser.add_argument(
        "results", metavar="RESULTS", help="folder to write, results/<profile>; what only it holds stays there"
    )
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)  # the default since results are added to
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="KEY=NAMES",
        help="a part of RUNS, e.g. stage=calibration_size,peers dataset=BrainMRI",
    )


def run(args):
    """Collect, and say what was taken and what was left out."""
    from medq.batch import parse_only

    only = parse_only(args.only, {"stage": list(stages.STAGES), "dataset": None, "backbone": None})
    left_out = collect(args.runs, args.results, only=only)
    for name, reason in left_out.items():
        print(f"left out {name}: {reason}", file=sys.stderr)


def _wanted(name, only):
    """Whether `only` asks for the finished folder `name`."""
    parts = name.split("/")
    stage = stages.stage_of(name)
    facts = {"stage": stage, "dataset": "" if stage == "latency" else parts[0], "backbone": parts[1]}
    return all(facts[key] in names for key, names in only.items())


def _chosen(taken, only):
    """Those of `taken` that `only` asks for, and the images that they were made from."""
    found = [t for t in taken if _wanted(t.name, only)]
    images = {f"{t.name.split('/')[0]}/data" for t in found}
    return found + [t for t in taken if t.name in images and t not in found]


def collect(runs, results, only=None):
    """Write the result folder `results` from the batch in `runs`; returns {what was left out: why}.

    `only` {stage, dataset or backbone: names} takes a part of `runs` alone.

    The folder is written beside its place and moved there when whole; files in it that are not results (a README) stay.
    Cells and studies of `results` that are not in `runs` stay, too: a grid can be made in several sittings. What is new and
    does not fit them (other settings, images or FP32 model) is left out.
    Raises `UserError` where `runs` holds no finished cell, or `results` cannot be written, holds `runs` or is damaged.
    """
    runs, results = Path(runs), Path(results).absolute()
    if not runs.is_dir():
        known = ", ".join(sorted(p.name for p in paths.runs().glob("[!.]*"))) or "none"
        raise UserError(f"{runs}: no such folder; batches in {paths.runs()}: {known}.")
    left_out = {}
    finished = _finished(runs, left_out)
    taken = _chosen(finished, only) if only else finished
    for name in [name for name in left_out if only and not _wanted(name, only)]:
        del left_out[name]
    _check_some(taken, runs, only, left_out)
    if results.resolve() in (runs.resolve(), *runs.resolve().parents):
        raise UserError(
            f"{results}: holds the batch itself and would be replaced; choose another folder for the tables."
        )
    if results.exists() and not results.is_dir():
        raise UserError(f"{results}: is a file; choose another folder for the tables.")
    try:
        results.parent.mkdir(parents=True, exist_ok=True)
        _recover(results)
        scratch = Path(tempfile.mkdtemp(prefix=f".{results.name}.", suffix=".part", dir=results.parent))
    except OSError as error:
        raise UserError(
            f"{results}: cannot be written ({error.strerror}); choose another folder for the tables."
        ) from None
    try:
        standard, failed = (
            None,
            {name: failure.get("reason", "") for name in left_out if (failure := _failure(runs / name))},
        )
        if (results / "provenance.json").exists() or (results / "cells.csv").exists():
            taken, standard = _with_earlier(results, scratch, taken, finished, left_out, failed)
            _check_some(taken, runs, only, left_out)
        standard = standard or _newest(taken)
        keys = {t.name: stages.content_key(t.record) for t in [*taken, *finished]}
        kept = [t for t in taken if scratch in t.folder.parents]
        taken = kept + _consistent([t for t in taken if t not in kept], standard, keys, left_out, images=taken)
        taken = sorted(taken, key=lambda t: Path(t.name))
        _check_some(taken, runs, only, left_out)
        cells = [t for t in taken if _is_cell(t)]
        _write(scratch / "new", standard, taken, cells, failed)
        _replace(results, scratch / "new")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(
        f"{results}: {len(cells)} cells, {len(taken) - len(cells)} other parts"
        + (f", {len(left_out)} left out" if left_out else "")
        + "."
    )
    return left_out


def _check_some(taken, runs, only, left_out):
    """`UserError` where there is nothing to collect."""
    if any(t for t in taken if not t.name.endswith("/data")):
        return
    why = next((f" ({name}: {reason.rstrip('.')})" for name, reason in left_out.items()), "")
    if only:
        words = " ".join(f"{key}={','.join(names)}" for key, names in only.items())
        raise UserError(f"--only {words}: fits nothing that is finished in {runs}{why}; leave out one of these words.")
    raise UserError(f"{runs}: holds no finished cell yet{why}; run `medq batch` first, and give runs/<profile>.")


def _newest(taken):
    """The manifest of the newest cell of the grid, or of whatever is newest where there is none."""
    return max([t for t in taken if _is_cell(t)] or taken, key=lambda t: (t.manifest["written"], t.name)).manifest


def _with_earlier(results, scratch, taken, finished, left_out, failed):
    """(`taken` and what stands in `results` beside it, written out below `scratch`; the manifest that sets the standard, or None).

    A result that was not made again is never removed: what is new and does not fit it (settings, images, or the FP32 model
    that both start from) is left out. `failed` {name: reason} gets what had failed then.
    """
    from medq.unpack import unpack

    unpack(results, scratch / "earlier")
    lost = {}
    earlier, ours = ({t.name: t for t in side} for side in (_finished(scratch / "earlier", lost), finished))
    new = {t.name for t in taken}
    failed |= {name: reason for name, reason in lost.items() if name not in {*new, *left_out}}
    for name in earlier:
        left_out.pop(name, None), failed.pop(name, None)
    images = {name: t.manifest.get("fingerprint") for name, t in earlier.items() if name.endswith("/data")}
    staying = [t for name, t in earlier.items() if name not in new and not name.endswith("/data")]
    datasets = {t.name.split("/")[0] for t in staying}
    other = {
        t.name
        for t in taken
        if t.name.split("/")[0] in datasets
        and t.manifest.get("fingerprint") != images.get(t.name, t.manifest.get("fingerprint"))
    }
    retrained = {
        name
        for name in {*ours} & {*earlier}
        if name.split("/")[2:3] == ["fp32"] and not _same_predictions(ours[name], earlier[name])
    }
    standing = [t for t in staying if _is_cell(t)] or staying
    blocked = {_start(t) for t in standing} & retrained  # models that cells start from which were not made again
    blocked |= {name for name in retrained if name not in new}
    standard = _newest(standing) if standing else None
    for t in taken:
        before = _start(t)
        if t.name in other or f"{t.name.split('/')[0]}/data" in other:
            left_out[t.name] = f"was made from other images than those of {results}; run all of the dataset again"
        elif standard and _differing(t, standard["parameters"]):
            key = _differing(t, standard["parameters"])[0]
            left_out[t.name] = f"its {key} is not that of the cells in {results}; choose another folder"
        elif _is_cell(t) and (before in blocked or t.name in blocked):
            left_out[t.name] = (
                f"starts from another FP32 model than cells of {results} do: run or collect all of them, or choose another folder"
            )
    added = [t for t in taken if t.name not in left_out]
    kept = [t for name, t in earlier.items() if name not in {t.name for t in added}]
    for name in other:
        left_out.pop(name, None)
    return [*kept, *added], standard


def _start(taken):
    """Name of the FP32 cell that a cell starts from, or None."""
    parts = taken.name.split("/")
    return "/".join([*parts[:2], "fp32", *parts[3:]]) if _is_cell(taken) and parts[2] not in ("fp32", "fp16") else None


def _same_predictions(a, b):
    """Whether two cells predict the same, to the last bit."""
    import pandas as pd

    one, other = (
        pd.read_parquet(t.folder / "predictions.parquet") if "predictions.parquet" in t.record["files"] else None
        for t in (a, b)
    )
    return one is None and other is None or one is not None and other is not None and one.equals(other)


def stage(params, results=""):
    """The stage `collect`: the batch of `params` into `results` (default: results/<profile>); returns that folder.

    Leaves a completion record, so that a batch knows whether the tables are those of its cells.
    """
    runs = paths.runs() / params.profile
    results = Path(results) if results else paths.RESULTS / params.profile
    folder, key = stages.folder("collect", paths.Cell(params.profile, "", "", "")), state(runs, results)
    for name, reason in collect(runs, results).items():
        print(f"left out {name}: {reason}")
    artefacts.finish(folder, [], key=key)
    return results


def state(runs, results):
    """A hash of all that the tables in `results` depend on: completion and failure records, and the code."""
    import hashlib

    digest = hashlib.sha256(f"{Path(results).absolute()} {stages.code('collect')}".encode())
    for path in sorted(path for name in (artefacts.DONE, artefacts.FAILED) for path in Path(runs).rglob(name)):
        if path.parent.name != "collect":
            digest.update(str(path.relative_to(runs)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _is_cell(taken):
    parts = taken.name.split("/")
    return len(parts) >= 4 and parts[2] in REGIMES


def _finished(runs, left_out):
    """Every finished folder below `runs`, sorted; what is not finished or damaged goes to `left_out`."""
    taken = []
    folders = {
        path.parent
        for name in (artefacts.DONE, artefacts.FAILED, "predictions.parquet", "resume.pt")
        for path in runs.rglob(name)
    }
    for folder in sorted(folders):
        name = folder.relative_to(runs).as_posix()
        if not PART.fullmatch(name):
            continue  # the record of an earlier collection, what a study keeps for itself
        record = artefacts.record(folder)
        wanted = [f for f in (record or {}).get("files", {}) if not f.endswith(".safetensors")]
        reason = artefacts.damage(folder, names=wanted)
        if reason:
            left_out[name] = (_failure(folder) or {}).get("reason") or reason
            continue
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            left_out[name] = "its manifest cannot be read"
            continue
        taken.append(Taken(folder, name, record, manifest))
    return taken


def _failure(folder):
    """What a batch noted about a failed cell, or None."""
    try:
        return json.loads((folder / artefacts.FAILED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _consistent(taken, standard, keys, left_out, images):
    """Those of `taken` that may stand in one table: the settings and budget of `standard` (a manifest), same images, same FP32 weights.

    `keys` {name: what later cells depend on} knows what stands in the batch, taken or not.
    """
    images = {t.name: t.manifest.get("fingerprint") for t in images if t.name.endswith("/data")}
    kept = []
    for t in taken:
        parts, inputs = t.name.split("/"), t.record.get("inputs", {})
        differing = _differing(t, standard["parameters"])
        data, before = f"{parts[0]}/data", "/".join([*parts[:2], "fp32", *parts[3:]])
        if differing:
            left_out[t.name] = f"its {differing[0]} is not that of the newest cell; run the batch again"
        elif (
            data in images
            and t.name != data
            and (
                t.manifest.get("fingerprint", images[data]) != images[data]
                or keys[data]
                and inputs.get("images", keys[data]) != keys[data]
            )
        ):
            left_out[t.name] = "was made from other images; run the batch again"
        elif inputs.get("starts from") and inputs["starts from"] != (
            keys.get(before) or (None if _is_cell(t) else inputs["starts from"])
        ):
            left_out[t.name] = "starts from an FP32 checkpoint that is no longer there; run the batch again"
        else:
            kept.append(t)
    return kept


def _differing(taken, newest):
    """Names of the settings in which what was taken differs from those of the newest cell, as far as they concern it."""
    own, parts = taken.manifest["parameters"], taken.name.split("/")
    found = [key for key in SHARED if own.get(key) != newest.get(key)]
    if len(parts) >= 4:
        qat = parts[2] in regimes.REGIMES and regimes.REGIMES[parts[2]].schedule == "qat"
        for key in ("train", "qat") if qat else ("train",):
            budget, wanted = (
                (p.get(key), (p.get("overrides") or {}).get(parts[1], {}).get(key)) for p in (own, newest)
            )
            found += [key] if budget != wanted else []
    return found


def _recover(results):
    """Put back the tables of a collection that was killed between taking the old ones away and giving the new ones their place."""
    ours = re.compile(re.escape(f".{results.name}.") + r"[a-z0-9_]{8}\.old")  # as `_replace` has them made
    for folder in sorted(path for path in results.parent.iterdir() if ours.fullmatch(path.name)):
        if not results.exists() and (folder / "results").is_dir():
            os.rename(folder / "results", results)
        shutil.rmtree(folder, ignore_errors=True)


def _replace(results, scratch):
    """Put `scratch` in the place of `results`, keeping files there that no collection writes."""
    ours = {p.name for p in scratch.iterdir()} | {"predictions", "folds", "audit", *_files()}
    if results.is_dir():
        for path in results.iterdir():
            if path.name not in ours:
                (shutil.copytree if path.is_dir() else shutil.copy2)(path, scratch / path.name)
        old = Path(tempfile.mkdtemp(prefix=f".{results.name}.", suffix=".old", dir=results.parent)) / "results"
        os.rename(results, old)
        os.rename(scratch, results)
        shutil.rmtree(old.parent)
    else:
        os.rename(scratch, results)
    results.chmod(0o755)


def _files():
    from medq.results import SCHEMA

    return SCHEMA


def _write(folder, standard, taken, cells, failed):
    """Every file of a result folder."""
    import pandas as pd

    from medq.results import SCHEMA

    data = {t.name.split("/")[0]: t for t in taken if t.name.endswith("/data") and t.name.count("/") == 1}
    parameters = standard["parameters"]
    tables = {"cells.csv": _cells(cells, failed)}
    predictions = {}
    for t in cells:
        _take_predictions(t, predictions)
    for (dataset, backbone, regime, suffix), frames in predictions.items():
        path = folder / "predictions" / dataset / backbone / f"{regime}{suffix}.parquet"
        artefacts.write_parquet(path, _pooled(frames))
    peers = _peers(taken)
    for (dataset, backbone, runtime), frame in peers.items():
        artefacts.write_parquet(folder / "predictions" / dataset / backbone / PEERS / f"{runtime}.parquet", frame)
    tables["metrics.csv"] = _metrics(predictions)
    tables["intervals.csv"], compared = _resampled(predictions, data, parameters)
    tables["bootstrap.csv"] = pd.concat([compared, _peer_differences(peers, data, parameters)], ignore_index=True)
    tables["silent.csv"], tables["flips.csv"] = _decisions(_first_seed(predictions))
    tables["leak.csv"] = _leak(_first_seed(predictions), data, parameters)
    tables["history.csv"] = _histories(cells)
    for name in STUDIES:
        tables[name] = _study(name, taken, parameters)
    tables[CONDITIONS] = _conditions(taken, parameters)
    for dataset, t in data.items():
        for name in ("folds", "audit"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(t.folder / f"{name}.csv", folder / name / f"{dataset}.csv")
    tables = {name: frame for name, frame in tables.items() if len(frame) or name == "cells.csv"}
    for name, frame in tables.items():
        columns = [*SCHEMA[name], *(c for c in ("seed", "seed_std") if c in frame and c not in SCHEMA[name])]
        frame = frame.reindex(columns=columns)
        (artefacts.write_parquet if name.endswith(".parquet") else artefacts.write_csv)(folder / name, frame)
    rows = {name: len(frame) for name, frame in tables.items()}
    artefacts.write_json(folder / "provenance.json", _provenance(standard, taken, cells, data) | {"rows": rows})


def _rank(parameters):
    """Sort key of (dataset, backbone, regime, …) rows in the profile's order."""
    order = {name: k for key in ("datasets", "backbones") for k, name in enumerate(parameters.get(key, []))}
    order |= {name: k for k, name in enumerate(REGIMES)}
    return lambda column: column.map(lambda name: (order.get(name, len(order)), str(name)))


def _cells(cells, failed):
    import pandas as pd

    rows = []
    for t in cells:
        facts = t.record
        agrees = facts.get("engine_agrees")
        rows.append(
            (
                *t.cell,
                t.seed,
                facts["status"],
                facts.get("reason", ""),
                facts.get("train_seconds", 0.0),
                facts.get("epochs", 0),
                "" if agrees is None else str(agrees),
                facts.get("engine_note") or "",
            )
        )
    for name, reason in failed.items():
        parts = name.split("/")
        if len(parts) >= 4 and parts[2] in REGIMES:
            cell = *parts[:3], int(parts[-1].removeprefix("fold")), _seed(name)
            rows.append((*cell, "failed", reason, float("nan"), float("nan"), "", ""))
    columns = _files()["cells.csv"]
    frame = pd.DataFrame(rows, columns=[*columns[:4], "seed", *columns[4:]])
    return _without_empty_seed(frame.sort_values(["dataset", "backbone", "regime", "fold", "seed"], ignore_index=True))


def _without_empty_seed(frame):
    """`frame`, its column `seed` only where it says something: with one seed tables have none."""
    return frame if "seed" in frame and frame["seed"].ne("").any() else frame.drop(columns="seed", errors="ignore")


def _take_predictions(taken, predictions):
    """Add the tables of one cell to {(dataset, backbone, regime, suffix): {fold: DataFrame, of several seeds one below the other}}."""
    import pandas as pd

    dataset, backbone, regime, fold = taken.cell
    for file, (suffix, _, _) in VARIANTS.items():
        if file in taken.record["files"]:
            frame = pd.read_parquet(taken.folder / file)
            frames = predictions.setdefault((dataset, backbone, regime, suffix), {})
            if taken.seed:
                frame.insert(frame.columns.get_loc("fold") + 1, "seed", int(taken.seed))
                frame = pd.concat([frames[fold], frame], ignore_index=True) if fold in frames else frame
            frames[fold] = frame


def _by_seed(frames):
    """{seed: {fold: DataFrame}} of the {fold: DataFrame} of one cell; the seed is "" where the profile has one alone."""
    found = {}
    for fold, frame in frames.items():
        for seed, part in frame.groupby("seed") if "seed" in frame else [("", frame)]:
            found.setdefault(seed, {})[fold] = part
    return found


def _first_seed(predictions):
    """{(dataset, backbone, regime, suffix): {fold: DataFrame}} of each cell's first seed."""
    return {key: next(iter(_by_seed(frames).values())) for key, frames in predictions.items()}


def _form(regime, suffix):
    """(recipe, form) of a variant of a regime."""
    _, recipe, form = next(v for v in VARIANTS.values() if v[0] == suffix)
    return recipe, form or ("converted" if regime in regimes.INT8 else "float")


def _arrays(frame):
    """(labels [n], probabilities [n, classes], class names) of a predictions table."""
    columns = [name for name in frame if name.startswith("p_")]
    return frame["label"].to_numpy(), frame[columns].to_numpy(), [name[2:] for name in columns]


def _pooled(frames):
    import pandas as pd

    return pd.concat([frames[k] for k in sorted(frames)], ignore_index=True)


def _metrics(predictions):
    """Every metric of every variant, for each fold and pooled over folds; of several seeds their mean (`seed` `mean`), too."""
    import pandas as pd

    from medq.metrics import summary

    parts = []
    for (dataset, backbone, regime, suffix), frames in predictions.items():
        recipe, form = _form(regime, suffix)
        cell = {"dataset": dataset, "backbone": backbone, "regime": regime, "recipe": recipe, "form": form}
        rows = [
            summary(*_arrays(frame)).assign(**cell, fold=fold, seed=str(seed))
            for seed, of_seed in _by_seed(frames).items()
            for fold, frame in [*sorted(of_seed.items()), ("pooled", _pooled(of_seed))]
        ]
        if rows[0]["seed"].any():
            groups = pd.concat(rows).groupby([*cell, "fold", "metric", "class"], sort=False)["value"]
            rows.append(groups.agg(value="mean", seed_std="std").reset_index().assign(seed="mean"))
        parts += rows
    return _without_empty_seed(pd.concat(parts, ignore_index=True)) if parts else pd.DataFrame()


def _groups(data, dataset, image_id):
    """What to resample in place of images: groups (lesions) and near-duplicates of the audit, joined; None without any."""
    import numpy as np
    import pandas as pd

    from medq.bootstrap import connected

    if dataset not in data:
        return None
    folds = pd.read_csv(data[dataset].folder / "folds.csv", dtype=str, keep_default_na=False)
    audit = pd.read_csv(data[dataset].folder / "audit.csv", dtype={"image_id": str})
    groups = connected(image_id, folds.set_index("image_id")["group"].reindex(image_id).to_numpy(), audit)
    return groups if len(np.unique(groups)) < len(groups) else None


def _resampled(predictions, data, parameters):
    """intervals.csv and rows of bootstrap.csv: all regimes and forms of a dataset on the same images (section 3.5)."""
    models = {
        (dataset, backbone, regime + suffix): _pooled(frames)
        for (dataset, backbone, regime, suffix), frames in predictions.items()
        if suffix in ("", SIMULATED)
    }
    intervals, differences = _tables(models, COMPARED, data, parameters)
    if len(intervals):
        simulated = intervals["regime"].str.endswith(SIMULATED)
        intervals["regime"] = intervals["regime"].str.removesuffix(SIMULATED)
        intervals["form"] = ["fake-quant" if s else _form(r, "")[1] for r, s in zip(intervals["regime"], simulated)]
        intervals = intervals.sort_values(["dataset", "regime", "form"], kind="stable")
    return intervals, differences


def _tables(models, pairs, data, parameters):
    """`medq.bootstrap.tables` of models {(dataset, backbone, method): predictions}, and Holm's correction."""
    import numpy as np
    import pandas as pd

    from medq import bootstrap

    alike, found = {}, [[], []]  # models of a dataset that were evaluated on the same images
    for key, frame in models.items():
        trainings = [part for _, part in frame.groupby("seed", sort=False)] if "seed" in frame else [frame]
        alike.setdefault((key[0], tuple(trainings[0]["image_id"])), {})[key[1:]] = trainings
    for (dataset, images), chosen in alike.items():
        labels, _, classes = _arrays(next(iter(chosen.values()))[0])
        made = bootstrap.tables(
            labels,
            {key: np.stack([_arrays(part)[1] for part in trainings]) for key, trainings in chosen.items()},
            pairs,
            classes=classes,
            groups=_groups(data, dataset, images),
            n_resamples=parameters["bootstrap"]["resamples"],
            seed=parameters["seed"],
        )
        for frames, frame in zip(found, made):
            frames.append(frame.assign(dataset=dataset))
    intervals, differences = (
        _of_most_models(pd.concat(frames, ignore_index=True)) if frames else pd.DataFrame() for frames in found
    )
    return intervals, bootstrap.with_holm(differences) if len(differences) else differences


def _of_most_models(frame):
    """Where backbones were evaluated on different images, a mean is over the images that most backbones share."""
    keys = [c for c in ("dataset", "backbone", "regime", "method_a", "method_b", "metric", "class") if c in frame]
    first = frame.sort_values("n_models", ascending=False, kind="stable").drop_duplicates(keys).index
    return frame.loc[sorted(first)]


def _peers(taken):
    """{(dataset, backbone, runtime): predictions of all folds} of the other runtimes."""
    import pandas as pd

    found = {}
    for t in taken:
        parts = t.name.split("/")
        for match in filter(None, map(PEER_FILE.fullmatch, t.record["files"] if parts[2:3] == [PEERS] else ())):
            found.setdefault((*parts[:2], match[1]), []).append(pd.read_parquet(t.folder / match[0]))
    return {
        key: pd.concat(frames).sort_values("fold", kind="stable", ignore_index=True)
        for key, frames in sorted(found.items())
    }


def _peer_differences(peers, data, parameters):
    """Rows of bootstrap.csv: every runtime against `PEER_REFERENCE`, which runs the same checkpoint; families of their own."""
    from medq.results import PEER_REFERENCE

    pairs = [
        (PEER_REFERENCE, runtime) for runtime in dict.fromkeys(key[2] for key in peers) if runtime != PEER_REFERENCE
    ]
    return _tables(peers, pairs, data, parameters)[1]


def _decisions(predictions):
    """silent.csv and flips.csv: each regime against FP32 on the same images, fold by fold."""
    import pandas as pd

    from medq.metrics import label_flips, threshold_crossings

    silent, flips = [], []
    for (dataset, backbone, regime, suffix), frames in predictions.items():
        reference = predictions.get((dataset, backbone, "fp32", ""), {})
        for fold in sorted(set(frames) & set(reference)) if regime != "fp32" and suffix != ".mended" else ():
            labels, before, classes = _arrays(reference[fold])
            if not reference[fold]["image_id"].equals(frames[fold]["image_id"]):
                continue
            after, cell = _arrays(frames[fold])[1], (dataset, backbone, regime, _form(regime, suffix)[1], fold)
            for row in threshold_crossings(labels, before, after, classes=classes).to_dict("records"):
                rates = [
                    row[f"{rate}_{of}"]
                    for rate in ("sensitivity", "specificity", "prevalence")
                    for of in ("reference", "other")
                ]
                silent.append(
                    (
                        *cell,
                        row["class"],
                        row["threshold"],
                        *rates,
                        row["up_positive"] + row["up_negative"],
                        row["down_positive"] + row["down_negative"],
                        row["n"],
                    )
                )
            if not suffix:
                whole = label_flips(labels, before, after, classes=classes).iloc[0]
                flips.append(
                    (
                        dataset,
                        backbone,
                        "fp32",
                        regime,
                        fold,
                        whole["flips"],
                        whole["wrong_to_right"],
                        whole["right_to_wrong"],
                        whole["n"],
                    )
                )
    return (pd.DataFrame(silent, columns=_files()["silent.csv"]), pd.DataFrame(flips, columns=_files()["flips.csv"]))


def _twins(data, parameters, dataset, folds):
    """{subset's name: image ids} of held-out images with a copy among the images that were trained on."""
    import pandas as pd

    from medq.datasets import held_out_twins, subset, twins_to_remove

    folder = data[dataset].folder
    audit = pd.read_csv(folder / "audit.csv", dtype={"image_id": str}, keep_default_na=False)
    assigned = pd.read_csv(folder / "folds.csv", dtype={"image_id": str, "group": str}, keep_default_na=False)
    found = {"without-identical": set(), "without-twins": set()}
    for fold in folds:
        left = assigned
        if parameters.get("deduplicate"):
            left = assigned[~assigned["image_id"].isin(twins_to_remove(audit, assigned, fold))]
        chosen = subset(left, parameters["subset"], fold, parameters["seed"])
        used = audit[audit["image_id"].isin(chosen["image_id"])]
        found["without-identical"] |= set(held_out_twins(used, chosen, fold, kinds=("identical",)))
        found["without-twins"] |= set(held_out_twins(used, chosen, fold))
    return found


def _leak(predictions, data, parameters):
    """Metrics of all held-out images, and without those that have a copy in the training part."""
    import pandas as pd

    from medq.metrics import METRICS

    rows, twins = [], {}
    for (dataset, backbone, regime, suffix), frames in predictions.items():
        if dataset not in data or suffix == ".mended":
            continue
        key = dataset, tuple(sorted(frames))
        if key not in twins:
            twins[key] = _twins(data, parameters, dataset, key[1])
        if not any(twins[key].values()):
            continue
        frame = _pooled(frames)
        for name, ids in {"all": set(), **twins[key]}.items():
            labels, probabilities, _ = _arrays(frame[~frame["image_id"].isin(ids)])
            rows += [
                (
                    dataset,
                    backbone,
                    regime,
                    _form(regime, suffix)[1],
                    metric,
                    name,
                    len(labels),
                    METRICS[metric](labels, probabilities),
                )
                for metric in (LEAK if len(labels) else ())
            ]
    return pd.DataFrame(rows, columns=_files()["leak.csv"])


def _histories(cells):
    import pandas as pd

    parts = []
    for t in cells:
        if "history.csv" in t.record["files"]:
            dataset, backbone, regime, fold = t.cell
            parts.append(
                pd.read_csv(t.folder / "history.csv").assign(
                    dataset=dataset, backbone=backbone, regime=regime, fold=fold, seed=t.seed
                )
            )
    return _without_empty_seed(pd.concat(parts, ignore_index=True)) if parts else pd.DataFrame()


def _study(name, taken, parameters):
    """One table from what the study cells wrote, in the profile's order."""
    import pandas as pd

    read = pd.read_parquet if name.endswith(".parquet") else (lambda path: pd.read_csv(path, keep_default_na=False))
    parts = [(t, read(t.folder / name)) for t in taken if name in t.record["files"]]
    folded = "fold" in _files()[name]  # a table of one folder may leave out what its path says
    parts = [
        part.assign(fold=int(t.name.rpartition("/fold")[2])) if folded and "fold" not in part else part
        for t, part in parts
        if len(part)
    ]
    if not parts:
        return pd.DataFrame()
    frame = pd.concat(parts, ignore_index=True)
    by = [c for c in ("dataset", "backbone", "regime") if c in frame]
    return frame.sort_values(by, key=_rank(parameters), kind="stable", ignore_index=True)


def _conditions(taken, parameters):
    """What the machine was doing during each timing, as its manifest says (`latency.conditions`): one row for each, all text."""
    import pandas as pd

    rows = [t.manifest.get("conditions") or _condition(t) for t in taken if {"machine", "conditions"} & {*t.manifest}]
    frame = pd.DataFrame(rows, columns=_files()[CONDITIONS])
    return frame.sort_values(
        ["stage", "dataset", "backbone", "fold"], key=_rank(parameters), kind="stable", ignore_index=True
    )


def _condition(timing):
    parts, facts, cpu = timing.name.split("/"), timing.manifest["machine"], timing.manifest.get("cpu") or {}
    stage = stages.stage_of(timing.name)
    row = {
        "stage": stage,
        "dataset": "" if stage == "latency" else parts[0],
        "backbone": parts[1],
        "fold": "" if stage == "latency" else parts[-1].removeprefix("fold"),
        "cores": " ".join(map(str, facts.get("cores") or [])),
        "governor": facts.get("governor"),
        "cpu": cpu.get("model"),
        "instructions": " ".join(cpu.get("instructions", [])),
        "commit": (timing.manifest.get("commit") or {}).get("hash"),
        "written": timing.manifest["written"],
    }
    row |= {key: facts.get(key) for key in ("threads", "interop_threads", "others", "seconds")}
    row |= {
        key: f"{facts[key][0]:.2f}" for key in ("load_before", "load_after") if facts.get(key)
    }  # of the last minute
    return {key: "" if value is None else str(value) for key, value in row.items()}


def _provenance(newest, taken, cells, data):
    """What `Results.banner` reads: facts of the `newest` cell's manifest, of each dataset, and of studies from elsewhere."""
    from medq import params

    known = params.datasets()
    sets = {}
    for dataset, t in sorted(data.items()):
        ours = [c.manifest for c in cells if c.cell[0] == dataset]
        release = known[dataset].release if dataset in known else {}
        sets[dataset] = {
            "fingerprint": t.manifest["fingerprint"],
            "n_images": t.manifest["n_images"],
            "n_release": sum(sum(part.values()) for part in release.values()) or None,
            **{key: max((m[key] for m in ours if key in m), default=None) for key in ("n_train", "n_held_out")},
        }
    machines = _machines(cells or taken)
    loaded = {c.cell[1]: c.manifest.get("loaded") or {} for c in cells if c.cell[2] == "fp32"}
    weights = {backbone: facts for backbone, facts in sorted(loaded.items()) if "sha256" in facts}
    studied = {
        stage: _machines([t for t in taken if stages.stage_of(t.name) == stage])
        for stage in sorted({*STUDIES.values()})
    }
    studied = {stage: found for stage, found in studied.items() if found and found != machines}
    hashes = {h for t in taken for h in t.manifest.get("commits", [(t.manifest.get("commit") or {}).get("hash")])} - {
        None
    }
    return {
        **{
            key: newest.get(key)
            for key in (
                "parameters",
                "versions",
                "platform",
                "cpu",
                "gpu",
                "commit",
                "quantized_engines",
                "threads",
                "written",
            )
        },
        "profile": newest["parameters"]["profile"],
        "data": sets,
        "seeds": newest["parameters"].get("seeds") or [newest["parameters"]["seed"]],
        "commits": sorted(hashes),
        "first_written": min(t.manifest.get("first_written", t.manifest["written"]) for t in taken),
        "machines": machines,
        "studied": studied,
        **({"weights": weights} if weights else {}),
        "train_hours": round(sum(c.record.get("train_seconds", 0) for c in cells) / 3600, 3),
    }


def _machines(taken):
    """[{cpu, gpu}] of the machines that made what was taken."""
    found = {
        json.dumps(machine, sort_keys=True)
        for t in taken
        for machine in t.manifest.get("machines", [{"cpu": t.manifest.get("cpu"), "gpu": t.manifest.get("gpu")}])
    }
    return [json.loads(machine) for machine in sorted(found)]
