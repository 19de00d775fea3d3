"""A sweep over quantized operators: which of them compute something else than floating point in this build?

Each case of `CASES` runs on each engine and memory layout, on values that use the whole grid, with and without the
reduced range that an engine may need; the integer result is compared with floating point on the same inputs.
"""

import itertools
from functools import partial

import pandas as pd
import torch
from torch.ao.nn import quantized as nnq
from torch.nn import functional as F

from medq.quantize import kernels
from medq.quantize.engines import ENGINES, engine

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
RANGES = {"full": 255, "reduced": 127}  # highest integer of the activations; the lowest is 0
COLUMNS = ["operator", "engine", "layout", "range", "kernel_sqnr_db", "kernel_max_steps", "wrong", "agrees", "note"]

# Weighted operators: name -> (channels in, channels out, kernel, stride, groups); kernel None is a Linear.
WEIGHTED = {
    "conv 3x3": (16, 24, 3, 1, 1),
    "conv 3x3, stride 2": (16, 24, 3, 2, 1),
    "conv 1x1": (16, 24, 1, 1, 1),
    "conv 7x7, stride 2": (3, 16, 7, 2, 1),
    "conv 4x4, stride 4": (3, 16, 4, 4, 1),
    "conv 3x3, 4 groups": (16, 24, 3, 1, 4),
    "depthwise 3x3": (16, 16, 3, 1, 16),
    "depthwise 3x3, stride 2": (16, 16, 3, 2, 16),
    "depthwise 5x5": (16, 16, 5, 1, 16),
    "depthwise 7x7": (16, 16, 7, 1, 16),
    "linear": (16, 24, None, 1, 1),
}
# Functions that torch runs on quantized tensors as they are.
NATIVE = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "clamp": lambda x: torch.clamp(x, -1.0, 1.0),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardsigmoid": F.hardsigmoid,
    "max pool 3x3": lambda x: F.max_pool2d(x, 3, 2, 1),
    "average pool 2x2": lambda x: F.avg_pool2d(x, 2),
    "average pool 3x3, edges without padding": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "adaptive average pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2.0),
    "cat": lambda x: torch.cat([x, x], 1),
}
# Functions of torch.ops.quantized (name there -> floating point) of one or two tensors, given the output's grid.
UNARY = {
    "hardswish": F.hardswish,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.01, inplace=False),
    "elu": partial(F.elu, alpha=1.0),
}
BINARY = {
    "add": torch.add,
    "add_relu": lambda a, b: F.relu(a + b),
    "mul": torch.mul,
    "mul_relu": lambda a, b: F.relu(a * b),
    "mul, broadcast": torch.mul,
}
CASES = (*WEIGHTED, *NATIVE, *UNARY, *BINARY, "batch_norm", "layer_norm")


def sweep():
    """One row per operator, engine of this machine, layout and range: [operator, engine, layout, range, kernel_sqnr_db,
    kernel_max_steps, wrong, agrees, note].

    `agrees` is None, with the reason in `note`, where the engine has no such kernel. Weighted operators take the
    engine's own kind of weights. The values are the same at every call.
    """
    engines = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    rows = [
        dict(zip(COLUMNS, (operator, name, layout, used))) | _row(operator, name, layout, RANGES[used])
        for name, operator, layout, used in itertools.product(engines, CASES, LAYOUTS, RANGES)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(operator, engine_name, layout, used):
    generator = torch.Generator().manual_seed(CASES.index(operator))
    with engine(engine_name), torch.inference_mode():
        try:
            exact, result = _case(operator, engine_name, layout, used, generator)
        except (RuntimeError, NotImplementedError) as error:
            return {"agrees": None, "note": str(error).strip().splitlines()[0][:120]}
    return kernels.compared(exact, result) | {"note": ""}


def _case(operator, engine_name, layout, used, generator):
    """(floating-point result, quantized result) of one case."""
    channels = WEIGHTED[operator][0] if operator in WEIGHTED else 16
    x = _input(channels, layout, used, generator)
    if operator in WEIGHTED:
        return _weighted(WEIGHTED[operator], x, engine_name, used, generator)
    if operator in NATIVE:
        return NATIVE[operator](x.dequantize()), NATIVE[operator](x)
    name, _, broadcast = operator.partition(", ")
    kernel = getattr(torch.ops.quantized, name, None)
    if operator in UNARY:
        exact = UNARY[operator](x.dequantize())
        scale, zero = _grid(exact, used)
        options = getattr(UNARY[operator], "keywords", {})
        return exact, kernel(x, **options, output_scale=scale, output_zero_point=zero)
    if operator in BINARY:
        y = _input(channels, layout, used, generator)
        y = F.adaptive_avg_pool2d(y, 1) if broadcast else y
        exact = BINARY[operator](x.dequantize(), y.dequantize())
        return exact, kernel(x, y, *_grid(exact, used))
    return _norm(operator, x, used, generator)


def _norm(operator, x, used, generator):
    weight, bias = torch.rand(16, generator=generator) + 0.5, torch.randn(16, generator=generator)
    if operator == "batch_norm":
        mean, variance = torch.randn(16, generator=generator), torch.rand(16, generator=generator) + 0.5
        exact = F.batch_norm(x.dequantize(), mean, variance, weight, bias)
        return exact, torch.ops.quantized.batch_norm2d(x, weight, bias, mean, variance, 1e-5, *_grid(exact, used))
    weight, bias = (v.view(16, 1, 1).expand(x.shape[1:]).contiguous() for v in (weight, bias))
    exact = F.layer_norm(x.dequantize(), x.shape[1:], weight, bias)
    return exact, torch.ops.quantized.layer_norm(x, x.shape[1:], weight, bias, 1e-5, *_grid(exact, used))


def _weighted(shape, x, engine_name, used, generator):
    inputs, outputs, size, stride, groups = shape
    if size is None:
        x, module = F.adaptive_avg_pool2d(x, 1).flatten(1), nnq.Linear(inputs, outputs)
        weight = torch.randn(outputs, inputs, generator=generator)
    else:
        module = nnq.Conv2d(inputs, outputs, size, stride, size // 2 if size != stride else 0, groups=groups)
        weight = torch.randn(outputs, inputs // groups, size, size, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    if ENGINES[engine_name].weights == "per-tensor":
        packed = torch.quantize_per_tensor(weight, float(weight.abs().max()) / 127.5, 0, torch.qint8)
    else:
        scales = weight.abs().flatten(1).amax(1).double() / 127.5
        packed = torch.quantize_per_channel(weight, scales, torch.zeros(outputs, dtype=torch.long), 0, torch.qint8)
    module.set_weight_bias(packed, bias)
    exact = kernels.weighted(module, x.dequantize(), packed.dequantize(), bias)
    module.scale, module.zero_point = _grid(exact, used)
    return exact, module(x)


def _input(channels, layout, used, generator):
    """A quantized [2, channels, 16, 16] whose integers are uniform over the whole range."""
    integers = torch.randint(0, used + 1, (2, channels, 16, 16), generator=generator).float()
    zero = used // 2
    x = ((integers - zero) * 0.03).contiguous(memory_format=LAYOUTS[layout])
    return torch.quantize_per_tensor(x, 0.03, zero, torch.quint8)


def _grid(exact, used):
    """(scale, zero point) of an output that should span the range."""
    low, high = min(float(exact.min()), 0.0), max(float(exact.max()), 0.0)
    scale = (high - low) / used or 1.0
    return scale, max(0, min(used, round(-low / scale)))


def disagreements(table):
    """The rows of `sweep` whose kernel disagrees with floating point, worst first."""
    return table[table["agrees"].eq(False)].sort_values("kernel_sqnr_db").reset_index(drop=True)
