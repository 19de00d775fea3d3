"""Preprocessing of section 2.2, on whole batches and on the device that trains.

Copies to the device are queued, not waited for: a GPU computes on while the next batch is prepared.
"""

import math

import torch
from torch.nn import functional as F

MEAN = (0.485, 0.456, 0.406)  # ImageNet statistics
STD = (0.229, 0.224, 0.225)
MAX_DEGREES = 15.0
BRIGHTNESS = (0.8, 1.2)


def normalise(images):
    """uint8 [n, h, w, 3] to float32 [n, 3, h, w] (channels-last in memory) with ImageNet statistics."""
    return _standardise(unnormalised(images))


def unnormalised(images):
    """uint8 [n, h, w, 3] to float32 [n, 3, h, w] in [0, 1]: what a pipeline that forgets to normalise would feed."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def augment(images, generator):
    """uint8 [n, h, w, 3] to normalised float32 [n, 3, h, w], each image flipped, turned and lit on its own.

    Horizontal flip with probability 1/2, rotation within ±15° about the centre (black corners), brightness in
    [0.8, 1.2] clipped to white (section 2.2). `generator` is a CPU generator: the draws do not depend on the device.
    """
    n = len(images)
    flip, angle, light = torch.rand(3, n, generator=generator)
    flip = torch.where(flip < 0.5, -1.0, 1.0)
    angle = (2 * angle - 1) * math.radians(MAX_DEGREES)
    light = BRIGHTNESS[0] + (BRIGHTNESS[1] - BRIGHTNESS[0]) * light
    x = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    flip, angle, light = torch.stack([flip, angle, light]).to(x.device, non_blocking=True)
    grid = _grid(flip, angle, *x.shape[2:])
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _standardise(x.mul_(light.view(n, 1, 1, 1)).clamp_(max=1))


def _grid(flip, angle, height, width):
    """Where each output pixel looks, [n, h, w, 2] in [-1, 1]: cheaper than `affine_grid`, which multiplies matrices."""
    cos, sin = torch.cos(angle).view(-1, 1, 1), torch.sin(angle).view(-1, 1, 1)
    x = ((torch.arange(width, device=angle.device) * 2 + 1) / width - 1).view(1, 1, -1)
    y = ((torch.arange(height, device=angle.device) * 2 + 1) / height - 1).view(1, -1, 1)
    # In units of half the width and half the height; their ratio keeps a rotation a rotation.
    across = flip.view(-1, 1, 1) * (cos * x - sin * (height / width) * y)
    down = sin * (width / height) * x + cos * y
    return torch.stack([across, down], -1)


def _standardise(x):
    mean, std = torch.tensor([MEAN, STD]).view(2, 1, 3, 1, 1).to(x.device, non_blocking=True)
    return x.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
