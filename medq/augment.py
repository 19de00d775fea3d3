"""Preprocessing of section 2.2, on whole batches and on the device that trains."""

import math

import torch
from torch.nn import functional as F

MEAN = (0.485, 0.456, 0.406)  # ImageNet statistics
STD = (0.229, 0.224, 0.225)
MAX_DEGREES = 15.0
BRIGHTNESS = (0.8, 1.2)


def normalise(images):
    """uint8 [n, h, w, 3] to float32 [n, 3, h, w] (channels-last in memory) with ImageNet statistics."""
    return _standardise(images.permute(0, 3, 1, 2).float().div_(255))


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
    light = (BRIGHTNESS[0] + (BRIGHTNESS[1] - BRIGHTNESS[0]) * light).to(images.device)
    height, width = images.shape[1:3]
    cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros(n)
    # Rows of the inverse map in normalised coordinates; the aspect ratio keeps a rotation a rotation.
    theta = torch.stack([torch.stack([flip * cos, flip * -sin * height / width, zero], 1),
                         torch.stack([sin * width / height, cos, zero], 1)], 1).to(images.device)
    x = images.permute(0, 3, 1, 2).float().div_(255)
    grid = F.affine_grid(theta, x.shape, align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    x = x.mul_(light.view(n, 1, 1, 1)).clamp_(max=1)
    return _standardise(x)


def _standardise(x):
    mean = torch.tensor(MEAN, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=x.device).view(1, 3, 1, 1)
    return x.sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)
