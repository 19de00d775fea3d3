"""The command `medq batch`: what is left to do of a profile, and why; then Snakemake, watched.

A cell is left alone if it is finished, undamaged and made from today's inputs (`medq.stages`) by today's notebook.
Everything else is marked and handed to the `Snakefile` as targets; what failed, and why, is read from what the jobs left.
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from medq import artefacts, params as profiles, paths, regimes, slots, stages
from medq.errors import UserError, one_of

_ROWS = stages.STAGES.values()
STUDIES = tuple(row.name for row in _ROWS if row.study and row.name != "latency")
PER_ENGINE = tuple(row.name for row in _ROWS if "{engine}" in row.folder)
TIMINGS = tuple(row.name for row in _ROWS if row.timed)
MEMORY_MB = 3000  # of one job, with ample room
CANCEL = 30  # seconds that an interrupted batch has to take its jobs off a cluster
NEW, AGAIN, SHOWN = "new", "again", "notebook"  # why a job runs: never made, to be made again, only its notebook


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
    def after(self):
        """The job that must be done before this one, or None (a timing and the collection say so in the Snakefile)."""
        if self.stage in ("datasets", "latency", "collect"):
            return None
        if self.stage == "finetune" and self.cell.regime not in profiles.CONTROLS:
            return Job("datasets", paths.Cell(self.cell.profile, self.cell.dataset, "", ""))
        return Job("finetune", self.cell.of("fp32"))

    def __str__(self):
        return self.notebook.removesuffix(f"/{self.stage}.ipynb")


# --- what there is to do ----------------------------------------------------------------------------------------------


def jobs(params, only=None):
    """Every job of a profile in an order in which it can run; `only` limits it (with what the chosen jobs start from).

    `only`: {dataset, backbone, regime, fold or stage: list of names}. Raises `UserError` for a fold that does not exist, and
    where `only` leaves nothing.
    """
    chosen = [job for job in _all(params) if _wanted(job, only or {})]
    if not chosen:
        words = " ".join(f"{key}={','.join(names)}" for key, names in only.items())
        raise UserError(f"--only {words}: fits no part of {params.profile}; leave out one of these words.")
    needed = dict.fromkeys(job.after for job in chosen)
    needed = dict.fromkeys([before.after for before in needed if before] + [*needed])
    wanted = {job for job in [*needed, *chosen] if job}
    wanted |= {job.after for job in wanted if job.after}
    order = list(stages.STAGES)
    return sorted(wanted, key=lambda job: (job.cell.regime in profiles.CONTROLS, order.index(job.stage)))


def _all(params):
    found, catalogue, known = [], profiles.datasets(), profiles.backbones()
    if not any(folds(params, catalogue[dataset]) for dataset in params.datasets):
        raise UserError(
            f"folds: no dataset of {params.profile} has fold {', '.join(map(str, params.folds))}; a fixed split has fold 0."
        )
    ptq = [name for name in params.regimes if regimes.method(name) == "ptq"]
    for dataset in params.datasets:
        found.append(Job("datasets", paths.Cell(params.profile, dataset, "", "")))
        for backbone in params.backbones:
            for fold in folds(params, catalogue[dataset]):
                first, *others = (
                    paths.Cell(params.profile, dataset, backbone, "fp32", fold, seed)
                    for seed in params.seeds_of(backbone)
                )
                names = dict.fromkeys(["fp32", *params.regimes, *params.controls])
                found += [Job(regimes.REGIMES[r].stage, cell.of(r)) for cell in (first, *others) for r in names]
                for study in (stages.STAGES[name] for name in STUDIES):
                    if _studied(params, study.name, backbone) and not (study.cnn and known[backbone].family != "cnn"):
                        engines = ptq if study.every_engine else ptq[:1]
                        found += [Job(study.name, first.of(r)) for r in (engines if study.name in PER_ENGINE else [""])]
    return found + [
        Job("latency", paths.Cell(params.profile, "", b, ""))
        for b in params.backbones
        if _studied(params, "latency", b)
    ]


def folds(params, spec):
    """Numbers of the folds of a dataset that the profile asks for."""
    known = range(spec.folds.n)
    asked = known if params.folds == "all" else params.folds
    for fold in asked:
        if fold not in known and spec.folds.n > 1:
            raise UserError(f"folds: {spec.name} has no fold {fold}; it has {', '.join(map(str, known))}.")
    return [fold for fold in asked if fold in known]


def _studied(params, study, backbone):
    names = getattr(params.study, study)
    return names is None or backbone in names


def _wanted(job, only):
    facts = {
        "dataset": job.cell.dataset,
        "backbone": job.cell.backbone,
        "regime": job.cell.regime,
        "fold": str(job.cell.fold),
        "seed": "" if job.cell.seed is None else str(job.cell.seed),
        "stage": job.stage,
    }
    if job.stage not in ("finetune", "quantize") and "regime" in only and "stage" not in only:
        return False  # who asks for a regime wants its cells
    return all(facts[key] in names for key, names in only.items() if facts[key] or key != "dataset")


def parts(params):
    """{key of --only: the names that a profile has for it}."""
    seeds = sorted({seed for backbone in params.backbones for seed in params.seeds_of(backbone)} - {None})
    return {
        "dataset": params.datasets,
        "backbone": params.backbones,
        "regime": [*dict.fromkeys(["fp32", *params.regimes, *params.controls])],
        "fold": sorted({str(k) for name in params.datasets for k in folds(params, profiles.datasets()[name])}, key=int),
        "stage": list(stages.STAGES),
        **({"seed": [*map(str, seeds)]} if seeds else {}),
    }


def parse_only(words, known):
    """`--only dataset=A,B regime=fp32` as {"dataset": ["A", "B"], …}; `UserError` for what is not in `known` {key: names, or None for any}."""
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


def plan(params, only=None, look=True):
    """[(job, kind, why)] of all that must run. `look=False` reads no image whose file was touched: it counts as changed."""
    keys, found = {}, []
    for job in jobs(params, only):
        inputs = _inputs(params, job, lambda folder: keys.get(folder), look)
        kind, why = _state(job, inputs)
        keys[job.folder] = _expected(job, inputs, kind)
        if kind:
            found.append((job, kind, why))
    return found


def _expected(job, inputs, kind):
    """What later jobs will find of a job (`stages.content_key`): of images that are only looked at again, what was found before."""
    record = artefacts.record(job.folder)
    same = (
        job.stage == "datasets"
        and record
        and inputs
        and all(record["inputs"].get(name) == inputs[name] for name in ("images", "parameters"))
    )
    if same or record and kind is None:
        return stages.content_key(record)
    return stages.key(inputs) if inputs else None


def _inputs(params, job, key_of, look):
    """Today's inputs of a job; None where the images must be read before they are known."""
    if job.stage != "datasets":
        return stages.inputs(params, job.stage, job.cell, key_of)
    value = {"parameters": stages.parameters(params, "datasets", job.cell.dataset), "code": stages.code("datasets")}
    record = artefacts.record(job.folder)
    if record is None and not _has_cells(job):
        return None
    images = _images(params, job.cell.dataset, look, (record or {}).get("inputs", {}).get("images"))
    return json.loads(json.dumps(value | {"images": images}))


def _has_cells(job):
    """Whether anything finished was made from the images of a job of the stage `datasets`."""
    return any(next(job.folder.parent.glob(f"*/*/{depth}/{artefacts.DONE}"), None) for depth in ("*", "*/*"))


def _images(params, dataset, look, stored):
    """Fingerprint of a dataset's images; what was prepared earlier counts where the images are not on this machine."""
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


def _state(job, inputs):
    """(kind, why) a job must run, or (None, "")."""
    record, failed = artefacts.record(job.folder), job.folder / artefacts.FAILED
    if record is None:
        return NEW, "failed before" if failed.is_file() else "never finished"
    stored = record.get("inputs", {})
    changed = (
        ["images"]
        if inputs is None
        else stages.changes(
            {name: value for name, value in stored.items() if name in inputs and name != "cell"},
            {name: value for name, value in inputs.items() if name != "cell"},
        )
    )
    if changed:
        return AGAIN, "; ".join(changed)
    harm = artefacts.damage(job.folder, quick=True)
    if harm:
        return AGAIN, harm
    shown = _notebook_state(job)
    return (SHOWN, shown) if shown else (None, "")


def _notebook_state(job):
    """Why the executed notebook does not show what stands in notebooks/, or an empty string."""
    path = job.folder / f"{job.stage}.ipynb"
    try:
        shown = _code(json.loads(path.read_text(encoding="utf-8")))
    except OSError:
        return "its notebook is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "its notebook is damaged"
    today = _code(json.loads((paths.NOTEBOOKS / f"{job.stage}.ipynb").read_text(encoding="utf-8")))
    return "" if shown == today else "notebook"


def _code(notebook):
    """Code cells of a notebook as text, without those that papermill adds."""
    return [
        "".join(cell["source"])
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
        and not {"injected-parameters", "papermill-error-cell-tag"} & set(cell["metadata"].get("tags", []))
    ]


def mark(planned):
    """Take away what says that a planned job is done, so that it counts as not done until it is."""
    for job, kind, _ in planned:
        (job.folder / f"{job.stage}.ipynb").unlink(missing_ok=True)
        (job.folder / artefacts.FAILED).unlink(missing_ok=True)
        if (
            kind == AGAIN and job.stage != "datasets"
        ):  # whose record says what the cells were made from, until it is replaced
            (job.folder / artefacts.DONE).unlink(missing_ok=True)


# --- what the Snakefile asks ------------------------------------------------------------------------------------------


def arguments(profile, stage, values, wildcards=None):
    """papermill's arguments that give a stage's notebook its parameters."""
    path = profiles.profile_path(profile)
    given = {"profile": str(path.resolve()), **values}
    if "engine" in given:
        given["regime"] = f"ptq-{given.pop('engine')}"
    if "place" in given:  # `fold0`, or `seed42/fold0`
        given |= {name: number for name, number in re.findall(r"(seed|fold)(\d+)", given.pop("place"))}
    names = [name for name in stages.notebook_parameters(stage) if name in given]
    words = [["-p" if name in ("fold", "seed") else "-r", name, str(given[name])] for name in names]
    return [word for triple in words for word in triple]


def options(params):
    """papermill's options: plain logs, and an end to a cell that takes too long."""
    limit = f" --execution-timeout {max(1, round(60 * params.cell_minutes))}" if params.cell_minutes else ""
    return f"--no-progress-bar{limit}"


def uses_gpu(params):
    """Whether cells of this profile train on a GPU of this machine (the driver's device is looked for, not opened)."""
    return params.device == "cuda" or (params.device == "auto" and Path("/dev/nvidiactl").exists())


def resources(params, stage):
    """What a job of a stage takes of the machine, as a Snakemake rule says it."""
    return {
        "mem_mb": MEMORY_MB,
        "gpu": lambda wildcards: int(
            uses_gpu(params) and (stage == "latency" or slots.trains(stage, getattr(wildcards, "regime", "")))
        ),
    }


def timed_after(params, backbone):
    """The notebook after which a backbone can be timed: its first FP32 cell."""
    dataset, fold = next((name, k) for name in params.datasets for k in folds(params, profiles.datasets()[name]))
    seed = params.seeds_of(backbone)[0]
    return Job("finetune", paths.Cell(params.profile, dataset, backbone, "fp32", fold, seed)).notebook


# --- running ----------------------------------------------------------------------------------------------------------


def add_arguments(parser):
    """Arguments of `medq batch`."""
    parser.add_argument(
        "params", metavar="PROFILE", help="a file like params/smoke.yaml, or the name of one in params/"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="cells at a time (default: one per core; with a GPU, one per two cores)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="KEY=NAMES", help="a part of the grid, e.g. dataset=BrainMRI,ChestXray regime=fp32"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and why; touch nothing")
    parser.add_argument("--results", metavar="DIR", help="folder for the tables (default: results/<profile>)")
    parser.add_argument("--profile", metavar="DIR", help="a Snakemake profile, e.g. profiles/slurm")


def run(args):
    """Run what is left of a profile; exit status 1 if something failed."""
    import importlib.util

    params = profiles.load(args.params)
    if importlib.util.find_spec("snakemake") is None:
        raise UserError("a batch needs Snakemake, which is not installed: pip install 'medq[batch]'.")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs: must be 1 or more, not {args.jobs}.")
    if args.profile and not (Path(args.profile) / "config.yaml").is_file():
        raise UserError(f"--profile {args.profile}: no config.yaml there; profiles/ has some.")
    only = parse_only(args.only, parts(params))
    results = Path(args.results or paths.RESULTS / params.profile).absolute()
    if any(place.exists() and not place.is_dir() for place in (results, *results.parents)):
        raise UserError(f"--results {results}: is no folder and cannot become one; choose another.")
    if args.dry_run:
        return _report_plan(plan(params, only, look=False), len(jobs(params, only)))
    remote = bool(args.profile) and "executor: local" not in (Path(args.profile) / "config.yaml").read_text("utf-8")
    if not remote:  # jobs of a cluster may see other disks, packages and GPUs than this machine
        new = [job for job in jobs(params, only) if artefacts.record(job.folder) is None]
        _look_for_gpu(params, new)
        _look_at_backbones(params, new)
        _look_for_images(params, new)
    with batch_lock(paths.runs() / params.profile):
        started = time.monotonic()
        planned = plan(params, only)
        todo, total = [job for job, _, _ in planned], len(jobs(params, only))
        if not planned and _collected(params, results):
            print(f"nothing to do: all {total} parts of {params.profile} are finished, {results} holds their tables.")
            return 0
        if not remote:
            _look_for_images(
                params, [job for job in todo if job.stage != "datasets" or artefacts.record(job.folder)]
            )  # the rest is looked at
        with _start(params, args, results, remote) as start:
            if todo:
                print(f"{params.profile}: {len(todo)} of {total} parts to run.", flush=True)
                first = [entry for entry in planned if entry[0].stage == "datasets" and _has_cells(entry[0])]
                if first:  # what is found in the images decides which cells are stale
                    mark(first)
                    start([job for job, _, _ in first], collect=False)
                    planned = plan(params, only)
                    unknown = {job.cell.dataset for job, _, _ in planned if job.stage == "datasets"} & {
                        j.cell.dataset for j, _, _ in first
                    }
                    planned = [entry for entry in planned if entry[0].cell.dataset not in unknown]
                    todo = [*(job for job, _, _ in first), *(job for job, _, _ in planned)]
                mark(planned)
                start([job for job, _, _ in planned], collect=True)
            failed = _failures(params, todo)
            if not _collected(params, results):
                start([], collect=True)
        return _report(params, todo, failed, results, time.monotonic() - started)


def _look_for_gpu(params, chosen):
    """`UserError` where `chosen` jobs train on a GPU that is not there, or are to share it in a way that cannot be."""
    slots.per_gpu()
    if params.device == "cuda" and any(slots.trains(job.stage, job.cell.regime) for job in chosen):
        from medq.finetune import pick_device

        pick_device(params.device)


def _look_at_backbones(params, chosen):
    """`UserError` for a backbone that `chosen` jobs train and timm does not know, or whose weights are not there."""
    from medq import backbones

    chosen = sorted({job.cell.backbone for job in chosen if job.stage == "finetune"})
    backbones.check_names(chosen)
    for name in chosen:
        backbones.weights_file(params.weights_of(name), name)


def _look_for_images(params, chosen):
    """`UserError` naming every dataset that `chosen` jobs prepare and whose images are not there, or not as they should be.

    So are those with fewer training images than `chosen` jobs calibrate with: found out later, training was in vain.
    """
    from medq.datasets import dataset_root, index
    from medq.datasets.partition import training_sizes

    wrong = []
    calibrated = {job.cell.dataset for job in chosen if stages.STAGES[job.stage].calibrates}
    for job in chosen:
        if job.stage == "datasets":
            try:
                spec = profiles.datasets()[job.cell.dataset]
                frame = index(spec, dataset_root(spec, params.root()))
                sizes = training_sizes(params, spec, frame, folds(params, spec)) if spec.name in calibrated else {}
                if sizes and min(sizes.values()) < params.calibration.images:
                    wrong.append(
                        f"{params.profile}: calibration.images: {params.calibration.images} are asked for but the training "
                        f"part of {spec.name} has {min(sizes.values())}; lower it."
                    )
            except UserError as error:
                wrong.append(str(error))
    if wrong:
        raise UserError(" ".join(wrong))


def batch_lock(folder):
    """A lock on a batch's folder; `UserError` naming the batch that holds it. The system frees it however that one ends."""
    import contextlib

    import filelock

    @contextlib.contextmanager
    def held():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(folder / ".batch.lock", timeout=0)
            lock.acquire()
        except filelock.Timeout:
            try:
                by = json.loads((folder / ".batch.json").read_text(encoding="utf-8"))
                who = f"process {by['pid']} on {by['host']}, since {by['since']}"
            except (OSError, ValueError, KeyError):
                who = "just started"
            raise UserError(f"{folder}: another batch is running there ({who}); wait for it or stop it.") from None
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written ({error.strerror}); choose another folder with MEDQ_RUNS."
            ) from None
        with lock:
            from medq.provenance import now

            artefacts.write_json(
                folder / ".batch.json", {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
            )
            try:
                yield
            finally:
                (folder / ".batch.json").unlink(missing_ok=True)
                lock.release()

    return held()


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shares(params, jobs_asked=None, cores=None):
    """(jobs at a time, threads of each, free memory in MB): jobs × threads never exceed the cores."""
    import psutil

    cores = cores or _cores()
    memory = psutil.virtual_memory().available // 2**20
    n = jobs_asked or (max(1, cores // 2) if uses_gpu(params) else cores // min(cores, params.threads or 1))
    n = max(1, min(n, max(1, memory // MEMORY_MB)))
    return n, max(1, cores // n), memory


def _start(params, args, results, remote):
    """A context that gives `start(jobs, collect)`: Snakemake on these jobs, with processes that start warm where they can."""
    import contextlib

    @contextlib.contextmanager
    def context():
        with tempfile.TemporaryDirectory(prefix="medq-") as scratch, contextlib.ExitStack() as stack:
            warm = None
            if sys.platform == "linux" and not remote and os.environ.get("MEDQ_WARM", "1") != "0":
                warm = stack.enter_context(_server(Path(scratch) / "warm"))
            yield lambda todo, collect: _snakemake(params, args, results, todo, collect, warm, remote)

    return context()


def _server(address):
    """The process that others are forked from (`medq.warm`); gives the command that stands for papermill."""
    import contextlib

    from medq import warm

    @contextlib.contextmanager
    def running():
        code = "import sys; from medq import warm; warm.serve(sys.argv[1])"
        server = subprocess.Popen(
            [sys.executable, "-c", code, str(address)],
            cwd=paths.ROOT,
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env=_environment(1),
        )
        try:
            yield [sys.executable, "-I", warm.__file__, str(address)] if server.stdout.readline() else None
        finally:
            server.kill()
            server.wait()

    return running()


def _environment(threads):
    """The jobs' environment: this package on the path, compiled files kept, and no network needed to say so."""
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")])),
        OMP_NUM_THREADS=str(threads),
    )
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["MEDQ_RUNS"] = str(paths.runs().absolute())
    if os.environ.get("MEDQ_DATA"):
        environment["MEDQ_DATA"] = str(Path(os.environ["MEDQ_DATA"]).expanduser().absolute())
    return environment


def _snakemake(params, args, results, todo, collect, warm, remote):
    """Run `todo` (and the collection) and show how it goes; Snakemake's own words go to logs/snakemake.log."""
    import shlex

    folder = paths.runs() / params.profile
    n, threads, memory = shares(params, args.jobs)
    threads = (params.threads or 4) if remote else threads
    environment = _environment(threads)
    targets = [job.notebook for job in todo] + (["collect/collect.ipynb"] if collect else [])
    (folder / "collect" / "collect.ipynb").unlink(missing_ok=True)
    config = {
        "profile": str(profiles.profile_path(args.params).absolute()),
        "threads": threads,
        "cores": threads if remote else n * threads,
        "papermill": shlex.join(warm or [str(Path(sys.executable).with_name("papermill"))]),
        "results": str(results),
        "collect": [job.notebook for job in todo],
    }
    artefacts.write_json(folder / ".batch-config.json", config)
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(paths.ROOT / "Snakefile"),
        "--directory",
        str(folder),
        "--configfile",
        str(folder / ".batch-config.json"),
        "--nolock",
        "--keep-going",
        "--rerun-incomplete",
        "--rerun-triggers",
        "mtime",
        "--scheduler",
        "greedy",
        "--nocolor",
    ]
    if args.profile:
        command += ["--profile", str(Path(args.profile).absolute()), *(["--jobs", str(args.jobs)] if args.jobs else [])]
        environment |= {
            "MEDQ_CLUSTER": str(Path(args.profile).absolute()),  # for what a profile starts itself
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        }
    if not remote:
        command += ["--cores", str(n * threads), "--resources", f"mem_mb={max(memory, MEMORY_MB)}"]
        if uses_gpu(params):
            environment["MEDQ_GPU_SLOTS"] = str(slots.per_gpu() or 1)
            command += [
                f"gpu={(slots.per_gpu() or 1) * len(slots.gpus()) or n}"
            ]  # a driver, and a torch that cannot use it
    (folder / "logs").mkdir(exist_ok=True)
    log = folder / "logs" / "snakemake.log"
    if not _watch(
        [*command, "--", *targets], log, {job.notebook: job for job in todo}, environment, CANCEL if remote else 0
    ):
        said = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        raise UserError(f"Snakemake could not start ({' '.join(said[-1:]) or 'no word from it'}); see {log}.")


def _watch(command, log, by_notebook, environment, grace=0):
    """Run Snakemake and show its progress; False where it ended in error before any job began.

    Interrupted, it has `grace` seconds to take back what it submitted to a cluster.
    """
    from medq import warm

    progress = Progress(by_notebook)
    with (
        open(log, "w", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,
            preexec_fn=warm.die_with_parent,
        ) as process,
    ):
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                progress.feed(line.rstrip("\n"))
        except BaseException:
            import contextlib
            import signal

            if grace:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=grace)
            os.killpg(process.pid, signal.SIGKILL)
            raise
    progress.close()
    return process.returncode == 0 or progress.begun


class Progress:
    """How a batch goes, from Snakemake's words: one line that is kept up to date, or a plain line now and then."""

    def __init__(self, by_notebook, out=None, clock=time.monotonic, every=20.0):
        self.by_notebook, self.out, self.clock, self.every = by_notebook, out or sys.stderr, clock, every
        self.started = self.shown = clock()
        self.rule = self.output = None
        self.running, self.done, self.failed, self.unsupported, self.begun = {}, 0, 0, 0, False

    def feed(self, line):
        """Take one line of Snakemake's."""
        text = line.strip()
        if text.startswith(("rule ", "localrule ", "Error in rule ")):
            self.rule, self.output = text, None
        elif text.startswith("output: ") and self.rule:
            self.output = text.removeprefix("output: ").split(" (")[0]
        elif text.startswith("jobid: ") and self.rule:
            self._job(text.removeprefix("jobid: "))
        elif text.startswith("Finished jobid: "):
            self._finished(text.removeprefix("Finished jobid: ").split(" ")[0])
        self._show()

    def _job(self, number):
        if self.rule.startswith("Error"):
            if self.running.pop(number, None):
                self.failed += 1
        else:
            self.running[number], self.begun = self.output, True
        self.rule = None

    def _finished(self, number):
        job = self.by_notebook.get(self.running.pop(number, None))
        if job:
            record = artefacts.record(job.folder) or {}
            self.done += 1
            self.unsupported += record.get("status") == "unsupported"

    def line(self):
        """The state in one line."""
        left = len(self.by_notebook) - self.done - self.failed
        said = f"{self.done} of {len(self.by_notebook)} done, {len(self.running)} running, {self.failed} failed"
        said += f", {self.unsupported} unsupported" if self.unsupported else ""
        if self.done and left > 0:
            seconds = (self.clock() - self.started) / (self.done + self.failed) * left
            said += f", about {_duration(seconds)} left"
        return said

    def _show(self):
        now = self.clock()
        if self.out.isatty():
            self.out.write(f"\r\033[K{self.line()}")
            self.out.flush()
        elif now - self.shown >= self.every:
            self.shown = now
            print(self.line(), file=self.out, flush=True)

    def close(self):
        """End the line."""
        if self.out.isatty():
            self.out.write("\r\033[K")


def _duration(seconds):
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


# --- afterwards -------------------------------------------------------------------------------------------------------


def _collected(params, results):
    """Whether `results` holds the tables of what stands in the batch's folder now."""
    from medq.collect import state

    facts = artefacts.record(stages.folder("collect", paths.Cell(params.profile, "", "", "")))
    folder = paths.runs() / params.profile
    return bool(facts) and facts.get("key") == state(folder, results) and (results / "provenance.json").is_file()


def _failures(params, todo):
    """{job: (reason, path of the notebook or log)} of what ought to be finished and is not; noted beside the cell, too."""
    found = {}
    for job in todo:
        folder = paths.runs() / params.profile
        notebook = folder / "logs" / job.notebook
        if not artefacts.damage(job.folder, quick=True) and (job.folder / f"{job.stage}.ipynb").is_file():
            continue
        text = notebook.with_suffix(".log")
        if not text.is_file():
            continue  # it never started, for want of what it starts from
        reason = failure_reason(notebook, text)
        shown = notebook if notebook.is_file() else text
        found[job] = reason, shown
        if job.folder.is_dir():
            artefacts.write_json(
                job.folder / artefacts.FAILED, {"reason": reason, "notebook": str(shown.relative_to(folder))}
            )
    return found


def failure_reason(notebook, text):
    """One sentence that says why a notebook failed, from its own outputs and papermill's log."""
    lines = [line.strip() for line in text.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    for line in reversed(lines):
        kind, _, message = line.partition(": ")
        if kind.endswith("DeadKernelError"):
            return "the kernel died (killed, out of memory, or a crash)"
        if kind.endswith("CellTimeoutError"):  # the notebook then shows the interrupt alone
            return "out of time: it took longer than cell_minutes"
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        errors = [output for cell in cells for output in cell.get("outputs", []) if output["output_type"] == "error"]
    except (OSError, ValueError, KeyError):
        errors = []
    if errors:
        value = errors[-1]["evalue"].strip().splitlines() or [""]
        return value[0] if errors[-1]["ename"] == "UserError" else f"{errors[-1]['ename']}: {value[0]}"
    return lines[-1] if lines else "it was killed before it could say why"


def _report_plan(planned, total):
    for job, _, why in planned:
        print(f"{job}: {why}")
    print(
        f"{len(planned)} of {total} parts would run." if planned else f"nothing to do: all {total} parts are finished."
    )
    unread = [
        job.cell.dataset
        for job, kind, why in planned
        if job.stage == "datasets" and _has_cells(job) and (kind == NEW or "images" in why)
    ]
    if unread:
        print(
            f"note: {', '.join(unread)}: the batch reads the images first, and leaves every cell alone whose images turn out the same."
        )
    return 0


def _report(params, todo, failed, results, seconds):
    """Say how it ended; returns the exit status."""
    records = {job: artefacts.record(job.folder) for job in todo}
    unsupported = [job for job, record in records.items() if record and record["status"] == "unsupported"]
    waiting = [job for job, record in records.items() if record is None and job not in failed]
    done = len(todo) - len(failed) - len(waiting)
    print(
        f"{params.profile}: {done} of {len(todo)} parts done in {_duration(seconds)}"
        + (f", {len(unsupported)} of them unsupported" if unsupported else "")
        + (f"; tables in {results}." if _collected(params, results) else ".")
    )
    for job, (reason, shown) in failed.items():
        print(f"failed {job}: {reason}\n       see {shown}")
    if waiting:
        print(
            f"{len(waiting)} parts wait for what failed: {', '.join(map(str, waiting[:8]))}{' …' if len(waiting) > 8 else ''}"
        )
    if (failed or waiting) and not any(artefacts.record(job.folder) for job in jobs(params) if job.stage != "datasets"):
        return 1  # nothing to collect: what failed is why
    if not _collected(params, results):
        log = paths.runs() / params.profile / "logs" / "collect" / "collect.ipynb"
        reason = (
            failure_reason(log, log.with_suffix(".log"))
            if log.with_suffix(".log").is_file()
            else f"Snakemake did not start it; see {log.parent.parent / 'snakemake.log'}"
        )
        print(f"failed collect: {reason}")
        return 1
    return 1 if failed or waiting else 0
