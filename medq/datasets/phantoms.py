"""Generated images that stand in for the three datasets: no download, the same bytes on every machine.

Every value comes from PCG64's raw 64-bit output, and from nothing but +, -, ×, ÷, square root and comparison
of doubles, element by element: operations that IEEE 754 rounds alike everywhere. No sine, no exponential, no
matrix product, no sum whose order a library may choose. Each image depends on its own path alone, so that it
can be drawn by itself:
`phantom:<stands_for>/<class>/<number>/<view>?side=64&seed=42&contrast=1.0&noise=0.04`.

They are drawings for exercising software. No conclusion about medicine can be drawn from them.
"""

import functools
import hashlib
from urllib.parse import parse_qsl

import numpy as np
import pandas as pd

VERSION = 1  # part of the pixels' fingerprint: raise it whenever a drawing changes
VIEWS = (1, 1, 1, 1, 1, 1, 2, 2, 3, 3)  # views per lesion, drawn from: HAM10000 has 1.34 images per lesion


def index(spec):
    """Index of a phantom dataset, as medq.datasets.index gives for one on disk; `path` says what to draw.

    Counts come from `spec.release`. For the grouped dataset (SkinCancer) an image is one of several views of
    a lesion and `group` is the lesion.
    """
    rows = []
    for label, name in enumerate(spec.classes):
        first = 0
        for part, wanted in spec.release.items():
            of_part, first = _rows(spec, label, name, "" if part == "all" else part, first, wanted[name])
            rows += of_part
    frame = pd.DataFrame(rows, columns=["image_id", "path", "label", "group", "split"])
    return frame.sort_values("image_id", kind="stable", ignore_index=True)


def _rows(spec, label, name, part, first, wanted):
    phantom, rows, number = spec.phantom, [], first
    query = f"side={phantom.image_size}&seed={phantom.seed}&contrast={phantom.contrast}&noise={phantom.label_noise}"
    while len(rows) < wanted:
        subject = f"{phantom.stands_for}/{name}/{number}"
        draw = _Draw(phantom.seed, subject, "views")
        views = VIEWS[int(draw() * len(VIEWS))] if spec.grouped else 1
        for view in range(min(views, wanted - len(rows))):
            group = "/".join([*([part] if part else []), name, f"{number:04d}"])
            image_id = f"{group}/{view}" if spec.grouped else group
            rows.append((image_id, f"phantom:{subject}/{view}?{query}", label, group, part))
        number += 1
    return rows, number


def generate(spec):
    """All images of a phantom dataset: (uint8 [n, side, side, 3], its index). Takes a few seconds."""
    frame = index(spec)
    return np.stack([draw(path) for path in frame["path"]]), frame


@functools.lru_cache(maxsize=4096)
def draw(path):
    """The image that a phantom's path names: uint8 [side, side, 3], read-only (kept for the next call)."""
    subject, _, query = path.removeprefix("phantom:").partition("?")
    stands_for, name, number, view = subject.split("/")
    options = dict(parse_qsl(query))
    seed, side = int(options["seed"]), int(options["side"])
    painter, names = PAINTERS[stands_for]
    own = _Draw(seed, f"{stands_for}/{name}/{number}", "subject")
    if own() < float(options["noise"]):  # a mistaken label: the subject looks like another class
        name = own.choice([other for other in names if other != name])
    centres = (np.arange(side) * 2 + 1 - side) / side
    x, y = np.meshgrid(centres, centres)
    image = painter(own, _Draw(seed, subject, "view"), name, x, y, float(options["contrast"]))
    pixels = np.floor(image.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    pixels.flags.writeable = False
    return pixels


class _Draw:
    """A stream of uniform doubles for one subject and purpose, from PCG64's raw (and stable) output."""

    def __init__(self, seed, subject, purpose):
        key = hashlib.sha256(f"{seed}/{subject}/{purpose}".encode()).digest()
        self._bits = np.random.PCG64(int.from_bytes(key[:16], "big"))

    def __call__(self, low=0.0, high=1.0):
        return low + (high - low) * ((self._bits.random_raw() >> 11) / 2**53)

    def array(self, shape, low=0.0, high=1.0):
        raw = self._bits.random_raw(int(np.prod(shape))) >> np.uint64(11)
        return low + (high - low) * (raw.reshape(shape) / 2**53)

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


def _ellipse(x, y, centre, axes, turn=(1.0, 0.0)):
    """Normalised radius: 1 on the ellipse."""
    u, v = _turned(x - centre[0], y - centre[1], turn)
    return np.sqrt((u / axes[0]) * (u / axes[0]) + (v / axes[1]) * (v / axes[1]))


def _bump(radius):
    """1 at radius 0, falling smoothly to 0 at radius 1."""
    return _smooth(1 - radius)


def _grey(image):
    return np.repeat(image[..., None], 3, axis=2)


# Axial head slices

TISSUES = {  # scalp, skull, cerebrospinal fluid, grey matter, white matter, oedema, enhancing tumour
    "T1": (0.78, 0.10, 0.14, 0.40, 0.55, 0.33, 0.86),
    "T2": (0.55, 0.07, 0.80, 0.50, 0.36, 0.74, 0.92),
}


def _brain(own, view, name, x, y, contrast):
    scalp, skull, fluid, grey, white, oedema, tumour = TISSUES["T1" if own() < 0.8 else "T2"]
    axes = own(0.66, 0.76), own(0.80, 0.92)
    u, v = _turned(x - own(-0.05, 0.05), y - own(-0.04, 0.04), own.turn(0.06))
    u, v = u / axes[0], v / axes[1]
    rho = np.sqrt(u * u + v * v) + 0.05 * (own.clouds(u, v, 4) - 0.5)
    gyri = own.clouds(u + 0.14 * own.clouds(u, v, 6), v + 0.14 * own.clouds(u, v, 6), 15)
    folds = 1 - np.abs(2 * gyri - 1)
    depth = own(0.80, 0.85) - rho
    tissue = _mix(grey, white, _smooth((depth - 0.10 - 0.22 * folds) / 0.10))
    tissue = _mix(tissue, fluid, _smooth(folds * 2.4 - 1.4) * _smooth(1 - depth / 0.24))
    fissure = np.abs(u + 0.05 * (own.clouds(u, v, 3) - 0.5))
    tissue = _mix(tissue, fluid, 0.75 * _smooth(1 - fissure / 0.045) * _smooth((np.abs(v) - 0.22) / 0.15))
    size, lean, height = own(0.75, 1.35), own(0.10, 0.20), own(-0.14, 0.0)
    for side in (-1, 1):
        nucleus = _ellipse(u, v, (side * 0.24, height + 0.12), (0.12, 0.20))
        tissue = _mix(tissue, grey, 0.8 * _inside(nucleus - 1, 0.4))
        for end in (-1, 1):
            horn = _ellipse(
                u,
                v,
                (side * (0.07 + 0.05 * size), height + end * 0.15 * size),
                (0.060 * size, 0.17 * size),
                _unit(1, -end * side * lean * 2),
            )
            tissue = _mix(tissue, fluid, _inside(horn - 1, 0.5))
    tissue = _mix(tissue, fluid, 0.7 * _inside(_ellipse(u, v, (0, height + 0.22), (0.03, 0.09)) - 1, 0.6))
    strength = contrast * own(0.45, 1.0)
    tissue = _tumour(own, name, u, v, tissue, (fluid, oedema, tumour), strength)
    image = _mix(0.02, scalp, _inside(rho - 1, 0.05))
    image = _mix(image, skull, _inside(rho - own(0.92, 0.95), 0.04))
    image = _mix(image, fluid * 0.8, _inside(-depth - 0.04, 0.04))
    image = _mix(image, tissue, _inside(-depth, 0.04))
    image = image * (0.8 + 0.4 * view.clouds(x, y, 2)) * view(0.85, 1.1)
    spread = view(0.015, 0.045)  # magnitude images have Rician noise
    real, imaginary = image + spread * view.grain(x.shape), spread * view.grain(x.shape)
    return _grey(np.sqrt(real * real + imaginary * imaginary))


def _unit(c, s):
    length = np.sqrt(c * c + s * s)
    return c / length, s / length


def _tumour(own, name, u, v, tissue, levels, strength):
    """Glioma: ragged, in a hemisphere, rim, dead core, oedema. Meningioma: smooth, even, at the skull or the
    falx. Pituitary: small, even, on the midline. No tumour: a bright vessel or two."""
    fluid, oedema, tumour = levels
    ragged = own.rough(u, v, 5) - 0.5
    if name == "glioma":
        centre, r = (own.sign() * own(0.20, 0.48), own(-0.48, 0.45)), own(0.18, 0.34)
        radius = _ellipse(u, v, centre, (r, r * own(0.8, 1.25)), own.turn()) + 1.1 * ragged
        tissue = _mix(tissue, oedema, strength * _inside(radius - 1.7, 0.8))
        rim = tumour * (0.75 + 0.5 * own.clouds(u, v, 12))
        tissue = _mix(tissue, rim, strength * _inside(radius - 1, 0.35))
        return _mix(tissue, fluid, strength * own(0.2, 0.9) * _inside(radius - own(0.3, 0.7), 0.5))
    if name == "meningioma":
        r, (c, s) = own(0.15, 0.29), own.turn()
        reach = 0.82 - 0.6 * r
        falx = own() < 0.25
        centre = own.sign() * reach * c, reach * s
        if falx:
            centre = own.sign() * 0.7 * r, own.sign() * own(0.3, 0.6)
        radius = _ellipse(u, v, centre, (r, r * own(0.85, 1.15))) + 0.25 * ragged
        return _mix(tissue, tumour, strength * _inside(radius - 1, 0.25))
    if name == "pituitary":
        r = own(0.10, 0.20)
        cistern = _ellipse(u, v, (0, own(0.16, 0.26)), (r + 0.08, r + 0.05)) + 0.6 * ragged
        tissue = _mix(tissue, fluid, 0.8 * _inside(cistern - 1, 0.4))
        radius = _ellipse(u, v, (own(-0.04, 0.04), own(0.16, 0.28)), (r * own(0.9, 1.3), r)) + 0.3 * ragged
        return _mix(tissue, tumour, strength * _inside(radius - 1, 0.3))
    for _ in range(own.choice((0, 1, 1, 2))):
        vessel = _ellipse(u, v, (own(-0.5, 0.5), own(-0.6, 0.6)), (own(0.03, 0.08), own(0.03, 0.08)))
        tissue = _mix(tissue, tumour, strength * _inside(vessel - 1, 0.6))
    return tissue


# Chest radiographs


def _chest(own, view, name, x, y, contrast):
    x, y = _turned(x - own(-0.06, 0.06), y - own(-0.05, 0.05), own.turn(0.03))
    scale = own(0.90, 1.08)
    x, y = x / scale, y / scale
    across = np.abs(x)
    shoulder = y + own(0.80, 0.95) - 0.55 * _smooth((across - 0.25) / 0.75)
    body = _inside(-shoulder, 0.12) * _inside(across - own(0.95, 1.05) + 0.05 * y, 0.08)
    body = np.maximum(body, _inside(across - 0.24, 0.12))  # neck
    image = _mix(0.03, own(0.58, 0.70) + 0.10 * y, body)
    lungs, edge = _lungs(own, x, y)
    air = _mix(own(0.16, 0.26), 0.40, _smooth(edge / 0.9 + 0.1) * 0.6)
    hilum = _bump(_ellipse(across, y, (0.16, 0.02), (0.42, 0.50)))
    vessels = 1 - np.abs(2 * own.clouds(x, y, 14) - 1)
    air = air + 0.30 * hilum * (0.35 + 0.65 * vessels * vessels)
    haze = _opacities(own, name, x, y, edge) * contrast * own(0.35, 0.95)
    image = _mix(image, _mix(air, 0.78, haze.clip(0, 1)), lungs)
    for k in range(9):  # ribs: the rear ones fall outwards, the front ones inwards
        height = -0.82 + 0.185 * k
        rear = np.abs(y - height - 0.55 * (across - 0.1) * (across - 0.1) + 0.08)
        front = np.abs(y - height - 0.10 + 0.50 * (across - 0.15))
        bone = 0.05 * _smooth(1 - front / 0.05) * _smooth((across - 0.2) / 0.1)
        bone = bone + 0.10 * _smooth(1 - rear / 0.055)
        image = image + bone * body * _smooth((0.92 - across) / 0.1) * _smooth((across - 0.10) / 0.05)
    clavicle = np.abs(y + 0.66 + 0.14 * (across - 0.3)) + 0.02
    clavicle = _smooth(1 - clavicle / 0.07) * _inside(across - 0.62, 0.1) * _smooth((across - 0.08) / 0.08)
    image = image + 0.14 * clavicle
    spine = _smooth(1 - across / 0.11) * (0.8 + 0.2 * _smooth(np.abs((y * 6) % 2 - 1) * 2))
    image = image + 0.10 * spine * body
    if own() < 0.5:  # the side marker
        image = _mix(image, 0.95, _inside(np.maximum(np.abs(x - 0.82), np.abs(y + 0.80) * 0.7) - 0.045, 0.03))
    image = _mix(0.5, image, view(0.85, 1.15)) + view(-0.06, 0.06)
    return _grey(image + view(0.012, 0.035) * view.grain(x.shape))


def _lungs(own, x, y):
    """(share of lung in each pixel, normalised distance from the lungs' middle: 1 at their edge)."""
    top, wide = own(0.62, 0.74), own(0.33, 0.39)
    dome = {-1: own(0.44, 0.56), 1: own(0.50, 0.62)}
    heart = _ellipse(x, y, (own(0.08, 0.15), 0.32), (own(0.28, 0.40), 0.30), _unit(1, 0.6))
    lungs, edge = np.zeros_like(x), np.full_like(x, 9.0)
    for side in (-1, 1):
        centre = (side * own(0.43, 0.47), 0.10)
        reach = _ellipse(x, y, centre, (wide + 0.10 * y.clip(-0.8, 0.5), top + 0.12))
        reach = reach + 0.08 * (own.clouds(x, y, 4) - 0.5)
        floor = dome[side] + 0.5 * (x - side * 0.36) * (x - side * 0.36) + y * 0
        lung = _inside(reach - 1, 0.16) * _inside(y - floor, 0.07)
        lungs, edge = np.maximum(lungs, lung), np.minimum(edge, reach)
    return lungs * _smooth((heart - 0.92) / 0.16), edge


def _opacities(own, name, x, y, edge):
    """COVID: patches at the edge of the lower lungs. Viral pneumonia: streaks from the hila through all of
    both lungs. Normal: now and then a faint patch anywhere."""
    haze = np.zeros_like(x)
    patchy = own.rough(x, y, 6)
    if name == "COVID":
        for _ in range(own.choice((2, 3, 4, 5))):
            centre = own.sign() * own(0.42, 0.74), own(-0.30, 0.55)
            patch = _bump(_ellipse(x, y, centre, (own(0.16, 0.34), own(0.16, 0.36)), own.turn()))
            patch = patch * (0.6 + 0.8 * patchy) * (0.5 + 0.6 * _smooth(edge))
            haze = np.maximum(haze, patch * own(0.7, 1.3))
        return haze * 1.25
    if name == "Viral Pneumonia":
        streaks = 1 - np.abs(2 * own.rough(x, y, 9) - 1)
        spread = _bump(_ellipse(np.abs(x), y, (0.22, own(-0.05, 0.15)), (own(0.55, 0.75), own(0.8, 1.1))))
        return spread * (0.35 + 0.9 * streaks * streaks)
    if own() < 0.25:
        centre = own.sign() * own(0.25, 0.65), own(-0.4, 0.5)
        haze = _bump(_ellipse(x, y, centre, (own(0.15, 0.3), own(0.15, 0.3)))) * own(0.3, 0.9)
    return haze


# Dermoscopy

SKIN = ((0.90, 0.74, 0.66), (0.84, 0.62, 0.55), (0.78, 0.60, 0.52), (0.88, 0.66, 0.62))
LESIONS = {  # colours to mix between; size, raggedness of the border, its softness, elongation
    "akiec": (((0.80, 0.50, 0.44), (0.72, 0.42, 0.38)), (0.35, 0.62), 0.9, 0.55, 1.5),
    "bcc": (((0.80, 0.56, 0.54), (0.66, 0.44, 0.44)), (0.28, 0.55), 0.7, 0.40, 1.4),
    "bkl": (((0.66, 0.47, 0.36), (0.52, 0.36, 0.28)), (0.32, 0.62), 0.7, 0.20, 1.5),
    "df": (((0.72, 0.51, 0.42), (0.60, 0.42, 0.36)), (0.26, 0.46), 0.4, 0.50, 1.2),
    "mel": (((0.48, 0.32, 0.26), (0.26, 0.18, 0.18)), (0.38, 0.68), 1.0, 0.22, 1.6),
    "nv": (((0.58, 0.39, 0.30), (0.42, 0.28, 0.22)), (0.24, 0.56), 0.35, 0.28, 1.35),
    "vasc": (((0.68, 0.22, 0.26), (0.46, 0.14, 0.22)), (0.22, 0.46), 0.5, 0.22, 1.3),
}


def _skin(own, view, name, x, y, contrast):
    skin = np.array(own.choice(SKIN)) * own(0.92, 1.06)
    colours, sizes, ragged, soft, long = LESIONS[name]
    size, stretch = own(*sizes), own(1, long)
    # A view is the same lesion, turned, shifted, nearer or farther.
    u, v = _turned(x - view(-0.14, 0.14), y - view(-0.14, 0.14), view.turn(1))
    u, v = (c * view.sign() / (size * view(0.85, 1.15)) for c in (u, v))
    strength = contrast * own(0.45, 1.0)
    pale, dark = (_mix(skin, np.array(colour) * own(0.88, 1.12), strength) for colour in colours)
    radius = _ellipse(u, v, (0, 0), (stretch, 1 / stretch))
    radius = radius + ragged * own(0.5, 1.1) * (own.rough(u / 2, v / 2, 4) - 0.5)
    image = skin * (1 + 0.10 * (own.rough(x, y, 9)[..., None] - 0.5))
    shade = own.rough(u / 2, v / 2, 5)
    lesion = _mix(pale, dark, (_smooth(shade * 1.6 - 0.3))[..., None])
    lesion = _pattern(own, name, u / 2, v / 2, radius, lesion, strength)
    image = _mix(image, lesion, _inside(radius - 1, soft * own(0.7, 1.4))[..., None])
    for _ in range(view.choice((0, 0, 0, 1, 2, 4))):
        image = _hair(view, x, y, image)
    if view() < 0.35:  # the dermoscope's round field
        image = image * _mix(0.12, 1.0, _inside(np.sqrt(x * x + y * y) - view(1.12, 1.3), 0.12))[..., None]
    glare = 1 - view(0.0, 0.25) * (x * x + y * y)
    cast = np.array([view(0.95, 1.05), 1.0, view(0.93, 1.07)]) * view(0.88, 1.08)
    return image * glare[..., None] * cast + view(0.01, 0.025) * view.grain(image.shape)


def _pattern(own, name, u, v, radius, lesion, strength):
    """What the classes show inside: network, blue veil, milia, vessels and nests, scar, scales, lacunae."""

    def paint(colour, share):
        return _mix(lesion, np.array(colour), (share * strength)[..., None])

    fine = own.clouds(0.8 * u + 0.6 * v, 0.8 * v - 0.6 * u, 20)
    ridges = 1 - np.abs(2 * fine - 1)
    if name == "nv":
        return paint((0.30, 0.19, 0.15), 0.6 * _smooth(ridges * 2 - 1) * _inside(radius - 0.9, 0.6))
    if name == "mel":
        lesion = paint((0.10, 0.08, 0.10), 0.8 * _smooth(own.clouds(u, v, 5) * 3 - 1.6))
        lesion = paint((0.42, 0.45, 0.55), 0.7 * own() * _smooth(own.clouds(u, v, 4) * 3 - 1.5))
        return paint((0.62, 0.34, 0.28), 0.5 * own() * _smooth(own.clouds(u, v, 4) * 3 - 1.5))
    if name == "bkl":
        lesion = paint((0.90, 0.82, 0.70), 0.75 * _smooth(fine * 5 - 3.2))
        return paint((0.34, 0.23, 0.18), 0.6 * _smooth(own.clouds(u, v, 18) * 5 - 3.2))
    if name == "bcc":
        lesion = paint((0.36, 0.36, 0.44), 0.8 * _smooth(own.clouds(u, v, 7) * 4 - 2.4))
        branches = 1 - np.abs(2 * own.clouds(u, v, 6) - 1)
        return paint((0.70, 0.18, 0.20), 0.65 * _smooth((branches - 0.90) * 10))
    if name == "df":
        return paint((0.93, 0.86, 0.82), 0.85 * _inside(radius - own(0.3, 0.6), 0.5) * (0.6 + 0.4 * fine))
    if name == "akiec":
        lesion = paint((0.95, 0.88, 0.80), 0.6 * _smooth(own.clouds(u, v, 15) * 4 - 2.2))
        return paint((0.66, 0.26, 0.26), 0.5 * _smooth(ridges * 3 - 2))
    return paint((0.30, 0.06, 0.14), 0.8 * _smooth(own.clouds(u, v, 8) * 4 - 2))


def _hair(view, x, y, image):
    u, v = _turned(x, y, view.turn())
    if view() < 0.5:
        u, v = v, u
    away = np.abs(u - view(-0.8, 0.8) - view(-0.4, 0.4) * v * v - view(-0.3, 0.3) * v)
    return _mix(image, np.array((0.20, 0.14, 0.11)), (view(0.4, 0.9) * _smooth(1 - away / 0.035))[..., None])


PAINTERS = {
    "BrainMRI": (_brain, ("glioma", "meningioma", "notumor", "pituitary")),
    "ChestXray": (_chest, ("COVID", "Normal", "Viral Pneumonia")),
    "SkinCancer": (_skin, tuple(LESIONS)),
}
