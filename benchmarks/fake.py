"""Quantization-aware training steps with medq's fake quantization, against PyTorch's own (the same values bit by bit).

    python benchmarks/fake.py [--backbone mobilenetv2] [--engine fbgemm] [--image-size 224] [--steps 2] [--repeats 3]

Both train copies of one model on the CPU with one thread and take turns, so that a drifting machine moves both. Printed are
the median time of a step, the ratio of the two, and whether the trained weights are the same.
"""

import argparse
import copy
import statistics
import time

import torch
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize
from torch.nn import functional as F

from medq import backbones, finetune
from medq.quantize import fake, static

BATCH = 32


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mobilenetv2")
    parser.add_argument("--engine", default="fbgemm")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    finetune.keep_memory()
    torch.manual_seed(0)
    float_model = backbones.create(options.backbone, 4, options.image_size)
    ours = static.prepare_training(float_model, options.engine, options.image_size)
    ours = ours.train().to(memory_format=torch.channels_last)
    theirs = copy.deepcopy(ours)
    for module in theirs.modules():
        if type(module) is fake.ObservedFakeQuantize:
            module.__class__ = FusedMovingAvgObsFakeQuantize
        vars(module).pop("_forward_approximate", None)
    models, times = {"PyTorch": theirs, "medq": ours}, {"PyTorch": [], "medq": []}
    optimizers = {name: torch.optim.Adam(model.parameters(), 1e-5, fused=True) for name, model in models.items()}
    size = (BATCH, 3, options.image_size, options.image_size)
    images = torch.randn(size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 4, (BATCH,))
    for repeat in range(options.repeats + 1):
        for name, model in models.items():
            torch.manual_seed(repeat)  # dropout
            started = time.perf_counter()
            for _ in range(options.steps if repeat else 1):
                optimizers[name].zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizers[name].step()
            if repeat:  # the first step finds its kernels and its memory
                times[name].append((time.perf_counter() - started) / options.steps)
    seconds = {name: statistics.median(found) for name, found in times.items()}
    for name, value in seconds.items():
        print(f"{name:8} {value:.3f} s for a step of {BATCH} images")
    trained = ours.state_dict()
    same = all(torch.equal(value, trained[name]) for name, value in theirs.state_dict().items())
    print(f"{seconds['PyTorch'] / seconds['medq']:.2f} times as fast; trained weights {'equal' if same else 'differ'}")


if __name__ == "__main__":
    main()
