"""The share of a training epoch in which the GPU computes, and whether compiling the model would pay.

    python benchmarks/gpu.py [--backbones resnet18 mobilenetv2] [--image-size 224] [--images 2050]

Each backbone trains as `medq.fit` does (images on the device, channels-last, fused Adam) in FP32 and FP16, as it is
and compiled. Images are noise: only time is measured. Prints images per second, the share of the epoch's time that is
covered by kernels, and after how many epochs of that size the compiled model has earned its compilation.
"""

import argparse
import time
from types import SimpleNamespace

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from medq import backbones, fit

CLASSES = 4


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["resnet18", "mobilenetv2", "vit_base"])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=2050)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("nothing measured: this needs a CUDA device, and torch sees none here.")
        return
    for backbone in options.backbones:
        for name, autocast in (("FP32", None), ("FP16", torch.float16)):
            seconds, share, _ = measure(options, backbone, autocast, compiled=False)
            faster, its_share, first = measure(options, backbone, autocast, compiled=True)
            print(
                f"{backbone} {name}: {options.images / seconds:.0f} images/s, GPU busy {share:.0%}; compiled "
                f"{options.images / faster:.0f} images/s, busy {its_share:.0%}, {pays_after(seconds, faster, first)}"
            )


def measure(options, backbone, autocast, compiled):
    """(seconds of a warm epoch, share of a profiled one that kernels cover, seconds of the first epoch)."""
    rng = np.random.default_rng(0)
    size = (options.images, options.image_size, options.image_size, 3)
    images = fit.Images(
        SimpleNamespace(
            images=rng.integers(0, 256, size, np.uint8),
            train=np.arange(options.images),
            labels=rng.integers(0, CLASSES, options.images),
        ),
        "cuda",
    )
    schedule = fit.Schedule(1, options.batch_size, 1e-4, 1e-4, 1, 0.0, 0, device="cuda", autocast=autocast)
    model = backbones.create(backbone, CLASSES, options.image_size).to("cuda", memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-4, fused=True)
    scaler = torch.amp.GradScaler("cuda", enabled=autocast == torch.float16)
    trained = torch.compile(model, dynamic=False) if compiled else model

    def epoch():
        torch.cuda.synchronize()
        start = time.perf_counter()
        with fit.deterministic(0, "cuda"), fit._compiling(compiled):
            fit._epoch(trained, images, optimizer, scaler, schedule, 0)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    first, seconds = epoch(), min(epoch() for _ in range(3))
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        profiled_seconds = epoch()
    kernels = [
        (event.time_range.start, event.time_range.end)
        for event in profiled.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return seconds, covered(kernels) / 1e6 / profiled_seconds, first


def covered(intervals):
    """Length of the union of (start, end) intervals."""
    total, reach = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reach))
        reach = max(reach, end)
    return total


def pays_after(eager, compiled, first):
    """In words: the number of epochs after which compiling has saved what it took."""
    return f"pays after {first / (eager - compiled):.0f} epochs" if compiled < eager else "never pays"


if __name__ == "__main__":
    main()
