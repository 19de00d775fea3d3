"""Measure what one range for all channels does to the first layer of a trained MobileNetV2; writes channels.csv beside it.

    python book/_data/channels.py PROFILE DATASET [SEED]

The FP32 checkpoint of the profile's run is used, with the observer that PyTorch gives fbgemm, on the profile's calibration
images. Columns: channel, narrow to wide; width: standard deviation of the convolution's output; step: of the range that
all channels share; unfused_db, fused_db: signal to noise after batch norm, rounded before it (left unfused) and after it
(fused), in dB; made: profile, dataset and date.
"""

import sys
from datetime import date
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig

from medq import params, paths
from medq.datasets.partition import partition
from medq.quantize import stage

BACKBONE = "mobilenetv2"


def rounded(values):
    """(`values` on the grid of fbgemm's default observer, the step of that grid)."""
    observer = get_default_qconfig("fbgemm").activation()
    observer(values)
    scale, zero = observer.calculate_qparams()
    grid = zero.int(), observer.quant_min, observer.quant_max
    return torch.fake_quantize_per_tensor_affine(values, scale, *grid), scale.item()


def decibels(exact, noisy):
    """Signal to noise [channels] of values [n, channels, h, w]: variance of the signal over mean square of the error."""
    signal, noise = exact.var((0, 2, 3)), (noisy - exact).square().mean((0, 2, 3))
    return (10 * torch.log10(signal / noise)).tolist()


@torch.inference_mode()
def measure(profile, dataset, seed=None):
    """The table of one trained model."""
    used = params.load(profile)
    cell = paths.Cell(used.profile, dataset, BACKBONE, "fp32", 0, seed)
    part = partition(used, dataset, 0)
    model = stage.float_model(used, cell, part)
    images = torch.cat(stage.calibration(used, part))
    raw = model.conv_stem(images)
    norm = nn.BatchNorm2d(raw.shape[1]).eval()
    norm.load_state_dict({k: v for k, v in model.bn1.state_dict().items() if k in norm.state_dict()})
    exact, (before, step), (after, _) = norm(raw), rounded(raw), rounded(norm(raw))
    table = pd.DataFrame(
        {
            "width": raw.std((0, 2, 3)).tolist(),
            "step": step,
            "unfused_db": decibels(exact, norm(before)),
            "fused_db": decibels(exact, after),
        }
    )
    table = table[table["width"] > 0].sort_values("width", ignore_index=True).rename_axis("channel").reset_index()
    return table.assign(channel=table["channel"] + 1, made=f"{used.profile}, {dataset}, {date.today()}")


if __name__ == "__main__":
    profile, dataset, *seed = sys.argv[1:]
    table = measure(profile, dataset, *map(int, seed))
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False, float_format="%.5g")
