"""Dynamic INT8 of `Linear` layers for transformer backbones, and its simulation for training (section 2.6)."""

import copy
import warnings

import torch
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torch.nn import functional as F

from medq.quantize.engines import ENGINES, Quantized, Unsupported, engine, refusals, unsupported
from medq.quantize.fake import fake_quantize

SMALLEST_STEP = 6.1e-5  # of activations: SMALL_SCALE_THRESHOLD in ATen/native/quantized/cpu/QuantUtils.h


class FakeQuantLinear(nn.Linear):
    """A Linear that computes as the engine's dynamic integer kernel would, in floating point, with gradients.

    Weights: symmetric per-tensor int8. Activations: asymmetric over the range of each call, in `levels` steps.
    """

    levels = 255

    def forward(self, x):
        scale = (self.weight.detach().abs().max() / 127.5).clamp_min(torch.finfo(torch.float32).eps)
        weight = fake_quantize(self.weight, scale, torch.zeros_like(scale, dtype=torch.int32), -128, 127)
        return F.linear(fake_activation(x, self.levels), weight, self.bias)


def fake_activation(x, levels):
    """`x` on an asymmetric grid of `levels` steps over its own range, zero included; the gradient passes straight through."""
    low, high = torch.aminmax(x.detach())
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = ((high - low) / levels).clamp_min(torch.finfo(torch.float32).eps)
    zero = (-low / scale).round().clamp(0, levels).to(torch.int32)
    return fake_quantize(x, scale.clamp_min(SMALLEST_STEP), zero, 0, levels)


class _Watched(nn.Linear):
    """A Linear that notes when code other than its own reads its weight or bias."""

    read = False

    def forward(self, x):
        return F.linear(x, self._parameters["weight"], self._parameters["bias"])

    def __getattr__(self, name):  # a parameter is no plain attribute, and so is asked for here
        self.read = self.read or name in ("weight", "bias")
        return super().__getattr__(name)


def unconvertible(model):
    """Names of the Linear layers whose weight or bias other code reads, as the attention of SwinV2, BEiT or EVA-02 does.

    A dynamic quantized Linear has methods in place of these tensors, so such layers stay in floating point. They are
    found by one forward pass of a copy of `model`.
    """
    model = copy.deepcopy(model).cpu().eval()
    for module in model.modules():
        if type(module) in (nn.Linear, FakeQuantLinear):
            module.__class__ = _Watched
    for size in _image_sizes(model):
        try:
            with torch.inference_mode():
                model(torch.zeros(1, 3, size, size))
            break
        except Exception:  # not the size that the model is built for
            continue
    return {name for name, module in model.named_modules() if type(module) is _Watched and module.read}


def _image_sizes(model):
    """Image sizes worth trying: those that the model declares, then the usual ones."""
    built = getattr(getattr(model, "patch_embed", None), "img_size", None) or ()
    stated = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", ())[1:]
    return dict.fromkeys([*(built if isinstance(built, tuple) else (built,)), *stated, 224, 64, 32])


def prepare_training(model, engine_name):
    """A copy of `model` whose Linear layers are `FakeQuantLinear` with the engine's levels, which also is the simulation.

    The layers that `unconvertible` names are left as they are. Raises `Unsupported` for an engine without `levels`.
    """
    kept, model, levels = unconvertible(model), copy.deepcopy(model), ENGINES[engine_name].levels
    if levels is None:
        raise Unsupported(
            f"the grid of dynamic activations under {engine_name} is not known (`levels` of its row in ENGINES)"
        )
    for name, module in model.named_modules():
        if type(module) is nn.Linear and name not in kept:
            module.__class__ = FakeQuantLinear
            module.levels = levels
    return model


def convert(model, engine_name, keep=()):
    """The integer model of `model` (plain or fake-quantized) for the engine; activations are quantized at run time.

    `keep` names Linear layers that stay in floating point, in addition to those that `unconvertible` names.
    """
    keep, model = {*keep, *unconvertible(model)}, copy.deepcopy(model).cpu().eval()
    for module in model.modules():
        if type(module) is FakeQuantLinear:
            module.__class__ = nn.Linear
    with (
        warnings.catch_warnings(action="ignore"),
        engine(engine_name),
        refusals(),
        unsupported("its Linear layers cannot be converted"),
    ):
        chosen = {name for name, module in model.named_modules() if type(module) is nn.Linear} - keep
        if not chosen:
            raise Unsupported("there is no Linear layer that dynamic quantization can convert")
        return Quantized(quantize_dynamic(model, chosen if keep else {nn.Linear}, dtype=torch.qint8), engine_name)
