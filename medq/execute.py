"""Execute notebooks, each in a process of its own that is forked from one with all imports done.

The imports of a notebook take seconds, which for a grid of small cells is most of the work. The standard library's
fork server does them once. papermill injects the parameters, keeps times and saves the notebook as usual; an engine,
registered at papermill's own extension point, runs the code cells in ipykernel's in-process kernel.
"""

import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path

OUT_OF_TIME = "out of time: it took longer than cell_minutes"
KILLED = "it was killed (out of memory, a crash, or by hand)"


def run(notebook, output, parameters, log, environment=(), minutes=None):
    """Execute a notebook with `parameters`; returns why it failed, in a sentence, or an empty string.

    `output` is whole or absent. While it runs, and if it fails, the notebook is at the path `log`, and what it prints in
    a file beside it with the suffix `.log`. `environment` {name: value} is set for it; after `minutes` it is killed.
    """
    log, output = Path(log).absolute(), Path(output).absolute()
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["medq.preload"])
    process = forks.Process(target=_work, args=(str(notebook), parameters, str(log), dict(environment)))
    process.start()
    process.join(60 * minutes if minutes else None)
    late = process.is_alive()
    if late:
        process.kill()
        process.join()
    if process.exitcode == 0:
        output.parent.mkdir(parents=True, exist_ok=True)
        os.replace(log, output)
        return ""
    return OUT_OF_TIME if late else _reason(log, process.exitcode)


def _reason(log, exitcode):
    """Why an executed notebook failed: the error that it shows, else the last line that it printed."""
    import nbformat

    errors = []
    if log.is_file():
        cells = nbformat.read(log, as_version=4).cells
        errors = [o for cell in cells for o in cell.get("outputs", []) if o.output_type == "error"]
    if errors:
        message = (errors[-1].evalue.strip().splitlines() or [""])[0]
        return message if errors[-1].ename == "UserError" else f"{errors[-1].ename}: {message}"
    if exitcode < 0:
        return KILLED
    printed = log.with_suffix(".log").read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(printed) if line.strip()), KILLED)


def _work(notebook, parameters, log, environment):
    """In the forked process: execute the notebook to `log`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)
    with open(Path(log).with_suffix(".log"), "wb") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    import papermill
    from papermill.engines import Engine, papermill_engines

    class InProcess(Engine):
        @classmethod
        def execute_managed_notebook(cls, manager, kernel_name, **_):
            execute(manager.nb, manager)

    papermill_engines.register("in-process", InProcess)
    try:
        papermill.execute_notebook(notebook, log, parameters, engine_name="in-process", progress_bar=False)
    except papermill.PapermillExecutionError:
        sys.exit(1)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGKILL)


def end_with(pipe):
    """Kill this process group when the other end of a pipe (a file descriptor) closes: its owner has ended, however."""

    def wait():
        os.read(pipe, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


# --- the cells of a notebook --------------------------------------------------------------------------------------------


def execute(notebook, manager):
    """Run the code cells of a notebook (an nbformat node) in this process and store their outputs; stops at an error.

    `manager`, papermill's, is told of every cell. What a cell prints also goes to this process's own output, at once.
    """
    from ipykernel.inprocess.manager import InProcessKernelManager
    from ipykernel.iostream import OutStream
    from traitlets.config import Config

    kernels = InProcessKernelManager(config=Config({"HistoryManager": {"enabled": False}}))
    kernels.start_kernel()
    kernel, client = kernels.kernel, kernels.client()
    client.start_channels()
    for name in ("stdout", "stderr"):
        stream = OutStream(kernel.session, kernel.iopub_thread, name, echo=getattr(sys, name), watchfd=False)
        setattr(kernel, name, stream)
    kernel.shell.enable_matplotlib("inline")
    for index, cell in enumerate(notebook.cells):
        manager.cell_start(cell, index)
        failed = False
        if cell.cell_type == "code":
            client.execute(cell.source)
            reply = client.get_shell_msg()["content"]
            cell.execution_count, cell.outputs = reply["execution_count"], _outputs(client)
            failed = reply["status"] != "ok"
        if failed:
            manager.cell_exception(cell, cell_index=index)
        manager.cell_complete(cell, index)
        if failed:
            return


def _outputs(client):
    """What the cell that a kernel's client executed last has shown, as nbformat has it."""
    from nbformat.v4 import output_from_msg

    found = []
    while (message := client.get_iopub_msg())["content"].get("execution_state") != "idle":
        if message["msg_type"] not in ("stream", "display_data", "execute_result", "error"):
            continue
        output = output_from_msg(message)
        if output.output_type == "stream" and found and found[-1].get("name") == output.name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found
