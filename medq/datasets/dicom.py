"""Read a DICOM file as an 8-bit RGB image (DICOM PS3.3, sections C.7.6.3, C.11.1 and C.11.2)."""

import contextlib
import functools
import logging
import warnings

import numpy as np

SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")

COLOURS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def is_dicom(path):
    """Whether the file begins as DICOM does: a preamble of 128 bytes, then DICM."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def read(path):
    """The image of a DICOM file: uint8 [height, width, 3].

    Grey values pass the modality LUT or rescaling, then the file's VOI LUT, its first window or, if it has neither,
    their full range; MONOCHROME1 is inverted. The full range is that of the stored bits up to 8 bits, beyond that from
    the lowest to the highest value, pixel padding apart. YBR and palette colours are converted to RGB. Overlays are not
    drawn. Raises ValueError with the reason for files without an image, with several frames, or in a transfer syntax
    that no installed package decodes.
    """
    try:
        import pydicom
        from pydicom.pixels import apply_color_lut
    except ImportError:
        raise ValueError("DICOM needs pydicom: pip install 'medq[dicom]'") from None
    from PIL import Image

    _quiet()
    file = pydicom.dcmread(path, force=True)
    if "Rows" not in file or not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(file.dir()):
        kind = f"{file.SOPClassUID.name} without an image" if "SOPClassUID" in file else "not DICOM, or damaged"
        raise ValueError(f"it is {kind}")
    frames = int(file.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(f"it holds {frames} frames: save each that is an image of the dataset in a file of its own")
    if file.Rows * file.Columns > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError
    colours = file.get("PhotometricInterpretation") or "which is missing"
    if colours not in COLOURS:
        raise ValueError(f"its photometric interpretation, {colours}, is not read: convert it to RGB or MONOCHROME2")
    if (file.get("HighBit") or 0) >= (file.get("BitsStored") or 64):
        raise ValueError("its values are not in the lowest bits (HighBit), which is not read: save it anew")
    values = _stored(file)
    if values.shape[:2] != (file.Rows, file.Columns):
        raise ValueError(f"it states {file.Rows} × {file.Columns} pixels, but holds more: save it anew")
    if colours == "PALETTE COLOR":
        values = apply_color_lut(values, _native_palette(file))[..., :3]
        return _bytes(values / np.iinfo(values.dtype).max)
    if values.ndim == 3:
        return _bytes(values[..., :3] / (2.0**file.BitsStored - 1))
    shares = _windowed(values, file)
    grey = _bytes(1 - shares if colours == "MONOCHROME1" else shares)
    return np.repeat(grey[..., None], 3, axis=2)


@functools.cache
def _quiet():
    """Keep pydicom and GDCM from printing: what is wrong with a file ends in the sentence of an exception."""
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pydicom")
    with contextlib.suppress(ImportError):
        import gdcm

        gdcm.Trace.WarningOff(), gdcm.Trace.ErrorOff()


def _stored(file):
    """Decoded pixels, [height, width] or [height, width, 3]; YBR as RGB."""
    from pydicom import uid
    from pydicom.pixels import pixel_array

    if "TransferSyntaxUID" not in file.file_meta:  # without the file's header the encoding is known from reading it
        implicit, little = file.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        file.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    syntax = file.file_meta.TransferSyntaxUID
    try:
        return pixel_array(file)
    except Exception:  # each decoder has exceptions of its own
        if syntax.is_private or syntax.is_compressed:
            raise ValueError(
                f"its transfer syntax, {syntax.name}, cannot be decoded here, or it is damaged: pip install 'medq[dicom]' "
                "for more decoders, or decompress it"
            ) from None
        raise


def _native_palette(file):
    """`file` with its palettes of 16 bits in the machine's byte order, as pydicom takes them to be."""
    for key in [f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")]:
        entries = file.RedPaletteColorLookupTableDescriptor[0] or 2**16
        if not file.original_encoding[1] and key in file and len(file[key].value) == 2 * entries:
            file[key].value = np.frombuffer(file[key].value, ">u2").astype("=u2").tobytes()
    return file


def _looked_up(values, item, file):
    """`values` in the table of a modality or VOI LUT; beyond its ends the first and last entries hold."""
    entries, first, _ = item.LUTDescriptor
    table = item.LUTData
    if isinstance(table, bytes):
        table = np.frombuffer(table, "<u2" if file.original_encoding[1] else ">u2")
    table = np.asarray(table)[: entries or 2**16]
    return table[np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)].astype(np.float64)


def _windowed(stored, file):
    """Stored grey values as shares from 0 (black) to 1 (white)."""
    if file.get("ModalityLUTSequence"):
        values = _looked_up(stored, file.ModalityLUTSequence[0], file)
    else:
        values = stored * float(file.get("RescaleSlope") or 1) + float(file.get("RescaleIntercept") or 0)
    if file.get("VOILUTSequence") and "LUTData" in file.VOILUTSequence[0]:
        item = file.VOILUTSequence[0]
        return _looked_up(values, item, file) / (2.0 ** item.LUTDescriptor[2] - 1)
    centre, width = (np.atleast_1d(file.get(key)).tolist()[0] for key in ("WindowCenter", "WindowWidth"))
    function = str(file.get("VOILUTFunction") or "LINEAR").upper()
    if centre is not None and width is not None and width >= (1 if function == "LINEAR" else 1e-9):
        if function == "SIGMOID":
            return 1 / (1 + np.exp(-4 * (values - centre) / width))
        half = 0.5 if function == "LINEAR" else 0
        return (values - centre + half) / max(width - 2 * half, 1e-9) + 0.5
    if (file.get("BitsStored") or 32) <= 8 and values.min() >= 0 and values.max() < 2**file.BitsStored:
        return values / (2.0**file.BitsStored - 1)
    padding = file.get("PixelPaddingValue")
    ends = [padding, file.get("PixelPaddingRangeLimit", padding)]
    shown = values if padding is None else values[(stored < min(ends)) | (stored > max(ends))]
    low, high = (shown.min(), shown.max()) if shown.size else (0, 0)
    return (values - low) / max(high - low, 1e-9)


def _bytes(shares):
    return np.floor(np.clip(shares, 0, 1) * 255 + 0.5).astype(np.uint8)
