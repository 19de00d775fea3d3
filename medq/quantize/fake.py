"""Quantization-aware training on a CPU: PyTorch's values and gradients, with fewer passes through memory.

PyTorch's fake quantization goes through a tensor value by value, and the division that fuses batch norm into a convolution
makes five large tensors in each backward pass: together most of the time of training (`benchmarks/fake.py`).
"""

import types

import torch
from torch.ao.nn.intrinsic import qat
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize

PIECE = 2**16  # values that stay in a core's cache while several operators go through them


def _pieces(*tensors):
    """Tensors of one shape as tuples of pieces, in the order of memory where they share it, else whole."""
    first = tensors[0]
    if any(x.stride() != first.stride() for x in tensors) or not torch.ops.aten.is_non_overlapping_and_dense(first):
        return [tensors]
    return zip(*(x.as_strided((x.numel(),), (1,)).split(PIECE) for x in tensors))


class _Rounded(torch.autograd.Function):
    """`x` on the grid of `scale` between `low` and `high` steps from 0; the gradient passes between the two."""

    @staticmethod
    def forward(ctx, x, scale, low, high):
        result, inverse, trains = torch.empty_like(x), scale.reciprocal(), ctx.needs_input_grad[0]
        # Of a step only its side of the bounds is needed: bfloat16 is exact up to 256 and keeps what is beyond there.
        rounded = torch.empty_like(result, dtype=torch.bfloat16) if trains else result
        for value, step, kept in _pieces(result, x, rounded):
            torch.mul(step, inverse, out=value).round_()
            if trains:
                kept.copy_(value)
            value.clamp_(low, high).mul_(scale)
        if trains:
            ctx.save_for_backward(rounded)
            ctx.bounds = low - 0.5, high + 0.5
        return result

    @staticmethod
    def backward(ctx, gradient):
        (rounded,) = ctx.saved_tensors
        if gradient.stride() != rounded.stride():  # the operator chooses the layout, and with it the order of sums
            return torch.ops.aten.hardtanh_backward(gradient, rounded.float(), *ctx.bounds), None, None, None
        passed = torch.empty_like(gradient)
        for out, step, incoming in _pieces(passed, rounded, gradient):
            torch.ops.aten.hardtanh_backward(incoming, step.float(), *ctx.bounds, grad_input=out)
        return passed, None, None, None


class _Unscaled(torch.autograd.Function):
    """`x` divided by the `scale` of each channel, in place."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.mark_dirty(x.div_(scale))
        ctx.save_for_backward(x, scale)
        return x

    @staticmethod
    def backward(ctx, gradient):
        quotient, scale = ctx.saved_tensors
        # -g * (x / s / s), of which the quotient is there; the sign passes through product and sum without rounding.
        return gradient / scale, (quotient / scale).mul_(gradient).sum_to_size(scale.shape).neg_()


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


def _fused(self, x):
    """What a convolution with its batch norm computes: `_forward_approximate` of PyTorch's own module."""
    scale = self.bn.weight / torch.sqrt(self.bn.running_var + self.bn.eps)
    weight = self.weight_fake_quant(self.weight * scale.reshape(-1, 1, 1, 1))
    convolved = _Unscaled.apply(self._conv_forward(x, weight, torch.zeros_like(scale)), scale.reshape(1, -1, 1, 1))
    return self.bn(convolved if self.bias is None else convolved + self.bias.reshape(1, -1, 1, 1))


def keep_scales(prepared):
    """`prepared`, in place: its conversion takes the scales and zero points that training rounded with.

    PyTorch computes them anew, and divides the range of symmetric weights by 127.5 where the training divided it by 127
    (pytorch/pytorch#194816): every weight moves to another grid.
    """
    for module in prepared.modules():
        if isinstance(module, FusedMovingAvgObsFakeQuantize):
            module.calculate_qparams = lambda module=module: (module.scale, module.zero_point)
    return prepared


def accelerate(prepared):
    """`prepared` (of `prepare_qat_fx`), in place, with the operators of this module."""
    for module in prepared.modules():
        if type(module) is FusedMovingAvgObsFakeQuantize:
            module.__class__ = ObservedFakeQuantize
        elif isinstance(module, qat.ConvBn2d):
            module._forward_approximate = types.MethodType(_fused, module)
    return prepared
