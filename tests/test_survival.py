"""What a run survives: kills of any process at any moment, a full disk, a read-only folder, damaged files, no luck at all."""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import nbformat
import psutil
import pytest
import torch
from fixtures.batch import ROOT, environment, family, outcome, start_batch, wait_for, write_profile

from medq import artefacts, batch, execute, finetune, fit, params, paths, quantize
from medq.datasets.partition import prepare
from medq.errors import UserError

pytestmark = pytest.mark.timeout(1200)  # a batch may share the machine
CELL = ("phantom-BrainMRI", "resnet18")


@pytest.fixture
def tiny(drawn, tmp_path):
    """(params, its fp32 cell) in a folder of the test's own."""
    return params.load(write_profile(tmp_path)), paths.Cell("tiny", *CELL, "fp32", 0)


# --- training goes on where it was ------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", ["fp32", "fp16", "fp32-continued"])
def test_an_interrupted_training_equals_an_uninterrupted_one(tiny, interrupted, regime):
    loaded, cell = tiny
    loaded = loaded.model_copy(update={"qat": loaded.qat.model_copy(update={"epochs": 3})})
    cell = cell.of(regime)
    whole = outcome(finetune.run(loaded, cell))
    shutil.rmtree(cell.folder)
    for _ in range(2):  # stopped after the first epoch, and again after the second
        with interrupted():
            finetune.run(loaded, cell)
        assert not (cell.folder / artefacts.DONE).exists() and (cell.folder / fit.RESUME).exists()
    assert outcome(finetune.run(loaded, cell)) == whole and not (cell.folder / fit.RESUME).exists()


def test_a_batch_killed_while_it_trained_gives_what_a_quiet_run_gives(killed, tiny):
    _, interrupted, *_, said, code = killed
    assert code == 0, said
    loaded, cell = tiny
    finetune.run(loaded, cell)
    quantize.run(loaded, cell.of("ptq-fbgemm"))
    for regime in ("fp32", "ptq-fbgemm"):
        place = cell.of(regime).folder.relative_to(paths.runs())
        found = outcome(interrupted / place)
        assert found and found == outcome(paths.runs() / place)


def test_a_damaged_resume_state_starts_training_again(tiny, monkeypatch, capsys):
    loaded, cell = tiny
    whole = outcome(finetune.run(loaded, cell))
    shutil.rmtree(cell.folder)
    cell.folder.mkdir()
    (cell.folder / fit.RESUME).write_bytes(b"PK\x03\x04 cut short")
    assert outcome(finetune.run(loaded, cell)) == whole
    assert "training starts again" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_is_stopped_and_names_the_epoch(tiny, monkeypatch):
    loaded, cell = tiny
    calls, loss = [], torch.nn.functional.cross_entropy

    def breaking(*args, **options):
        calls.append(1)
        return loss(*args, **options) * (float("nan") if len(calls) > 3 else 1)  # two batches of 32 an epoch

    monkeypatch.setattr(fit.F, "cross_entropy", breaking)
    with pytest.raises(UserError, match="not finite in epoch 1; lower `train.learning_rate`"):
        finetune.run(loaded, cell)
    assert not (cell.folder / artefacts.DONE).exists()


# --- damaged files ----------------------------------------------------------------------------------------------------


def cut(path):
    """Keep the first half of a file."""
    content = path.read_bytes()
    os.truncate(path, len(content) // 2)
    return content


def redo(loaded):
    """Do what a batch would do, in this process; returns what was done."""
    planned = batch.stale(loaded)
    batch.mark(planned)
    for job, _, _ in planned:
        if job.stage == "datasets":
            prepare(loaded, job.cell.dataset)
        else:
            {"finetune": finetune, "quantize": quantize}[job.stage].run(loaded, job.cell)
    return [str(job) for job, _, _ in planned]


@pytest.mark.parametrize(
    "regime, name",
    [
        ("fp32", "checkpoint.safetensors"),
        ("fp32", "predictions.parquet"),
        ("ptq-fbgemm", "predictions.parquet"),
        ("ptq-fbgemm", "quantized.safetensors"),
        ("fp32", "done.json"),
    ],
)
def test_a_truncated_file_makes_its_cell_again_and_no_other(finished, regime, name):
    loaded, runs = finished
    cells = {r: paths.Cell("tiny", *CELL, r, 0).folder for r in ("fp32", "ptq-fbgemm")}
    other = next(folder for r, folder in cells.items() if r != regime)
    before, kept = outcome(cells[regime]), (other / artefacts.DONE).stat().st_mtime_ns
    cut(cells[regime] / name)
    assert redo(loaded) == [f"{'/'.join(CELL)}/{regime}/fold0"]
    assert outcome(cells[regime]) == before
    assert (other / artefacts.DONE).stat().st_mtime_ns == kept


def test_a_truncated_pixel_cache_is_decoded_again_and_no_cell_is_redone(finished):
    loaded, runs = finished
    array = next((runs / ".pixels").glob("*.npy"))
    content = cut(array)
    assert batch.stale(loaded) == []
    assert array.read_bytes() == content


@pytest.mark.parametrize("spoil", [cut, os.unlink])
def test_a_spoilt_notebook_is_run_again_without_computing(finished, spoil):
    loaded, _ = finished
    folder = paths.Cell("tiny", *CELL, "fp32", 0).folder
    kept = (folder / artefacts.DONE).stat().st_mtime_ns
    spoil(folder / "finetune.ipynb")
    planned = batch.stale(loaded)
    assert [(job.folder, kind) for job, kind, _ in planned] == [(folder, batch.SHOWN)]
    redo(loaded)
    assert (folder / artefacts.DONE).stat().st_mtime_ns == kept


def test_a_file_changed_behind_a_cells_back_is_found_even_with_its_old_size(finished):
    loaded, _ = finished
    path = paths.Cell("tiny", *CELL, "fp32", 0).folder / "predictions.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert [why for _, _, why in batch.stale(loaded)] == ["predictions.parquet does not match its checksum"]


# --- disks ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder, size):
    """A tmpfs of `size`; the test is skipped where it cannot be mounted."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small disk needs the right to mount one: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def test_a_full_disk_is_one_sentence_and_the_rest_follows_with_more_space(tiny, tmp_path, monkeypatch):
    loaded, cell = tiny
    whole = outcome(finetune.run(loaded, cell))
    with small_disk(tmp_path / "disk", "12m"):
        monkeypatch.setenv("MEDQ_RUNS", str(tmp_path / "disk"))
        with pytest.raises(UserError, match="No space left on device; free space"):
            finetune.run(loaded, cell)
        assert not (cell.folder / artefacts.DONE).exists()
        assert not list(cell.folder.glob(".*.part"))  # nothing half written stays
        remount(tmp_path / "disk", "size=400m")
        assert outcome(finetune.run(loaded, cell)) == whole


def test_a_read_only_folder_is_one_sentence(tiny, tmp_path, monkeypatch):
    loaded, cell = tiny
    with small_disk(tmp_path / "disk", "100m"):
        remount(tmp_path / "disk", "ro")
        monkeypatch.setenv("MEDQ_RUNS", str(tmp_path / "disk"))
        with pytest.raises(UserError, match="[Rr]ead-only"):
            with batch.batch_lock(tmp_path / "disk" / "tiny"):
                pass
        with pytest.raises(UserError, match="[Rr]ead-only"):
            finetune.run(loaded, cell)


# --- kills ------------------------------------------------------------------------------------------------------------


def notebook(path, code):
    """A notebook of one cell, without a kernel."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, path)
    return path


@pytest.mark.parametrize(
    "code, minutes, reason",
    [
        ("import os; os.kill(os.getpid(), 9)", None, execute.KILLED),
        ("import time; time.sleep(60)", 0.05, execute.OUT_OF_TIME),
        ("from medq.errors import UserError\nraise UserError('seed: change it.')", None, "seed: change it."),
        ("1 / 0", None, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_notebook_that_fails_says_why(tmp_path, code, minutes, reason):
    source, log = notebook(tmp_path / "in.ipynb", code), tmp_path / "logs" / "out.ipynb"
    assert execute.run(source, tmp_path / "out.ipynb", {}, log, minutes=minutes) == reason
    assert (log.is_file() or minutes) and not (tmp_path / "out.ipynb").exists()


def test_a_notebook_shows_what_a_kernel_would_show(tmp_path):
    code = """import sys
print("one")
print("two", file=sys.stderr)
import matplotlib.pyplot as plt
plt.plot([1, 2])
display({"a": 1})
print("three")
get_ipython().run_line_magic("matplotlib", "inline")
1 + 1"""
    source, log = notebook(tmp_path / "in.ipynb", code), tmp_path / "logs" / "out.ipynb"
    assert execute.run(source, tmp_path / "out.ipynb", {}, log) == "" and not log.exists()
    (cell,) = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    shown = [(o.output_type, o.get("name") or next(iter(o["data"]))) for o in cell.outputs]
    assert shown[:3] == [("stream", "stdout"), ("stream", "stderr"), ("display_data", "text/plain")]
    assert ("execute_result", "text/plain") in shown and any("image/png" in o.get("data", {}) for o in cell.outputs)
    assert log.with_suffix(".log").read_text().splitlines()[:2] == ["one", "two"]


def test_a_notebook_ends_with_the_process_that_runs_it(tmp_path):
    pid = tmp_path / "pid"
    code = f"import os, time\nopen({str(pid)!r}, 'w').write(f'{{os.getpid()}}.')\ntime.sleep(100)"
    source, target = notebook(tmp_path / "in.ipynb", code), tmp_path / "out.ipynb"
    words = f"from medq import execute; execute.run({str(source)!r}, {str(target)!r}, {{}}, {str(tmp_path / 'log.ipynb')!r})"
    command = subprocess.Popen([sys.executable, "-c", words], env=environment(tmp_path), cwd=ROOT)
    wait_for(lambda: pid.exists() and pid.read_text().endswith("."))
    command.kill()
    command.wait()
    wait_for(lambda: not psutil.pid_exists(int(pid.read_text()[:-1])), 120)


def test_kills_of_a_notebook_at_random_moments(killed, tmp_path):
    profile, reference, *_ = killed
    rng, given = random.Random(7), environment(tmp_path / "runs")
    values = {"profile": str(profile), "dataset": CELL[0], "backbone": CELL[1], "regime": "fp32"}
    words = paths.NOTEBOOKS / "finetune.ipynb", tmp_path / "out.ipynb", values, tmp_path / "log.ipynb", given
    for _ in range(2):
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(execute.run, *words)
            wait_for(lambda found=found: found.done() or multiprocessing.active_children())
            time.sleep(rng.uniform(0, 3))
            for child in multiprocessing.active_children():
                child.kill()
            assert found.result() in ("", execute.KILLED)
    assert execute.run(*words) == ""
    place = f"tiny/{CELL[0]}/{CELL[1]}/fp32/fold0"
    assert outcome(tmp_path / "runs" / place) == outcome(reference / place)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_of_a_whole_batch(killed, tmp_path):
    profile, reference, *_ = killed
    runs, rng = tmp_path / "my runs", random.Random(20)
    for _ in range(20):
        process = start_batch(profile, runs)
        end = time.monotonic() + rng.uniform(3, 25)
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.1)
        if process.poll() is None:
            below = family(process.pid)
            victims = [psutil.Process(process.pid), *below]
            victim = rng.choice(victims)
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGKILL)
            if victim.pid == process.pid:
                assert not psutil.wait_procs(below, timeout=60)[1]
        process.communicate(timeout=900)
    last = start_batch(profile, runs)
    said = last.communicate(timeout=900)[0]
    assert last.returncode == 0, said
    assert outcome(runs / "tiny") == outcome(reference / "tiny")
    assert "Traceback" not in said
