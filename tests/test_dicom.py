"""DICOM: pydicom's own test files as 8-bit RGB, checked against pydicom's processing and against each other."""

import re
import shutil
import sys

import numpy as np
import pytest

from medq.datasets import index, read_image
from medq.datasets.fetch import check
from medq.datasets.pixels import hidden
from medq.datasets.spec import DatasetSpec
from medq.errors import UserError

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("gdcm")
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array  # noqa: E402


def sample(name):
    return get_testdata_file(name, download=False)


def changed(path, name="MR_small.dcm", **elements):
    """A copy of one of pydicom's files with other elements; None deletes one."""
    file = pydicom.dcmread(sample(name))
    for key, value in elements.items():
        delattr(file, key) if value is None else setattr(file, key, value)
        if value is not None and file[key].VR == "US or SS":
            file[key].VR = "SS" if file.PixelRepresentation else "US"
    file.save_as(path)
    return str(path)


def own(layout, **entry):
    entry |= {"name": "Own", "title": "Own", "layout": layout, "classes": ["a", "b"], "folder": ["own"]}
    return DatasetSpec(**entry, folds={"scheme": "stratified", "n": 2})


def eight_bits(values, low, high):
    return np.floor((np.clip(values, low, high) - low) / (high - low) * 255 + 0.5).astype(np.uint8)


@pytest.mark.parametrize("name", ["MR_small.dcm", "examples_overlay.dcm", "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"])
@pytest.mark.parametrize("function", [None, "LINEAR_EXACT", "SIGMOID"])
def test_windowed_greys_are_those_of_pydicom(tmp_path, name, function):
    path = changed(tmp_path / "a.dcm", name, **({"VOILUTFunction": function} if function else {}))
    file = pydicom.dcmread(path)
    shown = apply_voi_lut(apply_modality_lut(pixel_array(file), file), file)
    slope, intercept = float(file.get("RescaleSlope", 1)), float(file.get("RescaleIntercept", 0))
    ends = (-(2 ** (file.BitsStored - 1)), 2 ** (file.BitsStored - 1) - 1)
    ends = ends if file.PixelRepresentation else (0, 2**file.BitsStored - 1)
    expected = eight_bits(shown, *(slope * end + intercept for end in ends))
    image = read_image(path)
    assert image.shape == (*shown.shape, 3) and image.dtype == np.uint8
    assert (image == image[..., :1]).all() and np.abs(image[..., 0].astype(int) - expected).max() <= 1
    assert image.std() > 10


@pytest.mark.parametrize("syntax", "RLE bigendian expb implicit jp2klossless jpeg_ls_lossless padded".split())
def test_transfer_syntaxes_without_loss_give_the_same_pixels(syntax):
    assert np.array_equal(read_image(sample(f"MR_small_{syntax}.dcm")), read_image(sample("MR_small.dcm")))


def test_colours_become_rgb_whatever_they_are_stored_as():
    reference = read_image(sample("SC_rgb_rle.dcm")).astype(int)
    assert np.array_equal(reference, pixel_array(sample("SC_rgb_rle.dcm")))
    close = {
        "SC_rgb_rle_16bit.dcm": 0,
        "SC_rgb_rle_32bit.dcm": 0,
        "SC_rgb_jpeg_gdcm.dcm": 0,
        "SC_rgb_gdcm_KY.dcm": 1,
        "SC_ybr_full_422_uncompressed.dcm": 3,
        "SC_rgb_jls_lossy_line.dcm": 3,
        "SC_rgb_jpeg_dcmtk.dcm": 3,
        "SC_rgb_dcmtk_+eb+cr.dcm": 3,
        "SC_rgb_dcmtk_+eb+cy+np.dcm": 3,
    }
    for name, most in close.items():
        assert np.median(np.abs(read_image(sample(name)) - reference)) <= most, name


def test_palettes_are_looked_up():
    file = pydicom.dcmread(sample("examples_palette.dcm"))
    tables = [np.frombuffer(getattr(file, f"{c}PaletteColorLookupTableData"), "<u2") for c in ("Red", "Green", "Blue")]
    first = file.RedPaletteColorLookupTableDescriptor[1]
    expected = np.stack([table[pixel_array(file) - first] for table in tables], axis=-1)
    assert np.array_equal(read_image(sample("examples_palette.dcm")), eight_bits(expected, 0, 65535))


def test_monochrome1_is_inverted(tmp_path):
    inverted = read_image(changed(tmp_path / "a.dcm", PhotometricInterpretation="MONOCHROME1"))
    assert np.abs(inverted.astype(int) + read_image(sample("MR_small.dcm")) - 255).max() <= 1  # halves round up in both


def test_without_a_window_the_full_range_is_used(tmp_path):
    file = pydicom.dcmread(sample("CT_small.dcm"))
    values = pixel_array(file).astype(float)
    assert np.array_equal(read_image(sample("CT_small.dcm"))[..., 0], eight_bits(values, values.min(), values.max()))
    plain = pixel_array(pydicom.dcmread(sample("image_dfl.dcm")))
    assert np.array_equal(read_image(sample("image_dfl.dcm"))[..., 0], plain)
    values = pixel_array(sample("MR_small.dcm")).astype(float)
    lowest = int(np.median(values))
    ends = {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": lowest}
    padded = read_image(changed(tmp_path / "a.dcm", WindowCenter=None, WindowWidth=None, **ends))
    rest = values[values > lowest]
    assert np.array_equal(padded[..., 0], eight_bits(values, rest.min(), rest.max()))


def test_lookup_tables_of_modality_and_window(tmp_path):
    def table(first, data, bits):
        item = pydicom.Dataset()
        item.LUTDescriptor, item.LUTData = [len(data), first, bits], data
        item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
        return pydicom.Sequence([item])

    values = pixel_array(sample("MR_small.dcm")).astype(int)
    square = [min(k * k // 64, 65535) for k in range(2200)]
    lookup = {"ModalityLUTSequence": table(0, square, 16), "WindowCenter": None, "WindowWidth": None}
    path = changed(tmp_path / "a.dcm", PixelRepresentation=0, **lookup)
    ends = np.take(square, [values.min(), values.max()])
    assert np.array_equal(read_image(path)[..., 0], eight_bits(np.take(square, values), *ends))
    steps = [255 if k > 900 else 40 for k in range(2200)]
    path = changed(tmp_path / "b.dcm", PixelRepresentation=0, VOILUTSequence=table(0, steps, 8))
    assert np.array_equal(read_image(path)[..., 0], np.take(steps, values))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("SC_rgb_rle_2frame.dcm", "2 frames"),
        ("examples_ybr_color.dcm", "30 frames"),
        ("rtplan.dcm", "RT Plan"),
        ("JPGExtended.dcm", r"JPEG Extended.*medq\[dicom\]"),
        ("MR_truncated.dcm", "fewer|less than expected"),
        ("README.txt", "not DICOM"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_the_reason(name, reason, tmp_path):
    path = shutil.copy(sample(name), tmp_path / "a.dcm")
    with pytest.raises(ValueError, match=reason):
        read_image(str(path))


@pytest.mark.parametrize("colours", ["ARGB", "CMYK", "HSV", "YBR_PARTIAL_422"])
def test_colours_that_are_not_converted_are_refused(tmp_path, colours):
    path = changed(tmp_path / "a.dcm", "examples_rgb_color.dcm", PhotometricInterpretation=colours)
    with pytest.raises(ValueError, match=colours):
        read_image(path)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"PhotometricInterpretation": None}, "photometric interpretation, which is missing"),
        ({"BitsStored": 12, "HighBit": 15}, "HighBit"),
        ({"PixelData": pydicom.dcmread(sample("MR_small.dcm")).PixelData * 3}, "64 × 64 pixels, but holds more"),
        ({"PixelRepresentation": None}, "damaged .*Pixel Representation"),
        ({"PixelData": b""}, "damaged"),
    ],
)
def test_files_that_contradict_themselves_are_refused_in_a_sentence(tmp_path, elements, reason):
    folder = tmp_path / "own"
    (folder / "a").mkdir(parents=True), (folder / "b").mkdir()
    changed(folder / "a" / "1.dcm", **elements)
    changed(folder / "b" / "2.dcm")
    error = check(own("folders", pattern="{class}/*"), tmp_path).errors[-1]
    assert re.search(f"1 unreadable image: .*1.dcm.*{reason}", error)


def test_without_pydicom_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError, match=r"pip install 'medq\[dicom\]'"):
        read_image(sample("MR_small.dcm"))


def test_a_file_without_the_preamble_is_read_for_its_suffix(tmp_path):
    path = tmp_path / "slice.IMA"
    file = pydicom.Dataset(pydicom.dcmread(sample("MR_small_implicit.dcm")))
    pydicom.dcmwrite(path, file, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert path.read_bytes()[128:132] != b"DICM"
    assert np.array_equal(read_image(str(path)), read_image(sample("MR_small.dcm")))
    assert hidden(str(path)) == (None, 1)  # `check` reads it, too


@pytest.mark.parametrize("layout", ["folders", "table"])
def test_datasets_of_dicom_files_with_and_without_suffix(tmp_path, layout):
    names = {"a": ["MR_small.dcm", "MR_small_RLE.dcm"], "b": ["CT_small.dcm", "SC_rgb_rle.dcm"]}
    rows = ["image,dx"]
    for label, files in names.items():
        for k, file in enumerate(files):
            folder = tmp_path / "own" / (label if layout == "folders" else "images")
            folder.mkdir(parents=True, exist_ok=True)
            name = f"1.2.840.{label == 'a':d}{k}" + (".dcm" if k else "")
            shutil.copy(sample(file), folder / name)
            rows.append(f"{name.removesuffix('.dcm')},{label}")
    (tmp_path / "own" / "meta.csv").write_text("\n".join(rows))
    table = {"file": "meta.csv", "image": "image", "label": "dx", "folders": ["images"]}
    spec = own(layout, **({"pattern": "{class}/*"} if layout == "folders" else {"table": table}))
    report = check(spec, tmp_path)
    assert report.errors == report.warnings == () and report.counts["found"].tolist() == [2, 2]
    assert all(read_image(path).std() > 5 for path in index(spec, tmp_path)["path"])
    bad = next((tmp_path / "own").rglob("*.dcm"))
    shutil.copy(sample("SC_rgb_rle_2frame.dcm"), bad)
    (error,) = check(spec, tmp_path).errors
    assert bad.name in error and "2 frames" in error
