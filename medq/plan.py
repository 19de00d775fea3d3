"""What a batch of a profile consists of, and the command `medq plan`: its cells, hours and disk before anything starts.

Throughputs are measured ones: those of this profile's own finished cells where there are any, else the tables below. They
tell a night from a month, not an hour from two.
"""

import itertools
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from medq import artefacts, backbones, params as profiles, paths, regimes, slots, stages
from medq.errors import UserError

MEASURED = {
    # ms per training step of 32 images of 64 × 64 pixels on two cores (AVX512-VNNI), FP32 and QAT; images per second in
    # training at 224 × 224, mixed precision, channels-last, RTX 3090 (timm's result tables); MB of a checkpoint
    "resnet18": (150, 272, 3482, 45),
    "resnet50": (425, 656, 1218, 94),
    "densenet121": (284, 390, 914, 28),
    "efficientnet_b0": (175, 372, 1752, 16),
    "mobilenetv2": (125, 454, 2313, 9),
    "convnext_tiny": (1045, 1214, 819, 111),
    "swin_tiny": (675, 977, 649, 110),
    "vit_base": (1859, 2694, 393, 343),
}
UNKNOWN = (600, 1200, 800, 100)  # a backbone that the table does not have
FP32_SLOWER = 2.2  # FP32 without TF32 against mixed precision on such a card
START_SECONDS = 5  # of a notebook, its kernel and its imports
# minutes of the studies at 224 pixels with 1,500 held-out images, two cores
STUDY_MINUTES = {"calibration_size": 12, "ablation": 40, "diagnosis": 5, "remedies": 15, "attention": 8, "datasets": 3}
PEER_MODELS, PEER_MINUTES = 12, 6  # of one comparison of runtimes; conversion, whatever the size


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
        dataset, fold = next((name, k) for name in params.datasets for k in params.folds_of(name))
        cell = paths.Cell(cell.profile, dataset, cell.backbone, "fp32", fold, params.seeds_of(cell.backbone)[0])
    if row.needs == "datasets" and not regimes.REGIMES[cell.regime].start:
        return [Job("datasets", paths.Cell(cell.profile, cell.dataset, "", ""))]
    others = [r for r in _regimes(params) if regimes.REGIMES[r].schedule == "qat"] if row.every_regime else []
    names = ["fp32", *others] if row.needs else []
    return [Job(regimes.REGIMES[name].stage, cell.of(name)) for name in names]


def _all(params):
    """Every job of a profile, as its lists have them."""
    known = profiles.backbones()
    if not any(params.folds_of(dataset) for dataset in params.datasets):
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
        for fold in params.folds_of(dataset):
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
        "fold": sorted({str(k) for name in params.datasets for k in params.folds_of(name)}, key=int),
        "stage": list(stages.STAGES),
        **({"seed": [*map(str, seeds)]} if seeds else {}),
    }


# --- what the Snakefile asks of a job -----------------------------------------------------------------------------------


def job_of(params, stage, wildcards):
    """The job that the wildcards of a rule name."""
    given = dict(wildcards)
    regime = given.get("regime") or (f"ptq-{given['engine']}" if "engine" in given else "")
    names = given.get("dataset", ""), given.get("backbone", ""), regime, given.get("place", "fold0")
    return Job(stage, paths.Cell.at(params.profile, "/".join(names)))


def uses_gpu(params):
    """Whether cells of this profile train on a GPU of this machine (the driver's device is looked for, not opened)."""
    return params.device == "cuda" or (params.device == "auto" and Path("/dev/nvidiactl").exists())


def gpus_of(params, job):
    """GPUs that a job takes: one if it trains or times on one."""
    return int(uses_gpu(params) and (job.stage == "latency" or slots.trains(job.stage, job.cell.regime)))


def memory_mb(params):
    """Memory of one job: on the CPU, quantization-aware training of EfficientNet-Lite0 at 224 pixels peaks at 10.6 GB."""
    return 3000 if uses_gpu(params) else max(3000, round(11000 * (params.image_size / 224) ** 2))


# --- how long it takes ------------------------------------------------------------------------------------------------


def add_arguments(parser):
    """Arguments of `medq plan`."""
    parser.add_argument(
        "params", metavar="PROFILE", help="a file like params/paper.yaml, or the name of one in params/"
    )


def run(args):
    """Print the estimate."""
    params = profiles.load(args.params)
    backbones.check_names(params.backbones)
    todo, own = jobs(params), measured(params)
    cells = [job for job in todo if job.stage in ("finetune", "quantize")]
    names = {(job.cell.dataset, job.cell.backbone, job.cell.regime) for job in cells}
    listed = ", ".join(f"{n} {stage}" for stage, n in Counter(job.stage for job in todo).items())
    print(f"{params.profile}: {len(todo)} notebooks for {len(names)} cells of dataset, backbone and regime ({listed}).")
    taken = sum((seconds(params, job, own) for job in todo), Counter())
    if taken["gpu"]:
        print(f"GPU: about {taken['gpu'] / 3600:,.1f} hours on one card like an RTX 3090.")
    print(f"CPU: about {taken['cpu'] / 3600:,.1f} hours on two cores.")
    disk = sum(params.image_size**2 * 3 * sum(n_images(dataset)) for dataset in params.datasets) / 1e6
    for job in cells:
        disk += MEASURED.get(job.cell.backbone, UNKNOWN)[3] / (1 if job.stage == "finetune" else 3.7)
    print(f"Disk: about {disk / 1e3:,.1f} GB in {paths.runs()}.")
    unknown = [name for name in params.datasets if not sum(n_images(name))]
    if unknown:
        print(f"Not counted: the images of {', '.join(unknown)}, which have no `release` in params/datasets.yaml.")
    known = ", ".join(sorted({backbone for backbone, _ in own}))
    rates = (
        f"measured in this profile for {known}, from tables for others" if own else "from published and measured tables"
    )
    print(f"Training rates: {rates}. Early stopping may end sooner.")


def seconds(params, job, own):
    """About how long a job takes: Counter of seconds of `gpu` and `cpu`. `own`: rates of training that were `measured`."""
    found, gpu, backbone = Counter(cpu=START_SECONDS), uses_gpu(params), job.cell.backbone
    timed = sum(params.latency.budget(n) for n in params.latency.batch_sizes)
    if job.stage == "latency":
        found["cpu"] += (len(params.regimes) + len(params.latency.baselines)) * timed
        return found
    if job.stage == "peers":
        found["cpu"] += 60 * PEER_MINUTES + PEER_MODELS * timed / 2
    parts = zip(n_images(job.cell.dataset), (params.subset.train, params.subset.held_out))
    n_train, n_held_out = (min(n, limit or n) for n, limit in parts)
    if job.stage in STUDY_MINUTES:
        found["cpu"] += 60 * STUDY_MINUTES[job.stage] * n_held_out / 1500 * (params.image_size / 224) ** 2
    if job.stage in ("finetune", "quantize"):
        schedule = regimes.REGIMES[job.cell.regime].schedule
        epochs = {"train": params.training, "qat": params.quantization}[schedule](backbone).epochs if schedule else 0
        kind = _kind(job)
        rate = own.get((backbone, kind)) or _known_rate(params, backbone, kind, gpu)
        found["gpu" if gpu and epochs else "cpu"] += epochs * n_train / rate  # at most
        found["gpu" if gpu and job.stage == "finetune" else "cpu"] += n_held_out / _known_rate(params, backbone, "fp32")
    return found


def n_images(dataset):
    """(training, held-out) images of one fold of a dataset's release."""
    spec = profiles.datasets()[dataset]
    if set(spec.release) == {"train", "held_out"}:
        return tuple(sum(spec.release[part].values()) for part in ("train", "held_out"))
    total = sum(sum(part.values()) for part in spec.release.values())
    held_out = round(total / spec.folds.n)
    return total - held_out, held_out


def _kind(job):
    """The kind of training whose rate a cell has: `fp32`, `fp16` or `qat`."""
    regime = job.cell.regime
    return regime if regime == "fp16" else "qat" if regimes.method(regime) == "qat" else "fp32"


def _known_rate(params, backbone, kind, gpu=False):
    """Training images per second from the tables."""
    fp32, qat, images, _ = MEASURED.get(backbone, UNKNOWN)
    if not gpu:
        return 32 * 1000 / (qat if kind == "qat" else fp32) * (64 / params.image_size) ** 2
    slower = {"fp16": 1, "fp32": FP32_SLOWER, "qat": FP32_SLOWER * qat / fp32}[kind]
    return images * (224 / params.image_size) ** 2 / slower


def measured(params):
    """{(backbone, fp32 | fp16 | qat): images per second} of those cells of a profile that are finished."""
    images, seconds = Counter(), Counter()
    for job in jobs(params):
        record, manifest = artefacts.record(job.folder), artefacts.read_json(job.folder / "manifest.json")
        if record and record.get("train_seconds") and manifest:
            images[job.cell.backbone, _kind(job)] += record["epochs"] * manifest["n_train"]
            seconds[job.cell.backbone, _kind(job)] += record["train_seconds"]
    return {key: images[key] / seconds[key] for key in images}
