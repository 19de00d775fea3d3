"""Augmentation against torchvision-free references: PIL's rotation, NumPy's flip, and the ranges of section 2.2."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from medq import augment


@pytest.fixture
def picture():
    """A smooth 48 × 64 colour image, so that interpolation differs little between implementations."""
    y, x = np.mgrid[0:48, 0:64]
    planes = [127 + 90 * np.sin(x / 9 + 1), 127 + 90 * np.cos(y / 7), 127 + 60 * np.sin((x + y) / 11)]
    return np.stack(planes, -1).astype(np.uint8)


def fixed(monkeypatch, flip, degrees, light):
    """Make the three draws come out as asked."""
    draws = torch.tensor(
        [
            0.1 if flip else 0.9,
            (degrees / augment.MAX_DEGREES + 1) / 2,
            (light - augment.BRIGHTNESS[0]) / (augment.BRIGHTNESS[1] - augment.BRIGHTNESS[0]),
        ]
    )
    monkeypatch.setattr(torch, "rand", lambda *shape, generator=None: draws.view(3, 1).expand(*shape).clone())


def augmented(picture):
    """One augmented image back on the scale of 0 to 255, [h, w, 3]."""
    x = augment.augment(torch.from_numpy(picture[None]), None)[0]
    mean, std = torch.tensor(augment.MEAN).view(3, 1, 1), torch.tensor(augment.STD).view(3, 1, 1)
    return ((x * std + mean) * 255).permute(1, 2, 0).numpy()


def test_images_are_normalised(picture):
    expected = (picture / 255 - np.array(augment.MEAN)) / np.array(augment.STD)
    plain = augment.normalise(torch.from_numpy(picture[None]))[0]
    np.testing.assert_allclose(plain.permute(1, 2, 0), expected, atol=1e-5)


@pytest.mark.parametrize("flip, light", [(False, 1.0), (True, 1.0), (False, 0.8), (False, 1.2)])
def test_flips_are_numpys_and_brightness_scales_and_clips(monkeypatch, picture, flip, light):
    fixed(monkeypatch, flip=flip, degrees=0, light=light)
    expected = picture[:, ::-1] if flip else picture
    np.testing.assert_allclose(augmented(picture), np.minimum(expected * light, 255), atol=1e-2)


@pytest.mark.parametrize("degrees", [-15, 6, 15])
def test_rotation_is_pils(monkeypatch, picture, degrees):
    fixed(monkeypatch, flip=False, degrees=degrees, light=1.0)
    ours = augmented(picture)
    candidates = [
        np.asarray(Image.fromarray(picture).rotate(sign * degrees, Image.Resampling.BILINEAR), float)
        for sign in (1, -1)
    ]
    inside = np.zeros(picture.shape[:2], bool)
    inside[12:-12, 12:-12] = True  # PIL and grid_sample treat the black border differently
    gaps = [np.abs(ours - candidate)[inside].max() for candidate in candidates]
    assert min(gaps) < 4 < max(gaps)


def test_each_image_is_drawn_on_its_own_and_from_the_generator_alone(picture):
    batch = torch.from_numpy(np.repeat(picture[None], 16, 0))
    first = augment.augment(batch, torch.Generator().manual_seed(1))
    torch.rand(7)
    again = augment.augment(batch, torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    assert len({tuple(image.flatten()[::97].tolist()) for image in first}) == 16
    assert not torch.equal(first, augment.augment(batch, torch.Generator().manual_seed(2)))


def test_draws_stay_in_the_papers_ranges():
    """Two ramps, whose slopes at the centre tell each image's angle, mirroring and brightness."""
    y, x = np.mgrid[:8, :8]
    ramps = torch.from_numpy(np.stack([20 + 10 * x, 20 + 10 * y, 0 * x], -1).astype(np.uint8)).expand(5000, -1, -1, -1)
    out = augment.augment(ramps, torch.Generator().manual_seed(0))
    slope = (out[:, :2, 3, 4] - out[:, :2, 3, 3]) * torch.tensor(augment.STD[:2]) * 25.5
    degrees = torch.atan2(slope[:, 1], slope[:, 0].abs()) * 180 / math.pi
    light = slope.norm(dim=1)
    assert -15.001 <= degrees.min() < -14.9 and 14.9 < degrees.max() <= 15.001
    assert 0.7999 <= light.min() < 0.802 and 1.198 < light.max() <= 1.2001
    assert 0.48 < (slope[:, 0] < 0).float().mean() < 0.52
