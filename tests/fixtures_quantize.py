"""A small network that can be trained in a second, has every kind of layer that matters to quantization, and images
for it: what the tests of `medq.quantize` and of the studies share."""

from functools import cache

import numpy as np
import torch
from torch import nn

from medq import _torchvision, params as profiles, paths
from medq.augment import normalise
from medq.datasets.partition import Partition

_torchvision.ensure()
from timm.layers import BatchNormAct2d  # noqa: E402

SIZE, CLASSES = 32, ("a", "b", "c", "d")
COLOURS = (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)  # the channels that each class brightens


class SmallNet(nn.Module):
    """Convolution, batch norm and ReLU6; a depthwise one with timm's combined layer; a residual sum; a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False)
        self.norm = BatchNormAct2d(16, act_layer=nn.ReLU)
        self.mix = nn.Conv2d(16, 16, 1)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.stem(x)
        x = self.relu(x + self.mix(self.norm(self.depthwise(x))))
        return self.head(self.pool(x).flatten(1))


def images(n, seed=0):
    """(uint8 [n, 32, 32, 3], labels [n]): a disc whose colour and place tell the class, in noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    y, x = np.mgrid[:SIZE, :SIZE]
    found = rng.normal(70, 15, (n, SIZE, SIZE, 3))
    for i, label in enumerate(labels):
        cy, cx = np.array([(10, 10), (10, 22), (22, 10), (22, 22)])[label] + rng.integers(-3, 4, 2)
        disc = (y - cy) ** 2 + (x - cx) ** 2 < 30
        found[i] += disc[..., None] * np.array(COLOURS[label]) * rng.normal(60, 15)
    return found.clip(0, 255).astype(np.uint8), labels


@cache
def part():
    """128 training and 96 held-out images as a `Partition`; the held-out ones in the order of their classes."""
    pixels, labels = images(224)
    held_out = 128 + np.argsort(labels[128:], kind="stable")
    ids = np.array([f"image-{i:03d}" for i in range(224)])
    return Partition(pixels, labels, ids, CLASSES, np.arange(128), held_out, held_out)


@cache
@torch.inference_mode(False)  # whichever test asks first
def trained():
    """A `SmallNet` trained for a second: use it, do not change it."""
    torch.manual_seed(0)
    model, data = SmallNet().train(), part()
    x, y = normalise(torch.from_numpy(data.images[data.train])), torch.from_numpy(data.labels[data.train])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(60):
        rows = torch.arange(32) + 32 * (step % 4)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model.eval()


def batch(n=32):
    """The first `n` training images, normalised."""
    return normalise(torch.from_numpy(part().images[:n]))


def cell(regime="ptq-fbgemm", backbone="mobilenetv2"):
    """(params, cell) of a profile that fits `part`."""
    params = profiles.load("smoke", calibration={"images": 64, "sizes": [32, 64, 96, 128, 256], "subsets": 2})
    return params, paths.Cell("tiny", "phantom-BrainMRI", backbone, regime)
