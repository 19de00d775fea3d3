"""The command `medq plan`: cells, hours and disk of a profile before anything starts.

Throughputs are measured ones: those of this profile's own finished cells where there are any, else the tables below. They
tell a night from a month, not an hour from two.
"""

from collections import Counter

from medq import artefacts, backbones, batch, params as profiles, paths, regimes

MEASURED = {
    # ms per training step of 32 images of 64 × 64 pixels on two cores (AVX512-VNNI), FP32 and QAT; images per second in
    # training at 224 × 224, mixed precision, channels-last, RTX 3090 (timm's result tables); MB of a checkpoint
    "resnet18": (150, 324, 3482, 45),
    "resnet50": (425, 768, 1218, 94),
    "densenet121": (284, 737, 914, 28),
    "efficientnet_b0": (175, 465, 1752, 16),
    "mobilenetv2": (125, 786, 2313, 9),
    "convnext_tiny": (1045, 1530, 819, 111),
    "swin_tiny": (675, 977, 649, 110),
    "vit_base": (1859, 2694, 393, 343),
}
UNKNOWN = (600, 1200, 800, 100)  # a backbone that the table does not have
FP32_SLOWER = 2.2  # FP32 without TF32 against mixed precision on such a card
START_SECONDS = 5  # of a notebook, its kernel and its imports
# minutes of the studies at 224 pixels with 1,500 held-out images, two cores
STUDY_MINUTES = {"calibration_size": 12, "ablation": 40, "diagnosis": 5, "remedies": 15, "attention": 8, "datasets": 3}
PEER_MODELS, PEER_MINUTES = 12, 6  # of one comparison of runtimes; conversion, whatever the size


def add_arguments(parser):
    """Arguments of `medq plan`."""
    parser.add_argument(
        "params", metavar="PROFILE", help="a file like params/paper.yaml, or the name of one in params/"
    )


def run(args):
    """Print the estimate."""
    params = profiles.load(args.params)
    backbones.check_names(params.backbones)
    found = estimate(params)
    stages = ", ".join(f"{n} {stage}" for stage, n in found["stages"].items())
    print(
        f"{params.profile}: {found['parts']} notebooks for {found['cells']} cells of dataset, backbone and regime ({stages})."
    )
    if found["gpu_hours"]:
        print(f"GPU: about {found['gpu_hours']:,.1f} hours on one card like an RTX 3090.")
    print(f"CPU: about {found['cpu_hours']:,.1f} hours on two cores.")
    print(f"Disk: about {found['disk_gb']:,.1f} GB in {paths.runs()}.")
    unknown = [name for name in params.datasets if not sum(n_images(profiles.datasets()[name]))]
    if unknown:
        print(f"Not counted: the images of {', '.join(unknown)}, which have no `release` in params/datasets.yaml.")
    own = ", ".join(found["measured"])
    rates = (
        f"measured in this profile for {own}, from tables for others" if own else "from published and measured tables"
    )
    print(f"Training rates: {rates}. Early stopping may end sooner.")


def estimate(params):
    """{parts, cells, stages, gpu_hours, cpu_hours, disk_gb, measured} of a profile."""
    jobs, catalogue = batch.jobs(params), profiles.datasets()
    cells = [job for job in jobs if job.stage in ("finetune", "quantize")]
    gpu, own, seconds = batch.uses_gpu(params), _measured(cells), Counter()
    disk = sum(params.image_size**2 * 3 * sum(n_images(catalogue[d])) for d in params.datasets) / 1e6
    for job in cells:
        backbone, schedule = job.cell.backbone, regimes.REGIMES[job.cell.regime].schedule
        n_train, n_held_out = part_sizes(params, catalogue[job.cell.dataset])
        epochs = {"train": params.training, "qat": params.quantization}[schedule](backbone).epochs if schedule else 0
        trained = epochs * n_train  # at most
        seconds["gpu" if gpu and trained else "cpu"] += trained / _rate(params, backbone, _kind(job), gpu, own)
        evaluated = "gpu" if gpu and job.stage == "finetune" else "cpu"
        seconds[evaluated] += n_held_out / _rate(params, backbone, "fp32", False, {})
        disk += MEASURED.get(backbone, UNKNOWN)[3] / (1 if job.stage == "finetune" else 3.7)
    seconds["cpu"] += sum(START_SECONDS + study_seconds(params, job, catalogue) for job in jobs)
    return {
        "parts": len(jobs),
        "cells": len({(job.cell.dataset, job.cell.backbone, job.cell.regime) for job in cells}),
        "stages": Counter(job.stage for job in jobs),
        "gpu_hours": seconds["gpu"] / 3600,
        "cpu_hours": seconds["cpu"] / 3600,
        "disk_gb": disk / 1e3,
        "measured": sorted({backbone for backbone, _ in own}),
    }


def study_seconds(params, job, catalogue):
    """Seconds of a stage that trains nothing, with the size of images and of the held-out part."""
    timed = sum(params.latency.budget(n) for n in params.latency.batch_sizes)
    if job.stage == "latency":
        return (len(params.regimes) + len(params.latency.baselines)) * timed
    if job.stage == "peers":
        return 60 * PEER_MINUTES + PEER_MODELS * timed / 2
    if job.stage not in STUDY_MINUTES:
        return 0
    images = part_sizes(params, catalogue[job.cell.dataset])[1] / 1500
    return 60 * STUDY_MINUTES[job.stage] * images * (params.image_size / 224) ** 2


def n_images(spec):
    """(training, held-out) images of one fold of a release."""
    if set(spec.release) == {"train", "held_out"}:
        return tuple(sum(spec.release[part].values()) for part in ("train", "held_out"))
    total = sum(sum(part.values()) for part in spec.release.values())
    held_out = round(total / spec.folds.n)
    return total - held_out, held_out


def part_sizes(params, spec):
    """(training, held-out) images of one cell."""
    return tuple(min(n, limit or n) for n, limit in zip(n_images(spec), (params.subset.train, params.subset.held_out)))


def _kind(job):
    """The kind of training whose rate a cell has: `fp32`, `fp16` or `qat`."""
    regime = job.cell.regime
    return regime if regime == "fp16" else "qat" if regimes.method(regime) == "qat" else "fp32"


def _rate(params, backbone, kind, gpu, own):
    """Training images per second: this profile's own where it has been measured, else from the tables."""
    if (backbone, kind) in own:
        return own[backbone, kind]
    fp32, qat, images, _ = MEASURED.get(backbone, UNKNOWN)
    if not gpu:
        return 32 * 1000 / (qat if kind == "qat" else fp32) * (64 / params.image_size) ** 2
    slower = {"fp16": 1, "fp32": FP32_SLOWER, "qat": FP32_SLOWER * qat / fp32}[kind]
    return images * (224 / params.image_size) ** 2 / slower


def _measured(cells):
    """{(backbone, fp32 | fp16 | qat): images per second} of those cells that are finished."""
    images, seconds = Counter(), Counter()
    for job in cells:
        record, manifest = artefacts.record(job.folder), artefacts.read_json(job.folder / "manifest.json")
        if record and record.get("train_seconds") and manifest:
            images[job.cell.backbone, _kind(job)] += record["epochs"] * manifest["n_train"]
            seconds[job.cell.backbone, _kind(job)] += record["train_seconds"]
    return {key: images[key] / seconds[key] for key in images}
