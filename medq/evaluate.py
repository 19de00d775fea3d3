"""Held-out predictions: from images to the table that every metric is a function of."""

import contextlib

import numpy as np
import pandas as pd
import torch
from torch.overrides import TorchFunctionMode

from medq.augment import normalise

BATCH = 64


def probabilities(model, images, *, device="cpu", autocast=None, batch_size=BATCH):
    """Class probabilities of `images` (uint8 [n, h, w, 3]) under `model`, as float32 [n, classes].

    The softmax is taken in float64 and rounded once. `autocast` is a dtype for mixed precision or None; `model` is put
    in evaluation mode if it has one. Raises `FloatingPointError` if a probability is not finite.
    """
    if hasattr(model, "eval"):
        model.eval()
    rows = []
    with torch.inference_mode(), half_precision(device, autocast):
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size]))
            if torch.device(device).type != "cpu":  # copied while the GPU computes
                batch = batch.pin_memory().to(device, non_blocking=True)
            rows.append(torch.softmax(model(normalise(batch)).double(), 1).float())
    result = torch.cat(rows).cpu().numpy()  # read back once: a GPU never waits for the next batch
    if not np.isfinite(result).all():
        raise FloatingPointError("the model gives probabilities that are not finite")
    return result


@contextlib.contextmanager
def half_precision(device, dtype):
    """Automatic mixed precision in `dtype`; none where that is None."""
    kind = torch.device(device).type
    emulated = dtype == torch.bfloat16 and kind == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    with torch.autocast(kind, dtype, enabled=dtype is not None), _FloatSums() if emulated else contextlib.nullcontext():
        yield


class _FloatSums(TorchFunctionMode):
    """Convolutions of bfloat16 values computed in FP32, as processors with bfloat16 sum them.

    Without such instructions PyTorch convolves bfloat16 group by group, which takes eight times as long.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not torch.conv2d:
            return function(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            rounded = [a.bfloat16().float() if isinstance(a, torch.Tensor) else a for a in args]
            return function(*rounded, **(kwargs or {})).bfloat16()


def table(image_id, fold, label, probability, classes):
    """The predictions table: image_id, fold, label and p_<class> in label order (float32)."""
    frame = pd.DataFrame({"image_id": np.asarray(image_id, dtype=str), "fold": fold, "label": np.asarray(label)})
    for index, name in enumerate(classes):
        frame[f"p_{name}"] = probability[:, index].astype(np.float32)
    return frame
