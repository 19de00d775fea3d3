"""Execute notebooks, each in a process of its own that is forked from one with all imports done.

The imports of a notebook take seconds, which for a grid of small cells is most of the work. The standard library's
fork server does them once. papermill injects the parameters, keeps times and saves the notebook as usual; an engine of
ours, registered at papermill's own extension point, runs the code cells in that process instead of in a kernel.
"""

import base64
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path

BACKEND = "module://matplotlib_inline.backend_inline"
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
    forks = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":
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
    os.environ.update(environment, MPLBACKEND=BACKEND)
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


def execute(notebook, manager=None):
    """Run the code cells of a notebook (an nbformat node) in this process and store their outputs; stops at an error.

    `manager`, papermill's, is told of every cell.
    """
    outputs = []
    shell = _shell(outputs)
    count = 0
    for index, cell in enumerate(notebook.cells):
        if manager:
            manager.cell_start(cell, index)
        failed = False
        if cell.cell_type == "code":
            count += 1
            outputs.clear()
            failed = not shell.run_cell(cell.source, store_history=True).success
            for output in outputs:
                if output.output_type == "execute_result":
                    output.execution_count = count
            cell.execution_count, cell.outputs = count, list(outputs)
        if failed and manager:
            manager.cell_exception(cell, cell_index=index)
        if manager:
            manager.cell_complete(cell, index)
        if failed:
            return


class _Stream:
    """Prints go to the notebook's `outputs` and, at once, to the log."""

    def __init__(self, name, log, outputs):
        self.name, self.log, self.outputs, self.encoding = name, log, outputs, "utf-8"

    def write(self, text):
        from nbformat.v4 import new_output

        last = self.outputs[-1] if self.outputs else None
        if last is None or last.output_type != "stream" or last.name != self.name:
            self.outputs.append(last := new_output("stream", name=self.name, text=""))
        last.text += text
        return self.log.write(text)

    def __getattr__(self, name):
        return getattr(self.log, name)


def _shell(outputs):
    """A fresh IPython whose displays, results, errors and prints are appended to the list `outputs`."""
    import matplotlib
    from IPython.core.displayhook import DisplayHook
    from IPython.core.displaypub import DisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell
    from matplotlib_inline.backend_inline import configure_inline_support
    from nbformat.v4 import new_output
    from traitlets import Type
    from traitlets.config import Config

    def shown(kind, data, metadata):
        data = {k: base64.b64encode(v).decode() if isinstance(v, bytes) else v for k, v in data.items()}
        outputs.append(new_output(kind, data=data, metadata=metadata or {}))

    class Publisher(DisplayPublisher):
        def publish(self, data, metadata=None, **_):
            shown("display_data", data, metadata)

    class Result(DisplayHook):
        def write_output_prompt(self):
            pass

        def write_format_data(self, format_dict, md_dict=None):
            shown("execute_result", format_dict, md_dict)

        def finish_displayhook(self):
            pass

    class Shell(InteractiveShell):
        display_pub_class = Type(Publisher)
        displayhook_class = Type(Result)

        def _showtraceback(self, etype, evalue, stb):
            lines = [stb] if isinstance(stb, str) else list(stb)
            outputs.append(new_output("error", ename=etype.__name__, evalue=str(evalue), traceback=lines))

        def enable_gui(self, gui=None):
            pass

    matplotlib.use(BACKEND)
    matplotlib.interactive(True)  # a figure is shown at the end of the cell that drew it
    Shell.clear_instance()
    shell = Shell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    configure_inline_support(shell, BACKEND)
    sys.stdout, sys.stderr = (_Stream("stdout", sys.__stdout__, outputs), _Stream("stderr", sys.__stderr__, outputs))
    return shell
