"""Fake quantization in training on a CPU: PyTorch's values and gradients, by operators that use the processor's vectors.

PyTorch's own operators go through a tensor value by value, which is most of the time of quantization-aware training
(`benchmarks/fake.py`).
"""

import torch
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize


class _Rounded(torch.autograd.Function):
    """`x` on the grid of `scale` between `low` and `high` steps from 0; the gradient passes between the two."""

    @staticmethod
    def forward(ctx, x, scale, low, high):
        steps = (x * scale.reciprocal()).round_()
        if ctx.needs_input_grad[0]:
            # Of a step only its side of the bounds is needed: bfloat16 is exact up to 256 and keeps what is beyond there.
            ctx.save_for_backward(steps.bfloat16())
            ctx.bounds = low - 0.5, high + 0.5
        return steps.clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx, gradient):
        (steps,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, steps.float(), *ctx.bounds), None, None, None


def fake_quantize(x, scale, zero_point, low, high):
    """`torch.fake_quantize_per_tensor_affine` of a float32 `x` on a grid of 8 bits, `low` to `high`.

    `scale` (float32) and `zero_point` (int32, within `low` and `high`) are tensors of one value.
    """
    if x.device.type != "cpu":
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)
    zero = int(zero_point)
    return _Rounded.apply(x, scale, float(low - zero), float(high - zero))


class ObservedFakeQuantize(FusedMovingAvgObsFakeQuantize):
    """The fake quantization of PyTorch's default recipes, whose observer is shown the extremes of `x` alone."""

    def forward(self, x):
        if x.device.type != "cpu" or self.is_per_channel:
            return super().forward(x)
        if self.observer_enabled[0]:
            values = x.detach()
            if values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last):
                values = values.permute(0, 2, 3, 1)  # else `aminmax` copies them into this order
            super().forward(torch.stack(torch.aminmax(values)))
        observer = self.activation_post_process
        return fake_quantize(x, self.scale, self.zero_point, observer.quant_min, observer.quant_max)


def accelerate(prepared):
    """`prepared` (of `prepare_qat_fx`), in place, with each of its fused fake quantizations as `ObservedFakeQuantize`."""
    for module in prepared.modules():
        if type(module) is FusedMovingAvgObsFakeQuantize:
            module.__class__ = ObservedFakeQuantize
    return prepared
