"""Which GPU a cell runs on: one lock file per slot, held by the cell's process and freed however that ends.

`MEDQ_GPU_SLOTS` says how many cells may share one GPU; each may use its share of the memory and no more, so that none
takes what another has begun to need. Without it nothing is handed out.
"""

import itertools
import os
import socket
import time

from medq import paths, regimes
from medq.errors import UserError

USABLE = 0.9  # of a GPU's memory; the rest is for what CUDA itself keeps for each process
_held = []  # the lock lives as long as the process


def trains(stage, regime):
    """Whether a cell trains, and so needs a GPU where there is one; all else is computed on the CPU."""
    known = regimes.REGIMES.get(regime)
    return stage == "finetune" or stage == "quantize" and known is not None and bool(known.schedule)


def per_gpu():
    """Cells that may share a GPU; 0 where MEDQ_GPU_SLOTS is not set. `UserError` for what is not a number."""
    given = os.environ.get("MEDQ_GPU_SLOTS") or "0"
    if not given.isdecimal():
        raise UserError(f"MEDQ_GPU_SLOTS: must be a whole number, not {given!r}.")
    return int(given)


def gpus():
    """Names of the GPUs that may be used; the driver is asked, no GPU is touched. None where torch is built without CUDA."""
    import torch

    if not torch.backends.cuda.is_built():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(index) for index in range(torch.cuda.device_count())]
    names = [name.strip() for name in visible.split(",")]  # CUDA, too, goes no further than the first that names none
    return list(itertools.takewhile(lambda name: name.isdecimal() or name.startswith(("GPU-", "MIG-")), names))


def _limit_memory(share):
    """Let this process use `share` of the memory of the GPU it sees: an allocation beyond it fails, here and at once."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


def acquire():
    """Take a free slot, waiting for one if need be, and let this process see that GPU alone; returns its index.

    Returns None where `MEDQ_GPU_SLOTS` is not set or there is no GPU. No GPU gets a second cell before each has one.
    """
    import filelock

    devices = gpus() if per_gpu() and not _held else []
    if not devices:
        return None
    folder = paths.runs() / ".slots" / socket.gethostname()
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for slot, device in itertools.product(range(per_gpu()), devices):
            lock = filelock.FileLock(folder / f"gpu{device}-{slot}.lock", timeout=0)
            try:
                lock.acquire()
            except filelock.Timeout:
                continue
            _held.append(lock)
            os.environ["CUDA_VISIBLE_DEVICES"] = device
            if per_gpu() > 1:
                _limit_memory(USABLE / per_gpu())
            return device
        time.sleep(1)
