"""The command `medq batch`: what is left to do of a profile, and why; then Snakemake, and how it ended.

A cell is left alone if it is finished, undamaged and made from today's inputs (`medq.stages`) by today's notebook.
Everything else is marked as not done and given to the `Snakefile` as targets. Each of its jobs is `execute`, which
leaves the reason beside a cell that failed.
"""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from medq import artefacts, params as profiles, paths, provenance, regimes, slots, stages
from medq.collect import parse_only, state
from medq.errors import UserError

CANCEL = 30  # seconds that an interrupted batch has to take its jobs off a cluster
EVERY = 20.0  # seconds between two lines of progress where there is no terminal
# Why a job is scheduled: never run; inputs changed; only the displayed notebook changed.
NEW, AGAIN, SHOWN = "new", "again", "notebook"


@dataclass(frozen=True)
class Job:
    """One notebook of a batch: a stage, and the cell that it is run for."""

    stage: str
    cell: paths.Cell

    @property
    def folder(self):
        """Where the stage writes."""
        return stages.folder(self.stage, self.cell)

    @property
    def notebook(self):
        """Path of the executed notebook, below the batch's folder."""
        return (self.folder / f"{self.stage}.ipynb").relative_to(paths.runs() / self.cell.profile).as_posix()

    @property
    def log(self):
        """Path of the notebook while it runs, and of one that failed."""
        return paths.runs() / self.cell.profile / "logs" / self.notebook

    @property
    def done(self):
        """Whether the stage has finished and its executed notebook is there."""
        return artefacts.record(self.folder) is not None and (self.folder / f"{self.stage}.ipynb").is_file()

    @property
    def failed(self):
        """Whether the stage failed when it was run last."""
        return (self.folder / artefacts.FAILED).is_file()

    def __str__(self):
        return self.notebook.removesuffix(f"/{self.stage}.ipynb")


# --- what there is to do ----------------------------------------------------------------------------------------------


def jobs(params, only=None):
    """Every job of a profile in an order in which it can run; `only` limits it (with what the chosen jobs start from).

    `only`: {dataset, backbone, regime, fold, seed or stage: list of names}. Raises `UserError` for a fold that does not
    exist, and where `only` leaves nothing.
    """
    chosen = [job for job in _all(params) if _wanted(job, only or {})]
    if not chosen:
        words = " ".join(f"{key}={','.join(names)}" for key, names in only.items())
        raise UserError(f"--only {words}: fits no part of {params.profile}; leave out one of these words.")
    wanted, ahead = dict.fromkeys(chosen), chosen
    while ahead:
        ahead = list(dict.fromkeys(job for later in ahead for job in needed(params, later) if job not in wanted))
        wanted |= dict.fromkeys(ahead)
    order = list(stages.STAGES)
    return sorted(wanted, key=lambda job: (order.index(job.stage), job.cell.regime in regimes.CONTROLS))


def needed(params, job):
    """The jobs that must be done before this one. The collection waits for all that run beside it."""
    cell, row = job.cell, stages.STAGES[job.stage]
    if job.stage == "latency":  # any trained model of the backbone will do
        dataset, fold = next((name, k) for name in params.datasets for k in folds(params, profiles.datasets()[name]))
        cell = paths.Cell(cell.profile, dataset, cell.backbone, "fp32", fold, params.seeds_of(cell.backbone)[0])
    if row.needs == "datasets" and not regimes.REGIMES[cell.regime].start:
        return [Job("datasets", paths.Cell(cell.profile, cell.dataset, "", ""))]
    others = [r for r in _regimes(params) if regimes.REGIMES[r].schedule == "qat"] if row.every_regime else []
    names = ["fp32", *others] if row.needs else []
    return [Job(regimes.REGIMES[name].stage, cell.of(name)) for name in names]


def _all(params):
    """Every job of a profile, as its lists have them."""
    catalogue, known = profiles.datasets(), profiles.backbones()
    if not any(folds(params, catalogue[dataset]) for dataset in params.datasets):
        asked = ", ".join(map(str, params.folds))
        raise UserError(f"folds: no dataset of {params.profile} has fold {asked}; a fixed split has fold 0.")
    found = [Job("datasets", paths.Cell(params.profile, dataset, "", "")) for dataset in params.datasets]
    ptq = [name for name in params.regimes if regimes.method(name) == "ptq"]
    studied = {  # {stage: backbones that it is made for}
        row: [b for b in params.backbones if (names := getattr(params.study, row.name)) is None or b in names]
        for row in stages.STAGES.values()
        if row.study
    }
    for dataset, backbone in itertools.product(params.datasets, params.backbones):
        for fold in folds(params, catalogue[dataset]):
            cell = paths.Cell(params.profile, dataset, backbone, "fp32", fold)
            seeds = [replace(cell, seed=seed) for seed in params.seeds_of(backbone)]
            found += [Job(regimes.REGIMES[r].stage, cell.of(r)) for cell in seeds for r in _regimes(params)]
            for row, names in studied.items():
                fits = backbone in names and (not row.cnn or known[backbone].family == "cnn")
                if row.name != "latency" and fits:
                    of = (ptq if row.every_engine else ptq[:1]) if "{engine}" in row.folder else [""]
                    found += [Job(row.name, seeds[0].of(regime)) for regime in of]
    timed = studied[stages.STAGES["latency"]]
    return found + [Job("latency", paths.Cell(params.profile, "", backbone, "")) for backbone in timed]


def _regimes(params):
    return [*dict.fromkeys(["fp32", *params.regimes, *params.controls])]


def folds(params, spec):
    """Numbers of the folds of a dataset that the profile asks for."""
    known = range(spec.folds.n)
    asked = known if params.folds == "all" else params.folds
    for fold in asked:
        if fold not in known and spec.folds.n > 1:
            raise UserError(f"folds: {spec.name} has no fold {fold}; it has {', '.join(map(str, known))}.")
    return [fold for fold in asked if fold in known]


def _wanted(job, only):
    """Whether `--only` asks for a job; where it names regimes it asks for cells, not for studies of them."""
    if job.stage not in ("finetune", "quantize") and "regime" in only and "stage" not in only:
        return False
    facts = {key: str(value) for key, value in vars(job.cell).items() if value not in ("", None)} | {"stage": job.stage}
    return all(facts.get(key) in names or key == "dataset" and key not in facts for key, names in only.items())


def parts(params):
    """{key of --only: the names that a profile has for it}."""
    seeds = sorted({seed for backbone in params.backbones for seed in params.seeds_of(backbone)} - {None})
    return {
        "dataset": params.datasets,
        "backbone": params.backbones,
        "regime": _regimes(params),
        "fold": sorted({str(k) for name in params.datasets for k in folds(params, profiles.datasets()[name])}, key=int),
        "stage": list(stages.STAGES),
        **({"seed": [*map(str, seeds)]} if seeds else {}),
    }


# --- what is stale ----------------------------------------------------------------------------------------------------


def plan(params, only=None, look=True):
    """[(job, kind, why)] of all that must run. `look=False` reads no image whose file was touched: it counts as changed."""
    keys, found = {}, []  # keys: what downstream jobs will see
    for job in jobs(params, only):
        record, inputs = artefacts.record(job.folder), _inputs(params, job, keys.get, look)
        kind, why = _state(job, record, inputs)
        stored = (record or {}).get("inputs", {})
        same = job.stage == "datasets" and all(
            stored.get(k) == (inputs or {}).get(k, "") for k in ("images", "parameters")
        )
        if record and (kind is None or same):  # images that are only scanned again are the same
            keys[job.folder] = stages.content_key(record)
        else:
            keys[job.folder] = stages.key(inputs) if inputs else None
        if kind:
            found.append((job, kind, why))
    return found


def _inputs(params, job, key_of, look):
    """Today's inputs of a job; None where the images must be read before they are known."""
    inputs, record = stages.inputs(params, job.stage, job.cell, key_of), artefacts.record(job.folder)
    if job.stage != "datasets":
        return inputs
    if record is None and not _has_cells(job):
        return None
    stored = (record or {}).get("inputs", {}).get("images")
    return inputs | {"images": _images(params, job.cell.dataset, look, stored)}


def _has_cells(job):
    """Whether anything finished was made from the images of a job of the stage `datasets`."""
    return any(next(job.folder.parent.glob(f"*/*/{depth}/{artefacts.DONE}"), None) for depth in ("*", "*/*"))


def _images(params, dataset, look, stored):
    """Fingerprint of a dataset's images; that of the prepared ones where the images are not on this machine."""
    from medq.datasets import dataset_root, fingerprint, index
    from medq.datasets.pixels import known_fingerprint

    spec = profiles.datasets()[dataset]
    try:
        root = dataset_root(spec, params.root())
    except UserError as error:
        print(f"note: {error} What was prepared earlier is used.", file=sys.stderr)
        return stored
    frame = index(spec, root)
    known = known_fingerprint(frame, params.image_size, paths.pixels())
    return known or (fingerprint(frame, params.image_size, paths.pixels()) if look else "touched, not read yet")


def _state(job, record, inputs):
    """(kind, why) a job must run, or (None, "")."""
    if record is None:
        return NEW, "failed before" if job.failed else "never finished"
    if inputs is None:
        return AGAIN, "images"
    stored = {name: value for name, value in record.get("inputs", {}).items() if name in inputs and name != "cell"}
    changed = stages.changes(stored, {name: value for name, value in inputs.items() if name != "cell"})
    harm = "; ".join(changed) or artefacts.damage(job.folder, quick=True)
    if harm:
        return AGAIN, harm
    shown, today = (_code(folder / f"{job.stage}.ipynb") for folder in (job.folder, paths.NOTEBOOKS))
    if shown == today:
        return None, ""
    there = (job.folder / f"{job.stage}.ipynb").is_file()
    return SHOWN, "notebook" if shown else "its notebook is damaged" if there else "its notebook is missing"


def _code(path):
    """Code cells of a notebook as text, without those that papermill adds; None where it cannot be read."""
    added = {"injected-parameters", "papermill-error-cell-tag"}
    try:
        cells = [cell for cell in artefacts.read_json(path)["cells"] if cell["cell_type"] == "code"]
        return ["".join(cell["source"]) for cell in cells if not added & set(cell["metadata"].get("tags", []))]
    except (KeyError, TypeError, AttributeError):
        return None


def mark(planned):
    """Remove notebooks, failure notes and stale completion records of planned jobs, so that they count as not done."""
    for job, kind, _ in planned:
        (job.folder / f"{job.stage}.ipynb").unlink(missing_ok=True)
        (job.folder / artefacts.FAILED).unlink(missing_ok=True)
        images = job.stage == "datasets"  # their record shows what the cells were made from until it is replaced
        if kind == AGAIN and not images:
            (job.folder / artefacts.DONE).unlink(missing_ok=True)


# --- what the Snakefile calls -----------------------------------------------------------------------------------------


def job_of(params, stage, wildcards):
    """The job that the wildcards of a rule name."""
    given = dict(wildcards)
    regime = given.get("regime") or (f"ptq-{given['engine']}" if "engine" in given else "")
    names = given.get("dataset", ""), given.get("backbone", ""), regime, given.get("place", "fold0")
    return Job(stage, paths.Cell.at(params.profile, "/".join(names)))


def execute(params, job, profile, threads, results=""):
    """Run the notebook of a job; a failure is noted in its folder and raised as an error."""
    from medq import execute

    given = {name: value for name, value in vars(job.cell).items() if name != "profile" and value not in ("", None)}
    given |= {"profile": str(profile), "results": str(results)}
    values = {name: given[name] for name in stages.notebook_parameters(job.stage) if name in given}
    output = job.folder / f"{job.stage}.ipynb"
    environment = {"MEDQ_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    reason = execute.run(
        paths.NOTEBOOKS / output.name, output, values, job.log, environment, minutes=params.cell_minutes
    )
    if reason:
        shown = job.log if job.log.is_file() else job.log.with_suffix(".log")
        where = str(shown.relative_to(paths.runs() / params.profile))
        artefacts.write_json(job.folder / artefacts.FAILED, {"reason": reason, "notebook": where})
        raise RuntimeError(f"{job}: {reason}")


def uses_gpu(params):
    """Whether cells of this profile train on a GPU of this machine (the driver's device is looked for, not opened)."""
    return params.device == "cuda" or (params.device == "auto" and Path("/dev/nvidiactl").exists())


def gpus_of(params, job):
    """GPUs that a job takes: one if it trains or times on one."""
    return int(uses_gpu(params) and (job.stage == "latency" or slots.trains(job.stage, job.cell.regime)))


# --- running ----------------------------------------------------------------------------------------------------------


def add_arguments(parser):
    """Arguments of `medq batch`."""
    at_a_time = "cells at a time (default: one per core; with a GPU, one per two cores)"
    a_part = "a part of the grid, e.g. dataset=BrainMRI,ChestXray regime=fp32"
    parser.add_argument("params", metavar="PROFILE", help="a file like params/smoke.yaml, or the name of one there")
    parser.add_argument("--jobs", type=int, metavar="N", help=at_a_time)
    parser.add_argument("--only", nargs="+", metavar="KEY=NAMES", help=a_part)
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and why; change nothing")
    parser.add_argument("--results", metavar="DIR", help="folder for the tables (default: results/<profile>)")
    parser.add_argument("--profile", metavar="DIR", help="a Snakemake profile, e.g. profiles/slurm")
    parser.epilog = "What follows `--` is given to Snakemake, e.g. -- --verbose."


def run(args):
    """Run what is left of a profile; exit status 1 if something failed."""
    params = profiles.load(args.params)
    params.thread_count()  # refused here, though each job is given its own
    only = parse_only(args.only, parts(params))
    results = Path(args.results or paths.RESULTS / params.profile).absolute()
    _check(args, results)
    if args.dry_run:
        return _report_plan(plan(params, only, look=False), len(jobs(params, only)))
    remote = bool(args.profile) and "executor: local" not in (Path(args.profile) / "config.yaml").read_text("utf-8")
    if not remote:  # jobs of a cluster may see other disks, packages and GPUs than this machine
        _look_for_what_is_needed(params, [job for job in jobs(params, only) if artefacts.record(job.folder) is None])
    with batch_lock(paths.runs() / params.profile):
        started = time.monotonic()
        planned = plan(params, only)
        total = len(jobs(params, only))
        if not planned and _collected(params, results):
            print(f"nothing to do: all {total} parts of {params.profile} are finished, {results} holds their tables.")
            return 0
        if not remote:  # other datasets are indexed again by their own job
            indexed = [job for job, *_ in planned if job.stage != "datasets" or artefacts.record(job.folder)]
            _look_for_images(params, indexed)
        (paths.runs() / params.profile / "logs" / "snakemake.log").unlink(missing_ok=True)
        if planned:
            print(f"{params.profile}: {len(planned)} of {total} parts to run.", flush=True)
        todo = _run_planned(params, args, only, planned, results, remote)
        if _has_results(params) and not _collected(params, results):
            _snakemake(params, args, results, [], collect=True, remote=remote)
        return _report(params, todo, results, time.monotonic() - started)


def _run_planned(params, args, only, planned, results, remote):
    """Run the planned jobs; returns all that were to run. Images are scanned first: they decide which cells are stale."""
    first = [entry for entry in planned if entry[0].stage == "datasets" and _has_cells(entry[0])]
    if first:
        mark(first)
        _snakemake(params, args, results, [job for job, *_ in first], collect=False, remote=remote)
        planned = plan(params, only)
        scanned = {job.cell.dataset for job, *_ in first}
        unknown = {job.cell.dataset for job, *_ in planned if job.stage == "datasets"} & scanned
        planned = [entry for entry in planned if entry[0].cell.dataset not in unknown]
    if planned:
        mark(planned)
        collect = _has_results(params) or any(job.stage != "datasets" for job, *_ in planned)
        _snakemake(params, args, results, [job for job, *_ in planned], collect=collect, remote=remote)
    return [job for job, *_ in [*first, *planned]]


def _check(args, results):
    """`UserError` for arguments that cannot be meant."""
    import importlib.util

    if importlib.util.find_spec("snakemake") is None:
        raise UserError("a batch needs Snakemake, which is not installed: pip install 'medq[batch]'.")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs: must be 1 or more, not {args.jobs}.")
    if args.profile and not (Path(args.profile) / "config.yaml").is_file():
        raise UserError(f"--profile {args.profile}: no config.yaml there; profiles/ has some.")
    if any(place.exists() and not place.is_dir() for place in (results, *results.parents)):
        raise UserError(f"--results {results}: is not a folder and cannot become one; choose another.")


def _look_for_what_is_needed(params, chosen):
    """`UserError` for a GPU, backbone, weights or images that `chosen` jobs need and that are not there.

    Prints which INT8 regimes of their backbones will be unsupported, from a dry conversion with random weights.
    """
    from medq import backbones
    from medq.finetune import pick_device
    from medq.quantize.stage import rehearse

    slots.per_gpu()
    trained = sorted({job.cell.backbone for job in chosen if job.stage == "finetune"})
    if params.device == "cuda" and any(slots.trains(job.stage, job.cell.regime) for job in chosen):
        pick_device(params.device)
    backbones.check_names(trained)
    for name in trained:
        backbones.weights_file(params.weights_of(name), name)
    _look_for_images(params, chosen)
    for name in trained:
        spec = profiles.backbones()[name]
        if backbones.CONVERTED.get(spec.timm) != spec.family or spec.options:
            wanted = dict.fromkeys(job.cell.regime for job in chosen if job.cell.backbone == name)
            for regime, reason in rehearse(name, params.image_size, wanted).items():
                print(f"note: {name}: {regime} will be unsupported: {reason}", flush=True)


def _look_for_images(params, chosen):
    """`UserError` naming every dataset that `chosen` jobs prepare and whose images are missing, wrong, or too few to calibrate."""
    from medq.datasets import dataset_root, index
    from medq.datasets.partition import training_sizes

    wrong, wanted = [], params.calibration.images
    calibrated = {job.cell.dataset for job in chosen if stages.STAGES[job.stage].calibrates}
    for dataset in [job.cell.dataset for job in chosen if job.stage == "datasets"]:
        spec = profiles.datasets()[dataset]
        try:
            frame = index(spec, dataset_root(spec, params.root()))
            sizes = training_sizes(params, spec, frame, folds(params, spec)) if dataset in calibrated else {}
            if sizes and (n := min(sizes.values())) < wanted:
                key = f"{params.profile}: calibration.images"
                raise UserError(f"{key}: {wanted} are asked for but the training part of {dataset} has {n}; lower it.")
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError(" ".join(wrong))


@contextlib.contextmanager
def batch_lock(folder):
    """A lock on a batch's folder; `UserError` naming the batch that holds it. The system frees it however that one ends."""
    import filelock

    note = folder / ".batch.json"
    lock = filelock.FileLock(folder / ".batch.lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        by = artefacts.read_json(note)
        who = f"process {by['pid']} on {by['host']}, since {by['since']}" if by else "just started"
        raise UserError(f"{folder}: another batch is running there ({who}); wait for it or stop it.") from None
    except OSError as error:
        why = error.strerror
        raise UserError(f"{folder}: cannot be written ({why}); choose another folder with MEDQ_RUNS.") from None
    with lock:
        artefacts.write_json(note, {"pid": os.getpid(), "host": socket.gethostname(), "since": provenance.now()})
        try:
            yield
        finally:
            note.unlink(missing_ok=True)
            lock.release()


def memory_mb(params):
    """Memory of one job: on the CPU, quantization-aware training of MobileNetV2 at 224 pixels peaks at 8.7 GB."""
    return 3000 if uses_gpu(params) else max(3000, round(9000 * (params.image_size / 224) ** 2))


def shares(params, jobs_asked=None, cores=None):
    """(jobs at a time, threads of each, free memory in MB): jobs × threads never exceed the cores."""
    import psutil

    cores = cores or provenance.usable_cores()
    memory = psutil.virtual_memory().available // 2**20
    n = jobs_asked or (max(1, cores // 2) if uses_gpu(params) else cores // min(cores, params.threads or 1))
    n = max(1, min(n, memory // memory_mb(params)))
    return n, max(1, cores // n), memory


def _environment(threads, profile):
    """The jobs' environment: this package on the path, compiled files kept, and folders that do not depend on where they run."""
    python_path = [str(paths.ROOT), os.environ.get("PYTHONPATH")]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, python_path)), OMP_NUM_THREADS=str(threads))
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["MEDQ_RUNS"] = str(paths.runs().absolute())
    if os.environ.get("MEDQ_DATA"):
        environment["MEDQ_DATA"] = str(Path(os.environ["MEDQ_DATA"]).expanduser().absolute())
    if profile:  # for the commands that a profile of a cluster starts
        environment["MEDQ_CLUSTER"] = str(Path(profile).absolute())
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return environment


def _snakemake(params, args, results, todo, collect, remote):
    """Run `todo` (and the collection) with Snakemake and show the progress; its own output goes to logs/snakemake.log."""
    folder = paths.runs() / params.profile
    n, threads, memory = shares(params, args.jobs)
    threads = (params.threads or 4) if remote else threads
    environment = _environment(threads, args.profile)
    config = {
        "profile": str(profiles.profile_path(args.params).absolute()),
        "threads": threads,
        "cores": threads if remote else n * threads,
        "results": str(results),
        "collect": [job.notebook for job in todo],
    }
    artefacts.write_json(folder / ".batch-config.json", config)
    (folder / "logs").mkdir(exist_ok=True)
    options = ["--snakefile", paths.ROOT / "Snakefile", "--directory", folder]
    options += ["--configfile", folder / ".batch-config.json", "--rerun-triggers", "mtime", "--scheduler", "greedy"]
    options += ["--nolock", "--keep-going", "--rerun-incomplete", "--force-use-threads", "--nocolor"]
    if args.profile:
        options += ["--profile", Path(args.profile).absolute(), *(["--jobs", args.jobs] if args.jobs else [])]
    if not remote:
        options += ["--cores", n * threads, "--resources", f"mem_mb={max(memory, memory_mb(params))}"]
        if uses_gpu(params):  # n of them where there is a driver, but a torch that cannot use it
            each = slots.per_gpu() or 1
            environment["MEDQ_GPU_SLOTS"] = str(each)
            options += [f"gpu={each * len(slots.gpus()) or n}"]
    (folder / "collect" / "collect.ipynb").unlink(missing_ok=True)
    (folder / "collect" / artefacts.FAILED).unlink(missing_ok=True)
    targets = [job.notebook for job in todo] + (["collect/collect.ipynb"] if collect else [])
    words = [*map(str, options), *getattr(args, "snakemake", []), "--", *targets]
    log = folder / "logs" / "snakemake.log"
    failed = _watch(words, log, todo, environment, CANCEL if remote else 0)
    begun = job_of(params, "collect", {}).log.with_suffix(".log").is_file()
    if failed and not begun and not any(job.done or job.failed for job in todo):
        printed = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        raise UserError(f"Snakemake could not start ({' '.join(printed[-1:]) or 'it printed nothing'}); see {log}.")


def _watch(words, log, todo, environment, grace=0):
    """Run Snakemake with these words and show how many jobs are done; returns whether it ended in an error.

    Interrupted, it has `grace` seconds to take back what it submitted to a cluster. It ends when this process does.
    """
    ours, theirs = os.pipe()
    code = f"from medq import execute; execute.end_with({ours}); from snakemake.cli import main; main()"
    started = time.monotonic()
    with (
        open(log, "ab") as file,
        subprocess.Popen(
            [sys.executable, "-c", code, *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[ours],
            start_new_session=True,
        ) as process,
    ):
        os.close(ours)
        try:
            _show_progress(process, todo, started)
        except BaseException:
            if grace:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=grace)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            os.close(theirs)
    return process.returncode != 0


def _show_progress(process, todo, started):
    """Until `process` ends: a bar on a terminal, elsewhere a line now and then, from the records of finished jobs."""
    from tqdm import tqdm

    on_terminal, shown, open_jobs = sys.stderr.isatty(), started, set(todo)
    with tqdm(total=len(todo), unit="part", disable=not on_terminal, leave=False) as bar:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5 if on_terminal or len(todo) < 100 else 2)
            ended = {job for job in open_jobs if job.done or job.failed}
            open_jobs -= ended
            bar.update(len(ended))
            if process.returncode is not None:
                return
            if todo and not on_terminal and time.monotonic() - shown >= EVERY:
                shown = time.monotonic()
                print(progress(todo, shown - started), file=sys.stderr, flush=True)


def progress(todo, seconds):
    """How far the jobs `todo` are after so many seconds, in one line."""
    failed, done = sum(job.failed for job in todo), sum(job.done for job in todo)
    text, left = f"{done} of {len(todo)} done, {failed} failed", len(todo) - done - failed
    return text + (f", about {_duration(seconds / (done + failed) * left)} left" if done and left else "")


def _duration(seconds):
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


# --- afterwards -------------------------------------------------------------------------------------------------------


def _has_results(params):
    """Whether a cell or study of the profile is finished; the collection needs one."""
    return any(artefacts.record(job.folder) for job in jobs(params) if job.stage != "datasets")


def _collected(params, results):
    """Whether `results` holds the tables of what is in the batch's folder now."""
    facts = artefacts.record(job_of(params, "collect", {}).folder)
    folder = paths.runs() / params.profile
    return bool(facts) and facts.get("key") == state(folder, results) and (results / "provenance.json").is_file()


def _report_plan(planned, total):
    """Print what would run, and why; returns the exit status."""
    for job, _, why in planned:
        print(f"{job}: {why}")
    print(
        f"{len(planned)} of {total} parts would run." if planned else f"nothing to do: all {total} parts are finished."
    )
    scanned = [job for job, kind, why in planned if job.stage == "datasets" and (kind == NEW or "images" in why)]
    unread = [job.cell.dataset for job in scanned if _has_cells(job)]
    if unread:
        print(
            f"note: {', '.join(unread)}: the batch reads the images first, and leaves every cell alone whose images "
            "turn out the same."
        )
    return 0


def _report(params, todo, results, seconds):
    """Print how it ended; returns the exit status."""
    failed = {job: artefacts.failure(job.folder) or {} for job in todo if job.failed and not job.done}
    records = {job: artefacts.record(job.folder) for job in todo if job not in failed}
    waiting = [job for job, record in records.items() if record is None]
    unsupported = sum(record["status"] == "unsupported" for record in records.values() if record)
    collection, collected = job_of(params, "collect", {}), _collected(params, results)
    print(
        f"{params.profile}: {len(records) - len(waiting)} of {len(todo)} parts done in {_duration(seconds)}"
        + (f", {unsupported} of them unsupported" if unsupported else "")
        + (f"; tables in {results}." if collected else ".")
    )
    left_out = artefacts.record(collection.folder)["left_out"] if collected else {}
    for name in [name for name in left_out if name not in {str(job) for job in [*failed, *waiting]}]:
        print(f"left out of the tables: {name}: {left_out[name]}")
    folder = paths.runs() / params.profile
    for job, facts in failed.items():
        print(f"failed {job}: {facts.get('reason')}\n       see {folder / facts.get('notebook', 'logs')}")
    if waiting:
        more = " …" if len(waiting) > 8 else ""
        print(f"{len(waiting)} parts wait for what failed: {', '.join(map(str, waiting[:8]))}{more}")
    if not _has_results(params):
        print("No cell has results yet: there is nothing to collect.")
        return 1 if failed or waiting else 0
    if not collected:
        unstarted = {"reason": f"Snakemake did not start it; see {folder / 'logs' / 'snakemake.log'}"}
        print(f"failed collect: {(artefacts.failure(collection.folder) or unstarted).get('reason')}")
    return 1 if failed or waiting or not collected or any(str(job) in left_out for job in todo) else 0
