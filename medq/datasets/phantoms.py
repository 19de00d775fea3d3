"""Generated images that stand in for the three datasets: no download, the same bytes on every machine.

What a class shows is a row of `FINDINGS`. Every value is computed from PCG64's raw 64-bit output by +, -, ×, ÷, square
root and comparison of doubles, element by element, which IEEE 754 rounds alike everywhere: no sine, exponential, matrix
product or sum whose order a library may choose. Each image depends on its own path alone:
`phantom:<stands_for>/<class>/<number>/<view>?side=64&seed=42`.

The drawings exercise software. No conclusion about medicine can be drawn from them.
"""

import functools
import hashlib
from typing import NamedTuple
from urllib.parse import parse_qsl

import numpy as np
import pandas as pd

VERSION = 2  # part of the pixels' fingerprint: raise it whenever a drawing changes
MISLABELLED = 0.03  # share of subjects that look like another class
VIEWS = (1, 1, 1, 1, 1, 1, 2, 2, 3, 3)  # views per lesion, drawn from: HAM10000 has 1.34 images per lesion


def index(spec):
    """Index of a phantom dataset, as medq.datasets.index gives for one on disk; `path` says what to draw.

    Counts come from `spec.release`. For the grouped dataset (SkinCancer) an image is one of several views of a lesion
    and `group` is the lesion.
    """
    phantom, rows = spec.phantom, []
    for label, name in enumerate(spec.classes):
        number = 0
        for part, wanted in spec.release.items():
            part, left = "" if part == "all" else part, wanted[name]
            while left > 0:
                subject = f"{phantom.stands_for}/{name}/{number}"
                draw = _Draw(phantom.seed, subject, "views")
                views = VIEWS[int(draw() * len(VIEWS))] if spec.grouped else 1
                group = "/".join([*([part] if part else []), name, f"{number:04d}"])
                for view in range(min(views, left)):
                    image_id = f"{group}/{view}" if spec.grouped else group
                    path = f"phantom:{subject}/{view}?side={phantom.image_size}&seed={phantom.seed}"
                    rows.append((image_id, path, label, group, part))
                left, number = left - views, number + 1
    frame = pd.DataFrame(rows, columns=["image_id", "path", "label", "group", "split"])
    return frame.sort_values("image_id", kind="stable", ignore_index=True)


@functools.lru_cache(maxsize=4096)
def draw(path):
    """The image that a phantom's path names: uint8 [side, side, 3], read-only (kept for the next call)."""
    subject, _, query = path.removeprefix("phantom:").partition("?")
    stands_for, name, number, _ = subject.split("/")
    side, seed = (int(value) for _, value in parse_qsl(query))
    scene, findings = SCENES[stands_for], FINDINGS[stands_for]
    own, view = _Draw(seed, f"{stands_for}/{name}/{number}", "subject"), _Draw(seed, subject, "view")
    if own() < MISLABELLED:
        name = own.choice([other for other in findings if other != name])
    centres = (np.arange(side) * 2 + 1 - side) / side
    x, y = np.meshgrid(centres, centres)
    image, region = scene(own, x, y)
    if stands_for == "SkinCancer":  # a view is the same lesion, turned, shifted, nearer or farther
        x, y = _turned(x - view(-0.14, 0.14), y - view(-0.14, 0.14), view.turn())
        x, y = (c * view.sign() / view(0.85, 1.15) for c in (x, y))
    image = _painted(own, findings[name], x, y, image, region)
    light = (0.85 + 0.3 * view.clouds(x, y, 2)) * view(0.88, 1.1)
    image = image * light[..., None] + view(0.012, 0.035) * view.grain((side, side, 1))
    pixels = np.floor(np.broadcast_to(image, (side, side, 3)).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    pixels.flags.writeable = False
    return pixels


class _Draw:
    """A stream of uniform doubles for one subject and purpose, from PCG64's raw (and stable) output."""

    def __init__(self, seed, subject, purpose):
        key = hashlib.sha256(f"{seed}/{subject}/{purpose}".encode()).digest()
        self._bits = np.random.PCG64(int.from_bytes(key[:16], "big"))

    def __call__(self, low=0.0, high=1.0):
        return low + (high - low) * ((self._bits.random_raw() >> 11) / 2**53)

    def array(self, shape):
        return (self._bits.random_raw(int(np.prod(shape))) >> np.uint64(11)).reshape(shape) / 2**53

    def choice(self, items):
        return items[int(self() * len(items))]

    def sign(self):
        return 1.0 if self() < 0.5 else -1.0

    def turn(self, most=1.0):
        """(cosine, sine) of an angle within ±2 arctan(most), by rational functions: most = 1 is ±90°."""
        t = self(-most, most)
        return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)

    def grain(self, shape):
        """Noise of mean 0 and standard deviation 1 that looks normal: the sum of three uniforms."""
        return (self.array(shape) + self.array(shape) + self.array(shape) - 1.5) * 2.0

    def clouds(self, x, y, cells):
        """Smooth noise in [0, 1] at coordinates in [-1, 1], held beyond: a random lattice, interpolated."""
        lattice = self.array((cells + 2, cells + 2))
        u, v = ((c + 1).clip(0, 2) * (cells / 2) for c in (x, y))
        i, j = np.floor(u).astype(int), np.floor(v).astype(int)
        f, g = _smooth(u - i), _smooth(v - j)
        top = lattice[j, i] + (lattice[j, i + 1] - lattice[j, i]) * f
        bottom = lattice[j + 1, i] + (lattice[j + 1, i + 1] - lattice[j + 1, i]) * f
        return top + (bottom - top) * g

    def rough(self, x, y, cells):
        """Clouds on three scales, in [0, 1]."""
        coarse, middle, fine = (self.clouds(x, y, times * cells) for times in (1, 2, 4))
        return (4 * coarse + 2 * middle + fine) / 7


def _smooth(t):
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def _inside(distance, width):
    """1 where distance is negative, 0 where positive, with an edge of `width`."""
    return _smooth(0.5 - distance / width)


def _mix(image, value, share):
    return image + (value - image) * share


def _turned(x, y, turn):
    cos, sin = turn
    return cos * x + sin * y, cos * y - sin * x


def _ellipse(x, y, centre, axes):
    """Normalised radius: 1 on the ellipse."""
    u, v = (x - centre[0]) / axes[0], (y - centre[1]) / axes[1]
    return np.sqrt(u * u + v * v)


def _head(own, x, y):
    """An axial slice: scalp, skull, folded grey and white matter, two ventricles."""
    x, y = _turned(x - own(-0.05, 0.05), y - own(-0.04, 0.04), own.turn(0.06))
    rho = _ellipse(x, y, (0, 0), (own(0.66, 0.76), own(0.80, 0.92))) + 0.06 * (own.clouds(x, y, 4) - 0.5)
    folds = 1 - np.abs(2 * own.clouds(x, y, 14) - 1)
    depth = own(0.80, 0.85) - rho
    tissue = _mix(own(0.36, 0.44), own(0.50, 0.60), _smooth((depth - 0.10 - 0.25 * folds) / 0.12))
    size, height = own(0.7, 1.4), own(-0.14, 0.05)
    for side in (-1, 1):
        ventricle = _ellipse(x, y, (side * 0.11 * size, height), (0.06 * size, 0.22 * size))
        tissue = _mix(tissue, 0.14, _inside(ventricle - 1, 0.5))
    image = _mix(0.02, own(0.6, 0.8), _inside(rho - 1, 0.05))
    image = _mix(image, 0.1, _inside(rho - own(0.91, 0.95), 0.04))
    region = _inside(-depth, 0.04)
    return _mix(image, tissue, region)[..., None], region


def _chest(own, x, y):
    """A frontal radiograph: body, two lungs beside the heart, ribs, spine."""
    x, y = _turned(x - own(-0.06, 0.06), y - own(-0.05, 0.05), own.turn(0.03))
    across, top = np.abs(x), own(0.62, 0.78)
    body = _inside(-y - own(0.8, 0.95) + 0.55 * _smooth((across - 0.25) / 0.75), 0.12) * _inside(across - 0.98, 0.08)
    lungs = np.zeros_like(x)
    for side in (-1, 1):
        lung = _ellipse(x, y, (side * own(0.42, 0.48), own(0.05, 0.15)), (own(0.30, 0.38), top))
        lungs = np.maximum(
            lungs, _inside(lung + 0.1 * (own.clouds(x, y, 4) - 0.5) - 1, 0.16) * _inside(y - own(0.45, 0.6), 0.07)
        )
    lungs = lungs * _smooth((_ellipse(x, y, (own(0.08, 0.15), 0.32), (own(0.26, 0.38), 0.32)) - 0.92) / 0.16)
    vessels = 1 - np.abs(2 * own.clouds(x, y, 13) - 1)
    air = own(0.16, 0.26) + 0.3 * vessels * _smooth(1 - _ellipse(across, y, (0.16, 0.02), (0.45, 0.5)))
    image = _mix(_mix(0.03, own(0.56, 0.70) + 0.1 * y, body), air, lungs)
    ribs = _smooth(1 - np.abs((y - 0.5 * (across - 0.1) * (across - 0.1) + own(0, 1)) * 5.4 % 1 - 0.5) / 0.16)
    spine = _smooth(1 - across / 0.12)
    return (image + body * (0.08 * ribs * _smooth((across - 0.1) / 0.1) + 0.1 * spine))[..., None], lungs


def _skin(own, x, y):
    skin = np.array(own.choice(SKIN)) * own(0.92, 1.06)
    return skin * (1 + 0.1 * (own.rough(x, y, 9)[..., None] - 0.5)), np.ones_like(x)


def _painted(own, finding, x, y, image, region):
    """`image` with a subject's findings, mixed in by their strength within `region`."""
    for _ in range(own.choice(finding.count)):
        size, stretch = own(*finding.size), own(1, finding.stretch)
        centre = PLACES[finding.place](own)
        u, v = _turned(x - centre[0], y - centre[1], own.turn())
        u, v = u / size, v / size
        radius = _ellipse(u, v, (0, 0), (stretch, 1 / stretch)) + finding.ragged * (own.rough(u / 2, v / 2, 4) - 0.5)
        texture = _smooth(own.clouds(u / 2, v / 2, finding.cells) * 3 - 1)[..., None]
        colour = _mix(np.array(finding.colour) * own(0.9, 1.1), np.array(finding.marks), texture * own(0.4, 1))
        share = own(0.45, 1.0) * _inside(radius - 1, finding.soft) * region
        image = _mix(image, colour, share[..., None])
    return image


class Finding(NamedTuple):
    """What the subjects of a class show: how many, where, how large (1: half of the image), how elongated, ragged and
    soft; their colour, and that of the marks in them, of which about `cells` fit across.
    """

    count: tuple
    place: str
    size: tuple
    stretch: float
    ragged: float
    soft: float
    colour: tuple
    marks: tuple
    cells: int


PLACES = {
    "hemisphere": lambda own: (own.sign() * own(0.18, 0.42), own(-0.45, 0.4)),
    "skull": lambda own: tuple(own(0.45, 0.6) * c for c in own.turn()[:: 1 if own() < 0.5 else -1]),
    "midline": lambda own: (own(-0.04, 0.04), own(0.16, 0.30)),
    "lower lungs": lambda own: (own.sign() * own(0.42, 0.70), own(-0.1, 0.5)),
    "hila": lambda own: (own.sign() * own(0.2, 0.35), own(-0.15, 0.2)),
    "anywhere": lambda own: (own(-0.5, 0.5), own(-0.6, 0.6)),
    "centre": lambda own: (0, 0),
}
SKIN = ((0.90, 0.74, 0.66), (0.84, 0.62, 0.55), (0.78, 0.60, 0.52), (0.88, 0.66, 0.62))
FINDINGS = {
    "BrainMRI": {
        "glioma": Finding((1,), "hemisphere", (0.20, 0.36), 1.3, 1.1, 0.6, (0.85,), (0.25,), 6),
        "meningioma": Finding((1,), "skull", (0.16, 0.28), 1.2, 0.3, 0.25, (0.90,), (0.78,), 3),
        "notumor": Finding((0, 1, 1, 2), "anywhere", (0.03, 0.08), 1.6, 0.0, 0.6, (0.86,), (0.80,), 2),
        "pituitary": Finding((1,), "midline", (0.12, 0.20), 1.3, 0.3, 0.3, (0.92,), (0.80,), 3),
    },
    "ChestXray": {
        "COVID": Finding((2, 3, 4, 5), "lower lungs", (0.18, 0.34), 1.4, 0.8, 0.9, (0.78,), (0.55,), 6),
        "Normal": Finding((0, 0, 0, 1), "anywhere", (0.15, 0.30), 1.3, 0.5, 0.9, (0.60,), (0.45,), 4),
        "Viral Pneumonia": Finding((2, 3, 4), "hila", (0.40, 0.60), 1.5, 0.5, 1.2, (0.60,), (0.35,), 12),
    },
    "SkinCancer": {
        "akiec": Finding((1,), "centre", (0.35, 0.62), 1.5, 0.9, 0.6, (0.76, 0.46, 0.41), (0.95, 0.88, 0.80), 15),
        "bcc": Finding((1,), "centre", (0.28, 0.55), 1.4, 0.7, 0.4, (0.73, 0.50, 0.49), (0.36, 0.36, 0.44), 7),
        "bkl": Finding((1,), "centre", (0.32, 0.62), 1.5, 0.7, 0.2, (0.59, 0.42, 0.32), (0.90, 0.82, 0.70), 18),
        "df": Finding((1,), "centre", (0.26, 0.46), 1.2, 0.4, 0.5, (0.66, 0.46, 0.39), (0.93, 0.86, 0.82), 3),
        "mel": Finding((1,), "centre", (0.38, 0.68), 1.6, 1.0, 0.2, (0.37, 0.25, 0.22), (0.42, 0.45, 0.55), 5),
        "nv": Finding((1,), "centre", (0.24, 0.56), 1.35, 0.35, 0.3, (0.50, 0.33, 0.26), (0.30, 0.19, 0.15), 20),
        "vasc": Finding((1,), "centre", (0.22, 0.46), 1.3, 0.5, 0.2, (0.57, 0.18, 0.24), (0.30, 0.06, 0.14), 8),
    },
}
SCENES = {"BrainMRI": _head, "ChestXray": _chest, "SkinCancer": _skin}
