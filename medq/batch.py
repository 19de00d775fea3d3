"""The command `medq batch`: what is left to do of a profile, and why; then Snakemake, and how it ended.

A cell is left alone if it is finished, undamaged and made from today's inputs (`medq.keys`) by today's notebook.
Everything else is marked as not done and given to the `Snakefile` as targets. Each of its jobs is `execute`, which
leaves the reason beside a cell that failed.
"""

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

from medq import artefacts, keys, params as profiles, paths, plan, provenance, slots, stages
from medq.collect import parse_only, state
from medq.errors import UserError

CANCEL = 30  # seconds that an interrupted batch has to take its jobs off a cluster
EVERY = 20.0  # seconds between two lines of progress where there is no terminal
PRIOR = 60.0  # seconds of work that count as done at the expected pace: the first parts' time is that of starting
# Why a job is scheduled: never run; inputs changed; only the displayed notebook changed.
NEW, AGAIN, SHOWN = "new", "again", "notebook"


# --- what is stale ----------------------------------------------------------------------------------------------------


def stale(params, only=None, look=True):
    """[(job, kind, why)] of all that must run. `look=False` reads no image whose file was touched: it counts as changed."""
    known, found = {}, []  # known: the content keys that downstream jobs will see
    for job in plan.jobs(params, only):
        record, inputs = artefacts.record(job.folder), keys.inputs(params, job.stage, job.cell, known.get)
        same = False
        if record and job.stage == "datasets":
            stored = record.get("inputs", {})
            inputs["images"] = _images(params, job.cell.dataset, look, stored.get("images"))
            same = all(stored.get(name) == inputs[name] for name in ("images", "parameters"))
        kind, why = _state(job, record, inputs)
        # Images that are only looked at again are the same; what others give is not known before.
        finished = record and (kind is None or same)
        known[job.folder] = keys.content_key(record) if finished else keys.key(inputs)
        if kind:
            found.append((job, kind, why))
    return found


def _has_cells(job):
    """Whether anything finished was made from the images of a job of the stage `datasets`."""
    return any(next(job.folder.parent.glob(f"*/*/{depth}/{artefacts.DONE}"), None) for depth in ("*", "*/*"))


def _images(params, dataset, look, stored):
    """Fingerprint of a dataset's images; that of the prepared ones where the images are not on this machine."""
    from medq.datasets import DatasetWarning, dataset_root, index, pixels

    spec = profiles.datasets()[dataset]
    try:
        root = dataset_root(spec, params.root())
    except UserError as error:
        warnings.warn(f"{error} What was prepared earlier is used.", DatasetWarning, stacklevel=2)
        return stored
    found = pixels(index(spec, root), params.image_size, paths.pixels(), decode=look)
    return found[1] if found else "touched, not read yet"


def _state(job, record, inputs):
    """(kind, why) a job must run, or (None, "")."""
    if record is None:
        return NEW, "failed before" if job.failed else "never finished"
    # A study's cell has a name of its own, and a stage may depend on more than a batch knows of.
    compared = {name: value for name, value in inputs.items() if name != "cell"}
    stored = {name: value for name, value in record.get("inputs", {}).items() if name in compared}
    harm = "; ".join(keys.changes(stored, compared)) or artefacts.damage(job.folder, quick=True)
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
    only = parse_only(args.only, plan.parts(params))
    results = Path(args.results or paths.RESULTS / params.profile).absolute()
    _check(args, results)
    planned, total = stale(params, only, look=False), len(plan.jobs(params, only))
    if args.dry_run:
        return _report_plan(planned, total)
    remote = bool(args.profile) and "executor: local" not in (Path(args.profile) / "config.yaml").read_text("utf-8")
    if not remote:  # jobs of a cluster may see other disks, packages and GPUs than this machine
        computed = [job for job, kind, _ in planned if kind != SHOWN or job.stage == "datasets"]
        _look_for_what_is_needed(params, computed)
    with batch_lock(paths.runs() / params.profile):
        started = time.monotonic()
        planned = stale(params, only)
        if not planned and _collected(params, results):
            print(f"nothing to do: all {total} parts of {params.profile} are finished, {results} holds their tables.")
            return 0
        (paths.runs() / params.profile / "logs" / "snakemake.log").unlink(missing_ok=True)
        if planned:
            print(f"{params.profile}: {len(planned)} of {total} parts to run.", flush=True)
        execute_planned = functools.partial(_snakemake, params, args, results, remote)
        todo = _run_planned(params, only, planned, execute_planned)
        if _has_results(params) and not _collected(params, results):  # as when some cells failed
            execute_planned([_collection(params)])
        return _report(params, todo, results, time.monotonic() - started)


def _run_planned(params, only, planned, execute_planned):
    """Run the planned jobs; returns all that were to run. Images are scanned first: they decide which cells are stale."""
    first = [entry for entry in planned if entry[0].stage == "datasets" and _has_cells(entry[0])]
    if first:
        execute_planned(first)
        planned = stale(params, only)
        scanned = {job.cell.dataset for job, *_ in first}
        unknown = {job.cell.dataset for job, *_ in planned if job.stage == "datasets"} & scanned
        planned = [entry for entry in planned if entry[0].cell.dataset not in unknown]
    if planned:  # the tables in the same run, which has done the imports: but of images alone there are none
        cells = any(job.stage != "datasets" for job, *_ in planned)
        execute_planned([*planned, _collection(params)] if cells else planned)
    return [job for job, *_ in [*first, *planned]]


def _collection(params):
    """The planned job that makes the tables."""
    return plan.job_of(params, "collect", {}), AGAIN, "cells"


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
    from medq.datasets import index
    from medq.datasets.partition import training_sizes

    wrong, wanted = [], params.calibration.images
    calibrated = {job.cell.dataset for job in chosen if stages.STAGES[job.stage].calibrates}
    for dataset in [job.cell.dataset for job in chosen if job.stage == "datasets"]:
        spec = profiles.datasets()[dataset]
        try:
            frame = index(spec, params.root())
            sizes = training_sizes(params, spec, frame, params.folds_of(dataset)) if dataset in calibrated else {}
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


def shares(params, jobs_asked=None, cores=None):
    """(jobs at a time, threads of each, free memory in MB): jobs × threads never exceed the cores."""
    import psutil

    cores = cores or provenance.usable_cores()
    memory = psutil.virtual_memory().available // 2**20
    n = jobs_asked or (max(1, cores // 2) if plan.uses_gpu(params) else cores // min(cores, params.threads or 1))
    n = max(1, min(n, memory // plan.memory_mb(params)))
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


def _snakemake(params, args, results, remote, planned):
    """Run planned jobs with Snakemake and show the progress; its own output goes to logs/snakemake.log."""
    mark(planned)
    todo, folder = [job for job, *_ in planned], paths.runs() / params.profile
    n, threads, memory = shares(params, args.jobs)
    threads = (params.threads or 4) if remote else threads
    environment = _environment(threads, args.profile)
    config = {
        "profile": str(profiles.profile_path(args.params).absolute()),
        "threads": threads,
        "cores": threads if remote else n * threads,
        "results": str(results),
        "collect": [job.notebook for job in todo if job.stage != "collect"],
    }
    artefacts.write_json(folder / ".batch-config.json", config)
    (folder / "logs").mkdir(exist_ok=True)
    options = ["--snakefile", paths.ROOT / "Snakefile", "--directory", folder]
    options += ["--configfile", folder / ".batch-config.json", "--rerun-triggers", "mtime", "--scheduler", "greedy"]
    options += ["--nolock", "--keep-going", "--rerun-incomplete", "--force-use-threads", "--nocolor"]
    if args.profile:
        options += ["--profile", Path(args.profile).absolute(), *(["--jobs", args.jobs] if args.jobs else [])]
    if not remote:
        options += ["--cores", n * threads, "--resources", f"mem_mb={max(memory, plan.memory_mb(params))}"]
        if plan.uses_gpu(params):  # n of them where there is a driver, but a torch that cannot use it
            each = slots.per_gpu() or 1
            environment["MEDQ_GPU_SLOTS"] = str(each)
            options += [f"gpu={each * len(slots.gpus()) or n}"]
    words = [*map(str, options), *args.snakemake, "--", *[job.notebook for job in todo]]
    log, own = folder / "logs" / "snakemake.log", plan.measured(params)
    cells, at_a_time = [job for job in todo if job.stage != "collect"], 1 if remote else n
    weights = {job: sum(plan.seconds(params, job, own).values()) / at_a_time for job in cells}
    failed = _watch(words, log, weights, environment, CANCEL if remote else 0)
    if failed and not any(job.done or job.failed for job in todo):
        printed = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        raise UserError(f"Snakemake could not start ({' '.join(printed[-1:]) or 'it printed nothing'}); see {log}.")


def _watch(words, log, weights, environment, grace=0):
    """Run Snakemake with these words and show how many jobs are done; returns whether it ended in an error.

    Interrupted, it has `grace` seconds to take back what it submitted to a cluster. It ends when this process does.
    """
    ours, theirs = os.pipe()
    code = f"from medq import execute; execute.end_with({ours}); from snakemake.cli import main; main()"
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
            _show_progress(process, weights)
        except BaseException:
            if grace:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=grace)
            raise
        finally:
            os.close(theirs)  # which ends it, if it still runs
    return process.returncode != 0


def _show_progress(process, weights):
    """Until `process` ends: a bar on a terminal, elsewhere a line now and then, from the records of finished jobs."""
    from tqdm import tqdm

    started = last = time.monotonic()
    on_terminal, ended = sys.stderr.isatty(), set()
    look = {"total": 1, "bar_format": "{percentage:3.0f}% |{bar}| {desc}", "leave": False}
    with tqdm(disable=not on_terminal, **look) as bar:
        while process.returncode is None:
            try:
                process.wait(timeout=2 if on_terminal else EVERY)
            except subprocess.TimeoutExpired:
                now, new = time.monotonic(), {job for job in weights if job not in ended and (job.done or job.failed)}
                ended, last = ended | new, now if new else last
                bar.n, text = progress(weights, ended, last - started, now - last)
                bar.set_description_str(text)
                if weights and not on_terminal:
                    print(text, file=sys.stderr, flush=True)


def progress(weights, ended, seconds, since=0.0):
    """(share of the work, what is done in one line), from `weights` {job: about how long it takes} and the jobs that ended.

    The last of them ended after `seconds`, and `since` seconds have gone by since then.
    """
    failed, done, whole = sum(job.failed for job in ended), sum(weights[job] for job in ended), sum(weights.values())
    text = f"{len(ended) - failed} of {len(weights)} done, {failed} failed"
    left = (whole - done) * (seconds + PRIOR) / (done + PRIOR) - since
    if failed < len(ended) < len(weights) and left > 0:
        text += f", about {_duration(left)} left"
    return done / (whole or 1), text


def _duration(seconds):
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


# --- afterwards -------------------------------------------------------------------------------------------------------


def _has_results(params):
    """Whether a cell or study of the profile is finished; the collection needs one."""
    return any(artefacts.record(job.folder) for job in plan.jobs(params) if job.stage != "datasets")


def _collected(params, results):
    """Whether `results` holds the tables of what is in the batch's folder now."""
    facts = artefacts.record(plan.job_of(params, "collect", {}).folder)
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
    collection, collected = plan.job_of(params, "collect", {}), _collected(params, results)
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
