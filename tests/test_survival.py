"""What a run survives: kills of any process at any moment, a full disk, a read-only folder, damaged files, no luck at all."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time

import nbformat
import psutil
import pytest
import torch
from fixtures_batch import (
    ROOT,
    environment,
    family,
    finished,
    killed,
    outcome,
    start_batch,
    wait_for,  # noqa: F401
    write_profile,
)

from medq import artefacts, batch, finetune, fit, params, paths, quantize
from medq.datasets.partition import prepare
from medq.errors import UserError

pytestmark = pytest.mark.timeout(1200)  # a batch may share the machine
CELL = ("phantom-BrainMRI", "resnet18")


@pytest.fixture
def tiny(runs, tmp_path):
    """(params, its fp32 cell) in a folder of the test's own."""
    return params.load(write_profile(tmp_path)), paths.Cell("tiny", *CELL, "fp32", 0)


# --- training goes on where it was ------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", ["fp32", "fp16", "fp32-continued"])
def test_an_interrupted_training_equals_an_uninterrupted_one(killed, tiny, monkeypatch, regime):
    loaded, cell = tiny
    loaded = loaded.model_copy(update={"qat": loaded.qat.model_copy(update={"epochs": 3})})
    cell = cell.of(regime)
    whole = outcome(finetune.run(loaded, cell))
    shutil.rmtree(cell.folder)
    saves, save = [], fit._save

    def interrupted(*args):
        save(*args)
        saves.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "_save", interrupted)
    for _ in range(2):  # stopped after the first epoch, and again after the second
        with pytest.raises(KeyboardInterrupt):
            finetune.run(loaded, cell)
        assert not (cell.folder / artefacts.DONE).exists() and (cell.folder / fit.RESUME).exists()
    monkeypatch.setattr(fit, "_save", save)
    resumed = outcome(finetune.run(loaded, cell))
    assert len(saves) == 2 and resumed == whole
    assert not (cell.folder / fit.RESUME).exists()


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
    planned = batch.plan(loaded)
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
    assert batch.plan(loaded) == []
    assert array.read_bytes() == content


@pytest.mark.parametrize("spoil", [cut, os.unlink])
def test_a_spoilt_notebook_is_run_again_without_computing(finished, spoil):
    loaded, _ = finished
    folder = paths.Cell("tiny", *CELL, "fp32", 0).folder
    kept = (folder / artefacts.DONE).stat().st_mtime_ns
    spoil(folder / "finetune.ipynb")
    planned = batch.plan(loaded)
    assert [(job.folder, kind) for job, kind, _ in planned] == [(folder, batch.SHOWN)]
    redo(loaded)
    assert (folder / artefacts.DONE).stat().st_mtime_ns == kept


def test_a_file_changed_behind_a_cells_back_is_found_even_with_its_old_size(finished):
    loaded, _ = finished
    path = paths.Cell("tiny", *CELL, "fp32", 0).folder / "predictions.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert [why for _, _, why in batch.plan(loaded)] == ["predictions.parquet does not match its checksum"]


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


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The process from which papermill and kernels are forked."""
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # in the background a shell has it ignored by all below
    with batch._server(tmp_path_factory.mktemp("w") / "warm") as command:
        yield command
    signal.signal(signal.SIGINT, before)


def notebook(path, code):
    """A notebook of one cell."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, path)
    return path


def papermill(server, source, target, *words, runs=None):
    log = open(target.with_suffix(".log"), "w")
    return subprocess.Popen(
        [*server, str(source), str(target), "--no-progress-bar", *words],
        stderr=log,
        stdout=log,
        env=environment(runs or target.parent),
        cwd=ROOT,
    )


@pytest.mark.parametrize(
    "code, words, reason",
    [
        ("import os; os.kill(os.getpid(), 9)", [], "the kernel died (killed, out of memory, or a crash)"),
        ("import time; time.sleep(60)", ["--execution-timeout", "1"], "out of time"),
        ("from medq.errors import UserError\nraise UserError('seed: mend it.')", [], "seed: mend it."),
        ("1 / 0", [], "ZeroDivisionError: division by zero"),
    ],
)
def test_a_notebook_that_cannot_end_well_fails_and_says_why(server, tmp_path, code, words, reason):
    target = tmp_path / "out.ipynb"
    assert papermill(server, notebook(tmp_path / "in.ipynb", code), target, *words).wait(200) != 0
    assert batch.failure_reason(target, target.with_suffix(".log")).startswith(reason)


def test_a_killed_command_takes_its_papermill_and_kernel_along(server, tmp_path):
    pid = tmp_path / "pid"
    code = f"import os, time\nopen({str(pid)!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}}')\ntime.sleep(100)"
    command = papermill(server, notebook(tmp_path / "in.ipynb", code), tmp_path / "out.ipynb")
    wait_for(lambda: pid.exists() and pid.read_text().count(" ") == 1)
    kernel, parent = map(int, pid.read_text().split())
    command.kill()
    wait_for(lambda: not psutil.pid_exists(kernel) and not psutil.pid_exists(parent), 20)


def signals(pid, kind):
    """Whether a process has SIGINT among its signals of a kind: SigIgn, ignored, or SigCgt, handled."""
    line = next(line for line in open(f"/proc/{pid}/status", encoding="utf-8") if line.startswith(kind))
    return bool(int(line.split()[1], 16) & 1 << signal.SIGINT - 1)


def test_ctrl_c_leaves_the_server_to_its_parent_and_still_reaches_a_job(server, tmp_path):
    pid = tmp_path / "pid"
    code = f"import os, time\nopen({str(pid)!r}, 'w').write(f'{{os.getppid()}}.')\ntime.sleep(100)"
    command = papermill(server, notebook(tmp_path / "in.ipynb", code), tmp_path / "out.ipynb")
    wait_for(lambda: pid.exists() and pid.read_text().endswith("."))
    job = psutil.Process(int(pid.read_text()[:-1]))
    job.parent().send_signal(signal.SIGINT)
    assert papermill(server, notebook(tmp_path / "next.ipynb", "1 + 1"), tmp_path / "then.ipynb").wait(200) == 0
    assert job.is_running() and command.poll() is None
    assert signals(job.pid, "SigCgt") and signals(job.ppid(), "SigIgn")
    job.kill()
    assert command.wait(60) != 0


def test_kills_of_papermill_and_kernel_at_random_moments(server, killed, tmp_path, monkeypatch):
    profile, reference, *_ = killed
    runs, rng = tmp_path / "runs", random.Random(7)
    words = ["-r", "profile", str(profile), "-r", "dataset", CELL[0], "-r", "backbone", CELL[1], "-r", "regime", "fp32"]
    source, target = paths.NOTEBOOKS / "finetune.ipynb", tmp_path / "out.ipynb"
    for victim in ("kernel", "papermill", "kernel"):
        command = papermill(server, source, target, *words, runs=runs)
        me = psutil.Process(command.pid)
        wait_for(lambda me=me, command=command: command.poll() is not None or _below(me, target))
        time.sleep(rng.uniform(0, 1.5))
        processes = _below(me, target)
        if processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                processes[victim].kill()
        command.wait(200)
    assert papermill(server, source, target, *words, runs=runs).wait(400) == 0
    place = f"tiny/{CELL[0]}/{CELL[1]}/fp32/fold0"
    assert outcome(runs / place) == outcome(reference / place)


def _below(command, target):
    """{papermill, kernel} of a job: the server's child that has the job's log open, and its child."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != command.pid and os.readlink(f"/proc/{process.pid}/fd/1") == str(
                target.with_suffix(".log")
            ):
                children = process.children()
                if children:
                    return {"papermill": process, "kernel": children[0]}
    return {}


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
                assert not psutil.wait_procs(below, timeout=20)[1]
        process.communicate(timeout=900)
    last = start_batch(profile, runs)
    said = last.communicate(timeout=900)[0]
    assert last.returncode == 0, said
    assert outcome(runs / "tiny") == outcome(reference / "tiny")
    assert "Traceback" not in said
