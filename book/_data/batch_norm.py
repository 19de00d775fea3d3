"""Measure what a recipe does with timm's BatchNormAct2d; run as a script, write batch_norm.csv beside it.

Columns: backbone; traced, fused: FP32 over INT8 size of the state dict on disk (four classes, fbgemm), with
batch normalisation left as FX graph mode traces it, and replaced so that it fuses; qat_traced,
qat_replaced: in a model prepared for quantization-aware training and put in evaluation mode, the largest
change of one image's logits when the other images of its batch change, over the standard deviation of the
logits. Weights are random: sizes do not depend on them.
"""

import warnings
from pathlib import Path

import pandas as pd
import torch
from torch.ao.quantization import disable_observer, get_default_qat_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_qat_fx

from medq import backbones
from medq.params import Recipe
from medq.quantize import static, storage

BACKBONES = ("densenet121", "efficientnet_b0", "mobilenetv2")  # those built from BatchNormAct2d
SIDE = 64


def size_ratio(model, treatment):
    """FP32 over INT8 bytes of the state dict, with batch normalisation `traced` or `fused`."""
    prepared = static.prepare(model, "fbgemm", Recipe(title=treatment, batch_norm=treatment), SIDE)
    static.calibrate(prepared, [torch.randn(2, 3, SIDE, SIDE)])
    return storage.state_dict_bytes(model) / storage.state_dict_bytes(static.convert(prepared, "fbgemm").model)


def neighbours_effect(prepared):
    """Largest change of the first image's logits when its neighbours change, over the logits' standard
    deviation.
    """
    x = torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(42))
    with torch.no_grad():
        prepared.train()(x)
        prepared.apply(disable_observer).eval()
        first, second = prepared(x[:4]), prepared(torch.cat([x[:1], x[5:]]))
        return ((first[0] - second[0]).abs().max() / prepared(x).std()).item()


def measure(name):
    """One row of the table."""
    torch.manual_seed(42)
    model = backbones.create(name, 4, SIDE)
    row = {"backbone": name, **{t: size_ratio(model, t) for t in ("traced", "fused")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = prepare_qat_fx(
            static.with_batch_norm(model, "traced").train(),
            get_default_qat_qconfig_mapping("fbgemm"),
            (torch.zeros(1, 3, SIDE, SIDE),),
        )
    return row | {
        "qat_traced": neighbours_effect(traced),
        "qat_replaced": neighbours_effect(static.prepare_training(model, "fbgemm", SIDE)),
    }


if __name__ == "__main__":
    pd.DataFrame([measure(name) for name in BACKBONES]).round(4).to_csv(Path(__file__).with_suffix(".csv"), index=False)
