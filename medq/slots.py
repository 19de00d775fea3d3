"""Which GPU a cell runs on: one lock file per slot, held by the cell's process and freed however that ends.

`MEDQ_GPU_SLOTS` says how many cells may share one GPU; each may use its share of the memory and no more, so that none
takes what another has begun to need. Without it nothing is handed out.
"""

import os
import socket
import time

from medq import paths

_held = []  # the lock lives as long as the process


def gpus():
    """Indices of the GPUs that may be used, as text; the driver is asked, no GPU is touched."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


def _limit_memory(share):
    """Let this process use `share` of the memory of the GPU it sees: an allocation beyond it fails, here and at once."""
    import torch

    torch.cuda.set_per_process_memory_fraction(share)


def acquire(wait=1.0):
    """Take a free slot, waiting for one if need be, and let this process see that GPU alone; returns its index.

    Returns None where `MEDQ_GPU_SLOTS` is not set or there is no GPU. Slots of one machine fill GPU by GPU.
    """
    import filelock

    per_gpu, devices = int(os.environ.get("MEDQ_GPU_SLOTS") or 0), None
    if not per_gpu or _held or not (devices := gpus()):
        return None
    folder = paths.runs() / ".slots" / socket.gethostname()
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for slot in range(per_gpu):
            for device in devices:
                lock = filelock.FileLock(folder / f"gpu{device}-{slot}.lock", timeout=0)
                try:
                    lock.acquire()
                except filelock.Timeout:
                    continue
                _held.append(lock)
                os.environ["CUDA_VISIBLE_DEVICES"] = device
                _limit_memory(1 / per_gpu)
                return device
        time.sleep(wait)
