"""Start papermill and its kernels in milliseconds: processes forked from one that has imported everything already.

A notebook's process and its kernel import the same libraries for several seconds, which for a grid of small cells is
most of the work. On Linux `medq batch` therefore starts one server per batch; a job is the command line
`python -I warm.py SOCKET <arguments of papermill>`, which asks the server to fork a process that runs papermill, and
ends with its exit status. The kernel is forked from that process. A job whose command is killed is killed; when the
server dies, so does all that it started. Run directly, this file imports nothing heavy.
"""

import json
import os
import signal
import socket
import sys

PRELOAD = (
    "papermill.cli",
    "papermill.execute",
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "medq.notebook",
    "medq.finetune",
    "medq.quantize.stage",
    "medq.datasets.partition",
    "medq.show",
    "timm",
    "pandas",
    "pyarrow.parquet",
    "matplotlib.pyplot",
    "matplotlib_inline.backend_inline",
    "sklearn.metrics",
    "torch.ao.quantization.quantize_fx",
    "medq.calibration_size",
    "medq.ablation",
    "medq.diagnosis",
    "medq.remedies",
    "medq.latency",
    "medq.figures",
)
HEADER = 1 << 20


def submit(address, argv):
    """Run papermill with `argv` in a process forked by the server at `address`; returns its exit status."""
    request = json.dumps({"argv": argv, "cwd": os.getcwd(), "env": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(address)
        socket.send_fds(link, [len(request).to_bytes(8, "big")], [0, 1, 2])
        link.sendall(request)
        answer = link.recv(1)
    return answer[0] if answer else 1


def serve(address):
    """Import what notebooks need, then fork a papermill for every request until the parent is gone.

    Ctrl-C is the parent's to hear, which ends this process; jobs answer it as without a server.
    """
    import selectors

    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    print("ready", flush=True)  # who asks before the imports are done waits for them in the queue
    _preload()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write)
    links = {}  # connection of a job: its process
    with selectors.DefaultSelector() as events:
        events.register(listener, selectors.EVENT_READ)
        events.register(wake_read, selectors.EVENT_READ)
        while True:
            for key, _ in events.select():
                if key.fileobj is listener:
                    link, pid = _accept(listener, interrupt)
                    links[link] = pid
                    events.register(link, selectors.EVENT_READ)
                elif key.fileobj == wake_read:
                    os.read(wake_read, 512)
                    _reap(links, events)
                elif key.fileobj in links:  # its command was killed
                    _kill(links[key.fileobj])
                    events.unregister(key.fileobj)


def _accept(listener, interrupt):
    """Take one request and fork the process that runs it, with this handler of SIGINT: (connection, process id)."""
    link, _ = listener.accept()
    size, fds, _, _ = socket.recv_fds(link, 8, 3)
    request, length = b"", int.from_bytes(size, "big")
    while len(request) < length:
        part = link.recv(min(HEADER, length - len(request)))
        if not part:
            break
        request += part
    pid = os.fork()
    if pid == 0:
        listener.close()
        link.close()
        os._exit(_work(json.loads(request), fds, interrupt))
    _own_group(pid)  # here too: the command may have been killed already
    for fd in fds:
        os.close(fd)
    return link, pid


def _reap(links, events):
    for link, pid in list(links.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            try:
                link.sendall(bytes([code if code >= 0 else 128 - code]))
            except OSError:
                pass  # nobody waits for the answer
            if link in events.get_map():
                events.unregister(link)
            link.close()
            del links[link]


def _kill(pid):
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _work(request, fds, interrupt):
    """In the forked process: become the job, run papermill, return the exit status."""
    _fresh()
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, interrupt)
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
        os.close(fd)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    from jupyter_client.provisioning import local_provisioner
    from papermill.cli import papermill

    local_provisioner.launch_kernel = _fork_kernel
    try:
        papermill(request["argv"], prog_name="papermill")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


class _Forked:
    """What jupyter_client needs to know of a kernel's process: the part of `subprocess.Popen` that it uses."""

    stdin = stdout = stderr = None

    def __init__(self, pid):
        self.pid, self.returncode = pid, None

    def poll(self):
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def send_signal(self, signum):
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)


def _fork_kernel(cmd, env=None, cwd=None, **_):
    """In place of jupyter_client's `launch_kernel`: the kernel as a fork of this process."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _fresh()
            os.setpgid(0, 0)
            os.environ.update(env or {})
            os.environ["JPY_PARENT_PID"] = str(parent)
            if cwd:
                os.chdir(cwd)
            _kernel(cmd[cmd.index("-f") :])
        except SystemExit:
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
        os._exit(1)
    _own_group(pid)  # on both sides: its group is asked for at once, and killed later
    return _Forked(pid)


def _own_group(pid):
    """Give a forked process a group of its own, if it has not done so itself."""
    try:
        os.setpgid(pid, pid)
    except OSError:
        pass


def _kernel(argv):
    import asyncio

    import zmq
    from ipykernel.kernelapp import IPKernelApp

    asyncio.set_event_loop(None)
    zmq.Context._instance = None
    IPKernelApp.launch_instance(argv=[*argv, "--HistoryManager.enabled=False"])
    sys.stdout.flush()
    os._exit(0)


def _fresh():
    """Undo in a forked process what belongs to the server."""
    signal.set_wakeup_fd(-1)
    for name in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)
    die_with_parent()


def die_with_parent():
    """Have the kernel of the operating system kill this process when its parent ends, however that ends (Linux)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _preload():
    import importlib.util
    import warnings

    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    if importlib.util.find_spec("torchvision"):
        from medq import _torchvision

        _torchvision.ensure()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm's, of a progress bar for browsers that papermill does not draw
        for name in PRELOAD:
            try:
                importlib.import_module(name)
            except Exception:
                continue  # the notebook that needs it will say so


if __name__ == "__main__":
    sys.exit(submit(sys.argv[1], sys.argv[2:]))
