"""Decode the images of a dataset once, into one uint8 array that every later cell maps (section 2.2)."""

import functools
import hashlib
import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from medq import artefacts, provenance
from medq.datasets import dicom
from medq.datasets.index import named
from medq.errors import UserError

DECODER = 1  # part of the fingerprint: raise it if the same file gives other pixels
TIFF_DECODER = 3  # the same for datasets with TIFFs
_CHUNK = 256  # images in flight


def pixels(index, image_size, cache_dir, decode=True):
    """The images of `index`, in its order, decoded once: (array, fingerprint).

    The array is a read-only memory map, uint8 [n, image_size, image_size, 3]. Section 2.2: decoded by PIL, converted to
    RGB, resized (bilinear with PIL's antialiasing, aspect not kept). The fingerprint is a SHA-256 over ids and contents
    of the images, image size and decoder; it does not depend on where the files lie.

    The first call writes `<cache_dir>/<key>.npy` and, last, its record `<key>.json`; later calls map them. Sizes and
    modification times tell whether contents must be read again: a touched file changes nothing, a changed one or a
    damaged cache is decoded anew. With `decode=False` nothing is read or written, and None stands for images that would
    have to be. Cells that start together decode once (file lock). Raises UserError that names every unreadable image, or
    if the cache cannot be written.
    """
    import filelock

    ids, paths = index["image_id"].tolist(), index["path"].tolist()
    stem = str(Path(cache_dir) / f"{image_size}px-{_digest([_decoder(paths), image_size, ids, paths])[:20]}")
    array, record = Path(f"{stem}.npy"), Path(f"{stem}.json")
    stats = _stats(paths)
    found = _mapped(array, record, stats, image_size)
    if found or not decode:
        return found
    try:
        array.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{stem}.lock"):
            if found := _mapped(array, record, stats, image_size):
                return found
            hashed = each(_file_digest, paths, "fingerprint")
            content = _digest([_decoder(paths), image_size, list(zip(ids, hashed, strict=True))])
            facts = {"fingerprint": content, "stats": stats, "images": len(paths)}
            known = artefacts.read_json(record)
            if isinstance(known, dict) and known.get("fingerprint") == content:
                artefacts.write_json(record, facts)  # the files were touched, not changed
            if not _mapped(array, record, stats, image_size):
                record.unlink(missing_ok=True)
                _decode(paths, image_size, array)
                artefacts.write_json(record, facts)
            return _mapped(array, record, stats, image_size)
    except OSError as error:
        raise UserError(
            f"the pixel cache {str(array)!r} cannot be written: {error.strerror or error}; "
            "make its folder writable or choose another."
        ) from None


def _mapped(array, record, stats, image_size):
    """(memory map, fingerprint) if the cache is whole and the files look untouched, else None."""
    known = artefacts.read_json(record)
    if not isinstance(known, dict) or known.get("stats") != stats:
        return None
    try:
        mapped = np.lib.format.open_memmap(array, mode="r")
        whole = mapped.shape == (known["images"], image_size, image_size, 3) and mapped.dtype == np.uint8
        return (mapped, known["fingerprint"]) if whole else None
    except (OSError, ValueError, EOFError, KeyError):
        return None  # missing, cut short


def _decoder(paths):
    return [DECODER, TIFF_DECODER] if any(path.lower().endswith((".tif", ".tiff")) for path in paths) else DECODER


def read_image(path, image_size=None):
    """One image as uint8 [height, width, 3], or [image_size, image_size, 3] when a size is given.

    As PIL's `convert("RGB")` of the first frame; the orientation noted in EXIF is not applied (the paper's pipeline does
    not). Grey values of 12 or 16 bits are scaled to 8 bits instead of being clipped to white. DICOM is read as
    `medq.datasets.dicom.read` says. The content decides on the format, not the suffix. Raises ValueError for images
    whose white is not defined (floating-point, or beyond 16 bits), PIL's DecompressionBombError beyond its limit of
    pixels, and whatever PIL raises for a damaged file.
    """
    from PIL import Image

    if path.startswith("phantom:"):
        from medq.datasets import phantoms

        image = Image.fromarray(phantoms.draw(path))
    else:
        image = _rgb(path)
    if image_size is not None:
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _rgb(path):
    from PIL import Image, UnidentifiedImageError

    if dicom.is_dicom(path):
        return Image.fromarray(dicom.read(path))
    try:
        with _opened(path) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            if image.mode == "F":
                raise ValueError("floating-point pixels have no defined white: save it with 8 or 16 bits")
            if image.mode == "LAB":
                from PIL import ImageCms

                profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
                return ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
            if image.format == "TIFF" and image.mode == "L" and 2 in image.tag_v2.get(339, ()):
                raise ValueError("8-bit values with a sign, which Pillow ignores: save it with values from 0 to 255")
            if not image.mode.startswith("I"):
                return image.convert("RGB")
            grey, white, inverted = _grey(image)
        if grey.min() < 0 or grey.max() > white:
            raise ValueError(
                f"values from {grey.min()} to {grey.max()} do not fit 16 bits: save it with values from 0 to 65535"
            )
        grey = white - grey if inverted else grey
        return Image.fromarray(((grey * 255 + white // 2) // white).astype(np.uint8)).convert("RGB")
    except UnidentifiedImageError:
        if path.lower().endswith(dicom.SUFFIXES):  # DICOM without its preamble
            return Image.fromarray(dicom.read(path))
        raise


@functools.cache
def _read_inverted_tiffs():
    """Let Pillow open TIFFs of more than 8 bits whose 0 is white, as if it were black; `_grey` inverts them."""
    from PIL.TiffImagePlugin import OPEN_INFO

    for (order, photometric, *rest), modes in list(OPEN_INFO.items()):
        if photometric == 1 and modes[0].startswith("I"):
            OPEN_INFO.setdefault((order, 0, *rest), modes)


def _opened(path):
    from PIL import Image

    _read_inverted_tiffs()
    return Image.open(path)


def _grey(image):
    """(values, highest, inverted): the integers of an image of more than 8 bits as stored, their limit, and whether 0 is white."""
    grey, bits, inverted = np.asarray(image).astype(np.int64), 16, False
    if image.format == "TIFF":
        bits = min(16, image.tag_v2[258][0])
        inverted = image.tag_v2.get(262, 0) == 0  # WhiteIsZero; Pillow inverts images of up to 8 bits only
    return grey, 2**bits - 1, inverted


def hidden(path):
    """What the decoded pixels of an image file do not show: (bits, frames).

    `bits`: how many the values of a 16-bit image need if the highest stay unused, as with 12-bit values, else None.
    `frames`: how many images the file holds, of which `read_image` takes the first. DICOM states both itself.
    """
    from PIL import UnidentifiedImageError

    if path.startswith("phantom:") or dicom.is_dicom(path):
        return None, 1
    try:
        with _opened(path) as image:
            frames = getattr(image, "n_frames", 1)
            if image.mode.startswith("I"):
                grey, white, _ = _grey(image)
                bits = int(grey.max()).bit_length() if grey.max() <= white // 2 else None
            else:
                deep = ";16" in str(image.tile)  # of colours with 16 bits Pillow keeps the upper byte
                highest = int(np.asarray(image.convert("RGB")).max()) if deep else 255
                bits = 8 + highest.bit_length() if highest < 128 else None
    except UnidentifiedImageError:  # DICOM without its preamble
        return None, 1
    return bits, frames


def _stats(paths):
    """Digest over sizes and modification times of all files."""
    seen = []
    for path in paths:
        try:
            stat = os.stat(path)
            seen.append((stat.st_size, stat.st_mtime_ns))
        except OSError:  # a phantom, or gone
            seen.append(path)
    return _digest(seen)


def _file_digest(path):
    if path.startswith("phantom:"):
        from medq.datasets import phantoms

        return f"{path} drawn by version {phantoms.VERSION}"
    return artefacts.sha256(path)


def _decode(paths, image_size, array):
    """Decode all `paths` into the file `array`, which is either whole or absent."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(paths), image_size, image_size, 3)}
    # A stream: on a full disk a write fails with a reason, where a memory map would kill the process.
    with artefacts.replacing(array) as scratch, open(scratch, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for image in each(lambda path: read_image(path, image_size), paths, "decode"):
            file.write(image.tobytes())


def each(function, paths, what):
    """`function` of each path, in order, computed in threads (PIL releases the lock), with a progress bar.

    Raises UserError in the end that names all paths for which it fails: one damaged file must not hide the others.
    """
    from PIL import Image
    from tqdm import tqdm

    def attempt(path):
        try:
            return function(path)
        except Exception as error:  # PIL's plugins raise almost anything on damaged files
            return error

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such images are refused in a sentence
    bad = []
    with ThreadPoolExecutor(provenance.usable_cores()) as pool:
        chunks = (paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK))
        results = (result for chunk in chunks for result in pool.map(attempt, chunk))
        bar = tqdm(results, total=len(paths), desc=what, unit=" images", disable=None)
        for path, result in zip(paths, bar, strict=True):
            if isinstance(result, Exception):
                bad.append(f"{path} ({_why(result)})")
            else:
                yield result
    if bad:
        raise UserError(
            f"{len(bad)} unreadable image{'s' if len(bad) > 1 else ''}: {named(bad)}; repair, replace or remove them."
        )


def _why(error):
    from PIL import Image, UnidentifiedImageError

    text = " ".join(str(error).split())
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a kind that Pillow does not read"
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels: scale it down to at most {Image.MAX_IMAGE_PIXELS:,}"
    if isinstance(error, (AttributeError, TypeError, LookupError)):  # of code that met what no sound file holds
        return f"damaged ({type(error).__name__}: {text})"
    return (error.strerror if isinstance(error, OSError) else None) or text or type(error).__name__


def _digest(value):
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
