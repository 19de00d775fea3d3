"""A small batch that was killed in the middle and started again, for all tests that look at one: `finished`."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
PROFILE = {
    "profile": "tiny",
    "datasets": ["phantom-BrainMRI"],
    "backbones": ["resnet18"],
    "folds": [0],
    "image_size": 32,
    "regimes": ["fp32", "ptq-fbgemm"],
    "controls": [],
    "subset": {"train": 64, "held_out": 40},
    "weights": "none",
    "device": "cpu",
    "threads": 1,
    "train": {"epochs": 3, "learning_rate": 1e-3},
    "calibration": {"images": 32},
    "bootstrap": {"resamples": 64},
    "study": {"calibration_size": [], "ablation": [], "diagnosis": [], "remedies": [], "attention": [], "latency": []},
}


def write_profile(folder, **changes):
    """A profile file in `folder`; its path."""
    path = Path(folder) / "tiny.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(PROFILE | changes), encoding="utf-8")
    return path


def environment(runs):
    """Variables of a process that works in `runs` with one thread."""
    return dict(os.environ, MEDQ_RUNS=str(runs), OMP_NUM_THREADS="1", MEDQ_THREADS="1", CUDA_VISIBLE_DEVICES="")


def start_batch(profile, runs, *words):
    """A batch as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "medq.cli", "batch", str(profile), "--results", str(runs / "results"), *words],
        env=environment(runs),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def family(pid):
    """All processes below `pid`."""
    return psutil.Process(pid).children(recursive=True)


def wait_for(condition, seconds=400):
    """Wait until `condition()` is true; an error after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def snapshot(folder):
    """{path: (bytes, time of change)} of all that a batch made, without its logs and Snakemake's notes."""
    return {
        p.relative_to(folder).as_posix(): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".snakemake" not in p.parts and "logs" not in p.parts and not p.name.endswith("lock")
    }


def outcome(folder):
    """What a cell gave: the bytes of its predictions and of every weight (the order of a file's header is chance)."""
    from safetensors.numpy import load_file

    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.parquet")}
    for path in folder.rglob("*.safetensors"):
        name = path.relative_to(folder).as_posix()
        found |= {f"{name}: {tensor}": value.tobytes() for tensor, value in load_file(path).items()}
    return found


@pytest.fixture(scope="session")
def killed(shared_tmp):
    """(profile, runs, processes that it had, those left over, output and status of the second start): a batch killed while
    it trained, then run again; once however many processes run the tests, so change nothing in it."""
    folder = shared_tmp / 'it\'s a "test" – größe'
    profile, runs, facts = folder / "my params" / "tiny.yaml", folder / "my 'runs'", folder / "facts.json"
    with FileLock(str(shared_tmp / "killed.lock")):
        if not facts.is_file():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that did not get through
            write_profile(profile.parent)
            facts.write_text(json.dumps(_kill_and_run_again(profile, runs)))
    return profile, runs, *json.loads(facts.read_text())


def _kill_and_run_again(profile, runs):
    first = start_batch(profile, runs)
    try:
        cell = runs / "tiny" / "phantom-BrainMRI" / "resnet18" / "fp32" / "fold0"
        wait_for(lambda: (cell / "resume.pt").exists() or first.poll() is not None)
        below = family(first.pid) if first.poll() is None else []
    finally:
        first.kill()
    first.wait()
    _, left = psutil.wait_procs(below, timeout=10)
    second = start_batch(profile, runs)
    said = second.communicate(timeout=600)[0]
    return [process.pid for process in below], [process.pid for process in left], said, second.returncode


@pytest.fixture
def finished(killed, tmp_path, monkeypatch):
    """(params, runs): a copy of the finished batch that a test may spoil."""
    from medq import params

    profile, runs, *_, code = killed
    assert code == 0
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy, ignore=shutil.ignore_patterns(".batch.*"))  # another process may ask the batch itself
    monkeypatch.setenv("MEDQ_RUNS", str(copy))
    monkeypatch.setenv("MEDQ_THREADS", "1")
    return params.load(profile), copy


def record(folder):
    """What `done.json` says."""
    return json.loads((folder / "done.json").read_text(encoding="utf-8"))
