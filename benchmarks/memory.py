"""Training steps with freed memory kept in the process (`finetune.keep_memory`), against glibc's defaults.

    python benchmarks/memory.py [--backbone mobilenetv2] [--image-size 224] [--steps 4] [--repeats 3]

Each measurement is a process of its own, since the allocator cannot be set back; the two take turns. Printed are the
median CPU time of an image, its part spent in the kernel, and the ratio of the two medians.
"""

import argparse
import resource
import statistics
import subprocess
import sys

import torch
from torch.nn import functional as F

from medq import backbones, finetune

BATCH = 32


def milliseconds(backbone, image_size, steps):
    """(CPU time, part in the kernel) of one image in milliseconds."""
    torch.set_num_threads(1)
    model = backbones.create(backbone, 4, image_size).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)
    images = torch.randn(BATCH, 3, image_size, image_size).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 4, (BATCH,))
    for step in range(steps + 1):
        if step == 1:
            before = resource.getrusage(resource.RUSAGE_SELF)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    after = resource.getrusage(resource.RUSAGE_SELF)
    user, kernel = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return 1000 * (user + kernel) / steps / BATCH, 1000 * kernel / steps / BATCH


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mobilenetv2")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", choices=["kept", "default"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        if options.measure == "kept":
            finetune.keep_memory()
        print(*milliseconds(options.backbone, options.image_size, options.steps))
        return
    found = {"default": [], "kept": []}
    for _ in range(options.repeats):
        for name, times in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", name]
            times.append([float(v) for v in subprocess.check_output(command, text=True).split()])
    total = {name: statistics.median(t for t, _ in times) for name, times in found.items()}
    for name, times in found.items():
        kernel = statistics.median(k for _, k in times)
        print(f"{name:8} {total[name]:6.1f} ms of CPU an image, {kernel:.1f} of them in the kernel")
    print(f"ratio    {total['default'] / total['kept']:6.2f}")


if __name__ == "__main__":
    main()
