"""A small grid through the batch, and as one naive script per cell that decodes images and trains its own baseline.

    python benchmarks/batch.py [--backbones resnet18 efficientnet_b0] [--epochs 8] [--jobs N]

Both do the same cells (fp32, and four INT8 regimes from its checkpoint) on the generated BrainMRI stand-in, with the same
threads and as many at a time; the naive script of an INT8 cell decodes the images and trains FP32 for itself, as a script
per cell does when nothing is shared. Prints seconds of both and the ratio, and what starting a cell costs.
"""

import argparse
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
NAIVE = """
import sys
from medq import finetune, params, paths, quantize
loaded = params.load(sys.argv[1])
cell = paths.Cell(loaded.profile, loaded.datasets[0], sys.argv[2], sys.argv[3], 0)
(quantize if "-" in cell.regime else finetune).run(loaded, cell)
"""


def profile(folder, backbones, epochs):
    """A profile of one dataset at 64 pixels."""
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump({
        "profile": "bench", "datasets": ["phantom-BrainMRI"], "backbones": backbones, "regimes": REGIMES, "controls": [],
        "folds": [0], "image_size": 64, "weights": "none", "device": "cpu", "threads": 1, "train": {"epochs": epochs},
        "qat": {"epochs": 1}, "calibration": {"images": 64}, "bootstrap": {"resamples": 100},
        "study": {"calibration_size": [], "ablation": [], "diagnosis": [], "remedies": [], "latency": []}}), encoding="utf-8")
    return path


def timed(function):
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def batch(path, runs, jobs):
    """The whole grid through `medq batch`."""
    subprocess.run([sys.executable, "-m", "medq.cli", "batch", str(path), "--jobs", str(jobs), "--results", str(runs / "results")],
                   cwd=ROOT, env=dict(os.environ, MEDQ_RUNS=str(runs)), check=True, stdout=subprocess.DEVNULL)


def naive(path, runs, jobs, backbones):
    """One script per cell, each in a folder of its own: nothing is shared."""
    def cell(number, backbone, regime):
        own = runs / str(number)
        subprocess.run([sys.executable, "-c", NAIVE, str(path), backbone, regime], cwd=ROOT, check=True,
                       env=dict(os.environ, MEDQ_RUNS=str(own), MEDQ_THREADS="1", OMP_NUM_THREADS="1"))
        shutil.rmtree(own)

    cells = [(backbone, regime) for backbone in backbones for regime in REGIMES]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda item: cell(item[0], *item[1]), enumerate(cells)))


def start_up(runs):
    """(cold, warm) seconds of an empty notebook that imports what a cell imports."""
    import nbformat

    from medq import batch as batches

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("from medq import finetune, quantize, show")])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, runs / "empty.ipynb")
    words = [str(runs / "empty.ipynb"), str(runs / "out.ipynb"), "--no-progress-bar"]

    def start(command):
        return timed(lambda: subprocess.run([*command, *words], check=True, capture_output=True, cwd=ROOT))

    cold = start([str(Path(sys.executable).with_name("papermill"))])
    with batches._server(runs / "warm") as warm:
        return cold, min(start(warm) for _ in range(3))


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=["resnet18", "efficientnet_b0"])
    parser.add_argument("--epochs", type=int, default=8, help="of FP32; INT8 regimes train one (the proportion of params/reference.yaml)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = profile(folder, args.backbones, args.epochs)
        for part in ("start", "batch", "naive"):
            (folder / part).mkdir()
        cold, warm = start_up(folder / "start")
        print(f"start of a cell: {cold:.1f} s cold, {warm:.1f} s forked from a warm process")
        shared = timed(lambda: batch(path, folder / "batch", args.jobs))
        again = timed(lambda: batch(path, folder / "batch", args.jobs))
        alone = timed(lambda: naive(path, folder / "naive", args.jobs, args.backbones))
    print(f"{len(args.backbones) * len(REGIMES)} cells, {args.jobs} at a time: batch {shared:.0f} s, one script per cell "
          f"{alone:.0f} s, ratio {alone / shared:.2f}; the batch again, nothing changed: {again:.1f} s")


if __name__ == "__main__":
    main()
