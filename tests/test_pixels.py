"""Decoded pixels: every mode as PIL's convert("RGB") has it, decoded once, remade only when inputs change."""

import json
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medq import params
from medq.datasets import index, pixels, read_image
from medq.datasets.pixels import hidden
from medq.errors import UserError

decoder = sys.modules["medq.datasets.pixels"]  # the package's attribute of that name is the function


def picture(mode="RGB", size=(40, 30), seed=0):
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    return image.convert(mode)


def frame(paths):
    paths = [str(path) for path in paths]
    ids = [Path(path).stem for path in paths]
    return pd.DataFrame({"image_id": ids, "path": paths, "label": 0, "group": ids, "split": ""})


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(5):
        picture(seed=k).save(folder / f"{k}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def refuses(paths, cache, said):
    """Decoding `paths` ends in one sentence that matches `said`, and leaves nothing behind."""
    with pytest.raises(UserError, match=said) as error:
        pixels(frame(paths), 16, cache)
    assert "\n" not in str(error.value)
    assert not cache.is_dir() or {path.suffix for path in cache.iterdir()} <= {".lock"}
    return str(error.value)


# One image


@pytest.mark.parametrize(
    "kind", "L.png RGB.png RGB.bmp RGB.jpg L.jpg CMYK.jpg 1.png P.png P.gif RGB.webp YCbCr.tiff LA.png RGBA.png".split()
)
def test_modes_follow_pil(tmp_path, kind):
    mode, suffix = kind.split(".")
    image = picture("RGB" if mode in ("LA", "RGBA") else mode)
    if mode in ("LA", "RGBA"):
        image = image.convert(mode[:-1])
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    path = tmp_path / f"a.{suffix}"
    image.save(path)
    expected = np.asarray(Image.open(path).convert("RGB"))
    assert np.array_equal(read_image(str(path)), expected)
    if mode in ("L", "LA", "1") and suffix == "png":  # lossless grey: the values themselves
        assert np.array_equal(expected[..., 0], np.asarray(image.convert("L")))


def test_transparent_palette_loses_its_transparency_only(tmp_path):
    opaque, clear = tmp_path / "a.png", tmp_path / "b.png"
    image = picture("P")
    image.save(opaque)
    image.save(clear, transparency=3)
    assert np.array_equal(read_image(str(opaque)), read_image(str(clear)))


def test_sixteen_bits_keep_their_greys(tmp_path):
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(eight.astype(np.uint16) * 257).save(tmp_path / "a.png")
    assert np.array_equal(read_image(str(tmp_path / "a.png"))[..., 1], eight)


def tiff(path, values, bits, photometric, order="<"):
    """An uncompressed grey TIFF, written by hand: Pillow writes none whose 0 is white."""
    height, width = values.shape
    if bits == 12:
        digits = "".join(f"{value:03x}" for value in values.ravel())
        data = bytes.fromhex(digits + "0" * (len(digits) % 2))
    else:
        data = values.astype(f"{order}u{bits // 8}").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(data))
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0))
    return str(path)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_grey_tiffs_are_the_same_whichever_end_is_white(tmp_path, bits, order):
    if (bits, order) == (12, ">"):
        pytest.skip("Pillow does not read 12 bits in this byte order")
    values = np.linspace(0, 2**bits - 1, 64).astype(int).reshape(8, 8)
    expected = np.floor(values / (2**bits - 1) * 255 + 0.5)
    for photometric, stored in ((1, values), (0, 2**bits - 1 - values)):
        path = tiff(tmp_path / f"{photometric}.tif", stored, bits, photometric, order)
        assert np.array_equal(read_image(path)[..., 0], expected)
        if bits == 16:
            assert hidden(tiff(tmp_path / "a.tif", values // 16, bits, photometric, order)) == (12, 1)


def test_values_whose_meaning_is_not_known_are_refused(tmp_path, cache):
    path = tmp_path / "a.tif"
    signed = Image.fromarray(np.array([[0, 200]], np.uint8))
    signed.save(path, tiffinfo={339: 2})
    refuses([path], cache, "with a sign")
    Image.merge("LA", [signed, signed]).save(path, tiffinfo={262: 0})  # Pillow does not invert it
    refuses([path], cache, "Pillow does not read")
    Image.fromarray(np.ones((4, 4), np.float32)).save(path)
    refuses([path], cache, "floating-point")
    for outside in (-1000, 70_000):
        Image.fromarray(np.array([[0, 200], [outside, 9]], np.int32)).save(path)
        refuses([path], cache, f"{outside}.* do not fit 16 bits: save it with values from 0 to 65535")


def deep_png(path, values):
    """Write `values` uint16 [h, w, channels], which Pillow cannot, as a PNG of 16 bits."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    written = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(written))


def test_a_tiff_in_cielab_becomes_rgb(tmp_path):
    path = tmp_path / "a.tif"
    Image.merge("LAB", [Image.new("L", (4, 4), value) for value in (200, 128, 128)]).save(path)
    image = read_image(str(path)).astype(int)
    assert np.ptp(image) <= 2 and 180 < image.mean() < 215  # a* = b* = 0 is grey, L* = 78


@pytest.mark.parametrize("bits", [8, 12, 14, 16])
@pytest.mark.parametrize("suffix, channels", [("png", 1), ("tif", 1), ("jp2", 1), ("png", 2), ("png", 3), ("png", 4)])
def test_values_that_do_not_fill_16_bits_are_pointed_out(tmp_path, bits, suffix, channels):
    ramp = np.linspace(0, 2**bits - 1, 64 * 64 * channels).astype(np.uint16).reshape(64, 64, channels)
    path = tmp_path / f"a.{suffix}"
    deep_png(path, ramp) if channels > 1 else Image.fromarray(ramp[..., 0]).save(path)
    assert hidden(str(path)) == (None if bits == 16 else bits, 1)


def test_further_frames_are_pointed_out(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    for suffix in ("tif", "gif", "webp"):
        frames[0].save(tmp_path / f"many.{suffix}", save_all=True, append_images=frames[1:])
        assert hidden(str(tmp_path / f"many.{suffix}")) == (None, 3)


def test_orientation_in_exif_is_not_applied(tmp_path):
    image, path = picture(size=(40, 20)), tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    assert read_image(str(path)).shape == (20, 40, 3)


def test_a_jpg_that_is_png_inside(tmp_path):
    picture().save(tmp_path / "a.jpg", "PNG")
    assert np.array_equal(read_image(str(tmp_path / "a.jpg")), np.asarray(picture()))


def test_one_pixel_and_one_row(tmp_path):
    for size in ((1, 1), (20_000, 1)):
        path = tmp_path / f"{size[0]}.png"
        Image.new("RGB", size, (10, 20, 30)).save(path)
        assert np.array_equal(read_image(str(path), 8), np.broadcast_to([10, 20, 30], (8, 8, 3)))


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_decompression_bombs_are_refused_with_the_limit_and_no_warning(tmp_path, cache, side, recwarn):
    path = tmp_path / "bomb.png"
    Image.new("1", (side, side)).save(path)
    refuses([path], cache, r"bomb.png \(.*too many pixels: scale it down to at most 89,478,485")
    assert not [item for item in recwarn if "DecompressionBomb" in item.category.__name__]


# The array


def test_rows_are_the_resized_images_in_order(images, cache):
    array, _ = pixels(frame(images), 16, cache)
    assert array.shape == (5, 16, 16, 3) and array.dtype == np.uint8 and isinstance(array, np.memmap)
    assert not array.flags.writeable
    for row, path in zip(array, images, strict=True):
        expected = Image.open(path).convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
        assert np.array_equal(row, np.asarray(expected))
    assert np.array_equal(pixels(frame(images[::-1]), 16, cache)[0], array[::-1])
    assert pixels(frame(images[:1]), 24, cache)[0].shape == (1, 24, 24, 3)


def test_images_are_decoded_once_also_where_their_files_are_touched(images, cache, monkeypatch):
    assert pixels(frame(images), 16, cache, decode=False) is None and not cache.exists()
    array, before = pixels(frame(images), 16, cache)
    kept = np.array(array)
    monkeypatch.setattr(decoder, "read_image", None)
    os.utime(images[0], (1, 1))
    assert pixels(frame(images), 16, cache, decode=False) is None
    array, after = pixels(frame(images), 16, cache)
    assert np.array_equal(array, kept) and after == before
    monkeypatch.setattr(decoder, "_file_digest", None)  # and the new times are remembered
    assert pixels(frame(images), 16, cache, decode=False)[1] == before


def test_moved_images_keep_the_fingerprint(images, cache, tmp_path):
    _, before = pixels(frame(images), 16, cache)
    moved = images[0].parent.rename(tmp_path / "moved")
    assert pixels(frame(sorted(moved.iterdir())), 16, cache)[1] == before
    assert pixels(frame(sorted(moved.iterdir())), 17, cache)[1] != before


def test_a_changed_file_is_decoded_again(images, cache):
    array, before = pixels(frame(images), 16, cache)
    kept = np.array(array)
    picture(seed=99).save(images[2])
    found, after = pixels(frame(images), 16, cache)
    assert after != before
    assert (found != kept).any(axis=(1, 2, 3)).tolist() == [False, False, True, False, False]
    assert np.array_equal(array, kept)  # who had it mapped keeps what they had


@pytest.mark.parametrize(
    "damage",
    [
        lambda array, record: array.write_bytes(array.read_bytes()[:-100]),
        lambda array, record: array.write_bytes(b""),
        lambda array, record: array.unlink(),
        lambda array, record: np.save(array, np.zeros((5, 8, 8, 3), np.uint8)),
        lambda array, record: record.write_text("{"),
        lambda array, record: record.write_text("[]"),
        lambda array, record: record.unlink(),
    ],
)
def test_a_damaged_cache_is_made_again(images, cache, damage):
    before = np.array(pixels(frame(images), 16, cache)[0])
    (array,), (record,) = cache.glob("*.npy"), cache.glob("*.json")
    damage(array, record)
    assert np.array_equal(pixels(frame(images), 16, cache)[0], before)
    assert json.loads(record.read_text())["images"] == 5


def test_cells_that_start_together_decode_once(images, cache, monkeypatch):
    decoded, results = [], []
    read = decoder.read_image

    def counted(path, *size):
        decoded.append(path)
        return read(path, *size)

    monkeypatch.setattr(decoder, "read_image", counted)
    cells = [threading.Thread(target=lambda: results.append(pixels(frame(images), 16, cache))) for _ in range(4)]
    for cell in cells:
        cell.start()
    for cell in cells:
        cell.join()
    assert len(decoded) == 5 and len(results) == 4


# What cannot be read or written


def test_all_unreadable_images_are_named_at_once(images, cache):
    images[0].write_bytes(images[0].read_bytes()[:200])
    images[1].write_bytes(b"not an image")
    images[2].write_bytes(b"")
    said = refuses(images, cache, "^3 unreadable images")
    assert all(path.name in said for path in images[:3]) and images[3].name not in said
    images[0].unlink()
    refuses(images[:1], cache, "^1 unreadable image: .*0.png .No such file or directory.*; repair")


def test_a_full_disk_leaves_nothing_behind(images, cache):
    # A limit on file size stands in for the full disk: both make a write fail in its middle.
    code = (
        "import resource, sys\nfrom tests.test_pixels import frame, pixels, Path, UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "try:\n    pixels(frame(sorted(Path(sys.argv[1]).iterdir())), 64, sys.argv[2])\n"
        "except UserError as error:\n    print(error)\n"
    )
    command, root = [sys.executable, "-c", code, images[0].parent, cache], Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.stdout.startswith("cannot write ") and done.stdout.count("\n") == 1, done.stderr
    assert [path.suffix for path in cache.iterdir() if path.is_file() and path.suffix != ".lock"] == []


def test_a_cache_folder_that_cannot_be_made(images, tmp_path):
    (tmp_path / "file").write_text("")
    refuses(images, tmp_path / "file" / "cache", "cannot be written")


def test_real_images_of_two_datasets(cache, real_data):
    for name in ("BrainMRI", "SkinCancer"):
        part = index(params.datasets()[name], real_data).iloc[::400]
        array, _ = pixels(part, 64, cache)
        assert array.shape == (len(part), 64, 64, 3) and 10 < array.mean() < 200
