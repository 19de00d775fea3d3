"""A small grid through the batch, and the same cells one by one, where nothing is shared.

    python benchmarks/batch.py [--backbones resnet18 efficientnet_b0] [--epochs 8] [--jobs N] [--against script stages]

All do the same cells of convolutional backbones (fp32, and four INT8 regimes from its checkpoint) on the same generated image
files at 64 pixels, with as many threads per cell and as many cells at a time. Two alternatives: `script`, one plain script
per cell (`script.py`: image folder and loader of torchvision, PyTorch's quantization), which decodes the images and trains its
own FP32 baseline; and `stages`, this package's own stages for each cell in a folder of its own, which shows what sharing alone
is worth. Prints seconds and ratios, and what starting a cell costs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
REGIMES = ["fp32", "ptq-fbgemm", "ptq-qnnpack", "qat-fbgemm", "qat-qnnpack"]
STAGES = """
import sys
from medq import finetune, params, paths, quantize
loaded = params.load(sys.argv[1])
cell = paths.Cell(loaded.profile, loaded.datasets[0], sys.argv[2], sys.argv[3], 0)
(quantize if "-" in cell.regime else finetune).run(loaded, cell)
"""


def write_images(folder):
    """The generated stand-in for BrainMRI as PNG files, laid out as the real images are."""
    from PIL import Image

    from medq import params
    from medq.datasets import phantoms

    spec = params.datasets()["phantom-BrainMRI"]
    names = {"train": "Training", "held_out": "Testing"}
    for number, row in enumerate(phantoms.index(spec).itertuples()):
        path = folder / "brainmri" / names[row.split] / spec.classes[row.label] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(phantoms.draw(row.path)).save(path)


def profile(folder, backbones, epochs):
    """A profile of one dataset at 64 pixels."""
    path = folder / "bench.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "profile": "bench",
                "datasets": ["BrainMRI"],
                "backbones": backbones,
                "regimes": REGIMES,
                "controls": [],
                "folds": [0],
                "image_size": 64,
                "weights": "none",
                "device": "cpu",
                "threads": 1,
                "train": {"epochs": epochs, "patience": epochs},
                "qat": {"epochs": 1},
                "calibration": {"images": 64},
                "bootstrap": {"resamples": 100},
                "study": {"calibration_size": [], "ablation": [], "diagnosis": [], "remedies": [], "latency": []},
            }
        ),
        encoding="utf-8",
    )
    return path


def timed(function, *args):
    """Seconds that a call takes."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def environment(folder, runs, threads):
    """Threads of a cell, the generated images, and a folder of runs."""
    return dict(
        os.environ, MEDQ_RUNS=str(runs), MEDQ_DATA=str(folder), MEDQ_THREADS=str(threads), OMP_NUM_THREADS=str(threads)
    )


def batch(folder, path, jobs, threads):
    """The whole grid through `medq batch`."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "medq.cli",
            "batch",
            str(path),
            "--jobs",
            str(jobs),
            "--results",
            str(folder / "results"),
        ],
        cwd=ROOT,
        env=environment(folder, folder / "batch", threads),
        check=True,
        stdout=subprocess.DEVNULL,
    )


def one_by_one(command, folder, jobs, threads, backbones):
    """A process per cell, `jobs` at a time: `command(backbone, regime, folder of its own)`."""

    def cell(number, backbone, regime):
        own = folder / f"alone-{number}"
        own.mkdir()
        ended = subprocess.run(
            command(backbone, regime, own),
            cwd=ROOT,
            env=environment(folder, own, threads),
            text=True,
            stderr=subprocess.PIPE,
        )
        if ended.returncode:
            sys.exit(f"{backbone} {regime}: {ended.stderr}")
        shutil.rmtree(own)

    cells = [(backbone, regime) for backbone in backbones for regime in REGIMES]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda item: cell(item[0], *item[1]), enumerate(cells)))


def alternatives(folder, path, known, epochs):
    """{name: (description, command of a cell)}."""
    return {
        "script": (
            "one plain script per cell",
            lambda backbone, regime, own: [
                sys.executable,
                str(ROOT / "benchmarks" / "script.py"),
                str(folder / "brainmri"),
                known[backbone].timm,
                json.dumps(known[backbone].options | known[backbone].scratch),
                regime,
                str(epochs),
                str(own / "predictions.csv"),
            ],
        ),
        "stages": (
            "this package's stages, nothing shared",
            lambda backbone, regime, own: [sys.executable, "-c", STAGES, str(path), backbone, regime],
        ),
    }


def start_up(runs):
    """(cold, forked) seconds of an empty notebook that imports what a cell imports."""
    import nbformat

    from medq import execute

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("from medq import finetune, quantize, show")])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, runs / "empty.ipynb")
    words = [str(runs / "empty.ipynb"), str(runs / "out.ipynb"), "--no-progress-bar"]
    papermill = [str(Path(sys.executable).with_name("papermill")), *words]
    cold = min(timed(lambda: subprocess.run(papermill, check=True, capture_output=True, cwd=ROOT)) for _ in range(3))
    forked = [timed(lambda: execute.run(words[0], words[1], {}, runs / "log.ipynb")) for _ in range(4)]
    return cold, min(forked[1:])  # the first starts the process that the others are forked from


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=["resnet18", "efficientnet_b0"])
    parser.add_argument(
        "--epochs", type=int, default=8, help="of FP32; QAT trains one (the proportion of params/reference.yaml)"
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--against", nargs="+", choices=["script", "stages"], default=["script", "stages"])
    args = parser.parse_args()
    from medq import batch as batches, params

    known = params.backbones()
    for name in args.backbones:
        if name not in known or known[name].family != "cnn":
            parser.error(f"--backbones: {name} is no convolutional backbone of params/backbones.yaml")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = profile(folder, args.backbones, args.epochs)
        write_images(folder)
        cold, forked = start_up(folder)
        print(f"start of a cell: {cold:.1f} s cold, {forked:.1f} s forked", flush=True)
        jobs, threads, _ = batches.shares(params.load(path), args.jobs)
        shared = timed(batch, folder, path, jobs, threads)
        again = timed(batch, folder, path, jobs, threads)
        print(
            f"{len(args.backbones) * len(REGIMES)} cells, {jobs} at a time, {threads} threads each: batch {shared:.0f} s; "
            f"again, nothing changed: {again:.1f} s",
            flush=True,
        )
        offered = alternatives(folder, path, known, args.epochs)
        for what, command in (offered[name] for name in args.against):
            seconds = timed(one_by_one, command, folder, jobs, threads, args.backbones)
            print(f"{what}: {seconds:.0f} s, ratio {seconds / shared:.2f}", flush=True)


if __name__ == "__main__":
    main()
