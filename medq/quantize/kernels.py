"""Comparison of an engine with its simulation: each integer operator against floating point, on its own inputs.

Every quantized operator of a converted model is run once as the engine runs it and once in floating point on the same
(dequantized) inputs, weights and output scale. A sound kernel differs by at most a step of rounding.

Logits of a whole model say less. With random weights each layer passes a step on to more values than the one before:
noise of 1e-5 in the images moves the simulation of Inception-v3 by 11 % and that of NF-RegNet-B1 by 20 %, the float
models by 1e-5. Such a model differs as much from its simulation, and every operator still agrees.
"""

import math
import operator

import pandas as pd
import torch
from torch import fx, nn
from torch.ao.nn import intrinsic
from torch.ao.nn import quantized as nnq
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from medq.quantize.dynamic import fake_activation
from medq.quantize.engines import ENGINES, Quantized, engine, refusals

MAX_STEPS = 2  # an output further than this from the simulation is wrong
MAX_WRONG = 0.01  # share of wrong outputs above which an operator disagrees
MIN_SQNR_DB = 30.0  # for dynamic layers, whose outputs are floats
COLUMNS = ["layer", "operator", "kernel_sqnr_db", "kernel_max_steps", "wrong", "agrees"]

_CLAMPS = (F.relu6, F.hardtanh, torch.clamp, "clamp", "clamp_")
_CONVOLUTIONS = {
    1: (F.conv1d, F.conv_transpose1d),
    2: (F.conv2d, F.conv_transpose2d),
    3: (F.conv3d, F.conv_transpose3d),
}


def _convolved(x, packed, *_):
    """A convolution from its packed parameters, which know everything about it."""
    weight, bias = packed.unpack()
    plain, transposed = _CONVOLUTIONS[x.ndim - 2]
    options = {"stride": packed.stride(), "padding": packed.padding(), "dilation": packed.dilation()}
    options = {key: value[: x.ndim - 2] for key, value in options.items()} | {"groups": packed.groups()}
    if packed.transpose():
        return transposed(x, weight.dequantize(), bias, output_padding=packed.output_padding()[: x.ndim - 2], **options)
    return plain(x, weight.dequantize(), bias, **options)


# Operators of torch.ops.quantized in floating point, given the operator's arguments without its output's grid. Where the
# name ends in `_relu`, a ReLU follows.
FUNCTIONS = {
    **dict.fromkeys(("add", "add_scalar"), operator.add),
    **dict.fromkeys(("mul", "mul_scalar"), operator.mul),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolved),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolved),
    **dict.fromkeys(
        ("batch_norm", "batch_norm1d", "batch_norm2d", "batch_norm3d"),
        lambda x, weight, bias, mean, variance, eps: F.batch_norm(x, mean, variance, weight, bias, eps=eps),
    ),
    "linear": lambda x, packed: F.linear(x, packed.unpack()[0].dequantize(), packed.unpack()[1]),
    "matmul": torch.matmul,
    "cat": torch.cat,
    "clamp": torch.clamp,
    "relu6": lambda x, *_: F.relu6(x),
    "threshold": F.threshold,
    "max_pool1d": F.max_pool1d,
    "max_pool2d": F.max_pool2d,
    "hardswish": F.hardswish,
    "leaky_relu": lambda x, slope, *_: F.leaky_relu(x, slope),
    "elu": lambda x, alpha=1.0, *_: F.elu(x, alpha),
    "celu": lambda x, alpha=1.0: F.celu(x, alpha),
    "prelu": F.prelu,
    "sigmoid": torch.sigmoid,
    "softmax": torch.softmax,
    "layer_norm": F.layer_norm,
    "group_norm": F.group_norm,
    "instance_norm": lambda x, w, b, eps: F.instance_norm(x, weight=w, bias=b, eps=eps),
    "dropout": lambda x, *_: x,  # evaluation
}
FUSED_RELU = (
    intrinsic.quantized.ConvReLU1d,
    intrinsic.quantized.ConvReLU2d,
    intrinsic.quantized.ConvReLU3d,
    intrinsic.quantized.LinearReLU,
    intrinsic.quantized.BNReLU2d,
    intrinsic.quantized.BNReLU3d,
)
DYNAMIC = nnq.dynamic.Linear
WEIGHTED = (nnq.Conv1d, nnq.Conv2d, nnq.Conv3d, nnq.Linear)
PLAIN = (*WEIGHTED, nnq.BatchNorm2d, nnq.BatchNorm3d)


def agreement(quantized, batch):
    """One row per integer operator of `quantized` on `batch` (float32 [n, 3, h, w]).

    Returns a DataFrame [layer, operator, kernel_sqnr_db (signal to error against the simulation, dB), kernel_max_steps
    (largest error in quantization steps; NaN for dynamic layers), wrong (share of outputs more than 2 steps off),
    agrees (None where the operator's floating-point counterpart is not known)]. `Unsupported` where the engine refuses
    the model.
    """
    with engine(quantized.engine), refusals(), torch.inference_mode():
        if isinstance(quantized.model, fx.GraphModule):
            checker = _Checker(quantized.model)
            checker.run(batch)
            rows = checker.rows
        else:
            rows = _dynamic_rows(quantized, batch)
    return pd.DataFrame(rows, columns=COLUMNS)


def verdict(table):
    """(agrees, note): whether every operator agrees, and which do not, the most frequent first.

    None where no operator disagrees but some could not be compared, which the note then names.
    """
    for chosen, answer, text in (
        (table["agrees"].eq(False), False, "integer kernels differ from their simulation"),
        (table["agrees"].isna(), None, "integer kernels were not compared with a simulation"),
    ):
        if chosen.any():
            counts = table.loc[chosen, "operator"].value_counts()
            total = table["operator"].value_counts()
            return answer, f"{text}: {', '.join(f'{name} ({n} of {total[name]})' for name, n in counts.items())}"
    return True, ""


def mended(quantized):
    """`quantized` with each clamp under qnnpack fed a contiguous tensor, or None where nothing needs mending.

    qnnpack's clamp (ReLU6, hardtanh) returns values in the wrong places for channels-last tensors. The rewrite changes
    the layout before and after, and no weight.
    """
    if quantized.engine != "qnnpack" or not isinstance(quantized.model, fx.GraphModule):
        return None
    graph = fx.Graph()
    graph.output(graph.graph_copy(quantized.model.graph, {}))
    model, changed = fx.GraphModule(quantized.model, graph), False
    for node in list(model.graph.nodes):
        if node.op == "call_module":
            clamps = isinstance(model.get_submodule(node.target), (nn.ReLU6, nn.Hardtanh))
        else:
            clamps = node.op in ("call_function", "call_method") and node.target in _CLAMPS
        if not clamps:
            continue
        with model.graph.inserting_before(node):
            plain = model.graph.call_method("contiguous", (node.args[0],))
        node.args = (plain, *node.args[1:])
        with model.graph.inserting_after(node):
            back = model.graph.call_method("contiguous", (node,), {"memory_format": torch.channels_last})
        node.replace_all_uses_with(back, delete_user_cb=lambda user, back=back: user is not back)
        changed = True
    model.recompile()
    return Quantized(model.eval(), "qnnpack", mended=True) if changed else None


def defective(engine_name="qnnpack"):
    """True if the engine's quantized ReLU6 scrambles a channels-last tensor: the defect that `mended` works around.

    The smallest reproduction known: with torch 2.13 it is True for `qnnpack` and False for the other engines. When a
    later torch mends it, it is False everywhere and `mended` changes nothing but the layout.
    """
    values = torch.linspace(-6, 12, 150).reshape(2, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    q = torch.quantize_per_tensor(values, 0.1, 64, torch.quint8)
    with engine(engine_name):
        return not torch.allclose(F.relu6(q).dequantize(), F.relu6(q.dequantize()), atol=0.101)


class _Checker(fx.Interpreter):
    """Runs a converted graph and compares each node that returns a quantized tensor with floating point."""

    def __init__(self, model):
        super().__init__(model)
        self.rows = []

    def run_node(self, node):
        if not node.op.startswith("call"):
            return super().run_node(node)
        given = self.fetch_args_kwargs_from_env(node)
        integer = any(isinstance(value, torch.Tensor) and value.is_quantized for value in tree_leaves(given))
        args, kwargs = tree_map(as_float, given)  # before the call: it may work in place
        result = super().run_node(node)
        if integer and isinstance(result, torch.Tensor) and result.is_quantized:
            self.rows.append(self._row(node, args, kwargs, result))
        return result

    def _row(self, node, args, kwargs, result):
        layer, name = layer_and_operator(self.module, node)
        try:
            found = compared(node_in_float(self.module, node, args, kwargs), result)
        except Unknown:
            found = {"agrees": None}
        return {"layer": layer, "operator": name, **found}


class Unknown(ValueError):
    """What an integer operator should compute in floating point is not known here."""


def compared(exact, result):
    """A quantized tensor against what it should be (float, same shape): the last four columns of `agreement`.

    Raises `Unknown` where the two cannot be compared.
    """
    if exact.shape != result.shape or not exact.numel() or not torch.isfinite(exact).all():
        raise Unknown(f"shapes {tuple(exact.shape)} and {tuple(result.shape)}, or values that are not finite")
    exact = torch.quantize_per_tensor(exact.contiguous(), result.q_scale(), result.q_zero_point(), result.dtype)
    error = result.dequantize() - exact.dequantize()
    steps = error.abs() / result.q_scale()
    wrong = float((steps > MAX_STEPS + 0.5).double().mean())
    return {
        "kernel_sqnr_db": sqnr_db(exact.dequantize(), error),
        "kernel_max_steps": round(float(steps.max())),
        "wrong": wrong,
        "agrees": wrong <= MAX_WRONG,
    }


def layer_and_operator(model, node):
    """What a node of a converted graph is called in tables: (its module's path or own name, its operator)."""
    if node.op == "call_module":
        return str(node.target), type(model.get_submodule(node.target)).__name__
    return node.name, node.target if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))


def node_in_float(model, node, args, kwargs, weights=None):
    """What a node of a converted graph should compute, in floating point, on floating-point arguments.

    `weights`: (weight, bias) of a weighted module where they are not its own. Raises `Unknown` where that is not known
    here, or fails.
    """
    try:
        if node.op == "call_module":
            return module_in_float(model.get_submodule(node.target), *args, weights=weights, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        if not isinstance(node.target, torch._ops.OpOverloadPacket):
            return node.target(*args, **kwargs)
        name = node.target.__name__
        name, relu = (name, False) if name in FUNCTIONS else (name.removesuffix("_relu"), name.endswith("_relu"))
        result = FUNCTIONS[name](*_operands(node.target, args, kwargs))
        return F.relu(result) if relu else result
    except Exception as error:  # an operator of any model, with arguments of any kind
        raise Unknown(f"{layer_and_operator(model, node)[1]}: {type(error).__name__}: {error}") from error


_GRIDS = ("output_scale", "output_zero_point"), ("Y_scale_i", "Y_zero_point_i"), ("scale", "zero_point")


def _operands(packet, args, kwargs):
    """The arguments of an operator of `torch.ops.quantized` in order, without those for its output's scale and zero point."""
    for overload in packet.overloads():
        known = getattr(packet, overload)._schema.arguments
        given = dict(zip((a.name for a in known), args)) | kwargs
        fits = len(args) <= len(known) and all(
            a.name in given and isinstance(given[a.name], torch.Tensor) == (str(a.type) == "Tensor")
            for a in known
            if str(a.type) in ("Tensor", "number") and not a.has_default_value()
        )
        if (
            fits
            and all(a.name in given or a.has_default_value() for a in known)
            and given.keys() <= {a.name for a in known}
        ):
            grid = next((pair for pair in _GRIDS if pair[0] in given), ())
            return [given[a.name] for a in known if a.name in given and a.name not in grid]
    raise Unknown(f"no overload of {packet} takes these arguments")


def sqnr_db(signal, error):
    """Signal-to-quantization-noise ratio in dB: 10 log10(sum of signal² / sum of error²); infinite without error."""
    noise = float(error.double().square().sum())
    power = float(signal.double().square().sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(power / noise) if power else -math.inf


def as_float(value):
    """A quantized tensor dequantized; anything else as it is."""
    return value.dequantize() if isinstance(value, torch.Tensor) and value.is_quantized else value


def module_in_float(module, x, *more, weights=None, **options):
    """What `module` should compute on the floating-point tensor `x`, with its own (weight, bias) or the `weights` given."""
    kind = type(module)
    if kind in (*PLAIN, *FUSED_RELU):
        if isinstance(module, WEIGHTED):
            y = weighted(module, x, *(weights or (module.weight().dequantize(), module.bias())))
        else:
            y = F.batch_norm(x, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps)
        return F.relu(y) if kind in FUSED_RELU else y
    if kind in (nnq.ConvTranspose1d, nnq.ConvTranspose2d, nnq.ConvTranspose3d):
        return _convolved(x, module._packed_params)
    if kind is nnq.PReLU:
        return F.prelu(x, module.weight.dequantize())
    if kind is nnq.Dropout:
        return x
    return _float_class(kind).forward(module, x, *more, **options)


def _float_class(kind):
    """The class of `torch.nn` behind a quantized module that keeps its float parameters (LayerNorm, Hardswish, …)."""
    if not kind.__module__.startswith("torch.ao.") or ".reference." in kind.__module__:  # a simulation is in float
        return kind
    for base in kind.__mro__:
        if base.__module__.startswith("torch.nn.modules.") and base is not nn.Module and not issubclass(kind, WEIGHTED):
            return base
    raise Unknown(f"no floating-point counterpart of {kind.__name__} is known.")


def weighted(module, x, weight, bias):
    """Convolution or matrix product of a quantized module in floating point, before any activation."""
    if isinstance(module, nnq.Linear):
        return F.linear(x, weight, bias)
    convolution = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.ndim]
    return convolution(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)


def run_watched(model, names, batch, see):
    """Run `model` on `batch`; `see(name, input, output)` is called after each call of the modules `names`."""
    hooks = []
    for name in names:
        hook = lambda module, given, result, name=name: see(name, given[0], result)  # noqa: E731
        hooks.append(model.get_submodule(name).register_forward_hook(hook))
    try:
        model(batch)
    finally:
        for hook in hooks:
            hook.remove()


def _dynamic_rows(quantized, batch):
    """Each dynamic Linear against its simulation, on the inputs it meets in the integer model."""
    rows, modules = [], {n: m for n, m in quantized.model.named_modules() if isinstance(m, DYNAMIC)}

    def check(name, x, output):
        weight, bias = modules[name]._packed_params._weight_bias()
        exact = F.linear(fake_activation(x, ENGINES[quantized.engine].levels), weight.dequantize(), bias)
        ratio, row = sqnr_db(exact, output - exact), {"layer": name, "operator": "Linear (dynamic)"}
        rows.append(row | {"kernel_sqnr_db": ratio, "agrees": ratio >= MIN_SQNR_DB})

    run_watched(quantized.model, modules, batch, check)
    return rows
