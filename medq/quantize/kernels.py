"""Comparison of an engine with its simulation: each integer operator against floating point, on its own inputs.

Every quantized operator of a converted model is run once as the engine runs it and once in floating point on the same
(dequantized) inputs, weights and output scale. A sound kernel differs by at most a step of rounding.

Logits of a whole model say less. With random weights each layer passes a step on to more values than the one before:
noise of 1e-5 in the images moves the simulation of Inception-v3 by 11 % and that of NF-RegNet-B1 by 20 %, the float
models by 1e-5. Such a model differs as much from its simulation, and every operator still agrees.
"""

import contextlib
import math
import operator

import pandas as pd
import torch
from torch import fx, nn
from torch.ao.nn import intrinsic
from torch.ao.nn import quantized as nnq
from torch.fx.node import map_aggregate
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from medq.quantize.dynamic import fake_activation
from medq.quantize.engines import ENGINES, Quantized, engine, refusals

MAX_STEPS = 2  # an output further than this from the simulation is wrong
MAX_WRONG = 0.01  # share of wrong outputs above which an operator disagrees
MIN_SQNR_DB = 30.0  # for dynamic layers, whose outputs are floats
COLUMNS = ["layer", "operator", "kernel_sqnr_db", "kernel_max_steps", "wrong", "agrees"]

_CLAMPS = (F.relu6, F.hardtanh, torch.clamp, "clamp", "clamp_")


def _convolved(x, packed):
    """A convolution from its packed parameters, which know everything about it."""
    weight, bias = packed.unpack()
    stride, padding, dilation, groups = packed.stride(), packed.padding(), packed.dilation(), packed.groups()
    if packed.transpose():
        more = packed.output_padding(), groups, dilation
        return F.conv_transpose2d(x, weight.dequantize(), bias, stride, padding, *more)
    return F.conv2d(x, weight.dequantize(), bias, stride, padding, dilation, groups)


# The operators of torch.ops.quantized that FX graph mode makes, in floating point. Where the name ends in `_relu`, a ReLU
# follows.
FUNCTIONS = {
    "add": operator.add,
    "mul": operator.mul,
    "matmul": torch.matmul,
    "conv2d": _convolved,
    "conv_transpose2d": _convolved,
    "linear": lambda x, packed: F.linear(x, packed.unpack()[0].dequantize(), packed.unpack()[1]),
    "hardswish": F.hardswish,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "layer_norm": F.layer_norm,
    "instance_norm": F.instance_norm,
    "dropout": lambda x, *_, **__: x,  # evaluation
}
FUSED_RELU = (
    intrinsic.quantized.ConvReLU1d,
    intrinsic.quantized.ConvReLU2d,
    intrinsic.quantized.LinearReLU,
    intrinsic.quantized.BNReLU2d,
)
DYNAMIC = nnq.dynamic.Linear
WEIGHTED = (nnq.Conv1d, nnq.Conv2d, nnq.Linear)


def agreement(quantized, batch):
    """One row per integer operator of `quantized` on `batch` (float32 [n, 3, h, w]).

    Returns a DataFrame [layer, operator, kernel_sqnr_db (signal to error against the simulation, dB), kernel_max_steps
    (largest error in quantization steps; NaN for dynamic layers), wrong (share of outputs more than 2 steps off),
    agrees (None where the operator's floating-point counterpart is not known)]. `Unsupported` where the engine refuses
    the model.
    """
    with engine(quantized.engine), refusals(), torch.inference_mode():
        rows = (_static_rows if isinstance(quantized.model, fx.GraphModule) else _dynamic_rows)(quantized, batch)
    return pd.DataFrame(rows, columns=COLUMNS)


def _static_rows(quantized, batch):
    """Each quantized operator against floating point, on the inputs it meets in the integer model."""
    rows = []

    def check(node, result, known, integer):
        if integer:
            layer, name = layer_and_operator(quantized.model, node)
            found = {"agrees": None}
            if known:
                with contextlib.suppress(Unknown):
                    found = compared(result.exact, result.integer)
            rows.append({"layer": layer, "operator": name, **found})
        if is_quantized(result.integer):
            result.exact = as_float(result.integer)  # what follows starts from the same values

    SideBySide(quantized.model, {}, check).run(batch)
    return rows


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


class Pair:
    """One value of the integer graph and of its twin."""

    def __init__(self, integer, exact):
        self.integer, self.exact = integer, exact


class SideBySide(fx.Interpreter):
    """Runs a converted graph and its floating-point twin in one pass; values are `Pair`s, dropped once they are used up.

    The twin is the graph itself without quantize and dequantize, with `weights` {module path: (weight, bias)} of the float
    model; a layer that is not there takes its own, dequantized. `visit(node, result, known, integer)` is called with the
    `Pair` that every operator gives. Where an operator's floating-point counterpart is not known, `known` is False and the
    twin goes on from the integer result. `integer` is True where the operator takes and gives quantized tensors.
    """

    def __init__(self, model, weights, visit=None):
        super().__init__(model)
        self.weights, self.visit = weights, visit

    def run_node(self, node):
        if node.op == "placeholder":
            value = super().run_node(node)
            # What follows may work in place. An argument with a default, such as a mask, may be None.
            return Pair(value, value.clone() if isinstance(value, torch.Tensor) else value)
        if not node.op.startswith("call"):
            return super().run_node(node)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        (integer_args, integer_kwargs), (exact_args, exact_kwargs) = (
            map_aggregate((args, kwargs), lambda v, side=side: getattr(v, side) if isinstance(v, Pair) else v)
            for side in ("integer", "exact")
        )
        known = True
        try:
            exact = node_in_float(self.module, node, exact_args, exact_kwargs, self.weights.get(node.target))
        except Unknown:
            known = False
        integer = getattr(self, node.op)(node.target, integer_args, integer_kwargs)
        result = Pair(integer, exact if known else as_float(integer))
        if self.visit:
            given = tree_leaves((integer_args, integer_kwargs))
            self.visit(node, result, known, is_quantized(integer) and any(map(is_quantized, given)))
        return result


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
    """What a node of a converted graph should compute, in floating point; quantizing and dequantizing change nothing.

    `weights`: (weight, bias) of a weighted module where they are not its own. Raises `Unknown` where that is not known
    here, or fails.
    """
    args, kwargs = map_aggregate((args, kwargs), as_float)
    try:
        if node.target in (torch.quantize_per_tensor, torch.quantize_per_channel) or (
            (node.op, node.target) == ("call_method", "dequantize")
        ):
            return args[0].clone()
        if node.op == "call_module":
            return module_in_float(model.get_submodule(node.target), *args, weights=weights, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        if not isinstance(node.target, torch._ops.OpOverloadPacket):
            return node.target(*args, **kwargs)
        # The output's scale and zero point are among the keywords, or follow two operands.
        args = args if "output_scale" in kwargs else args[:2]
        kwargs = {key: value for key, value in kwargs.items() if not key.startswith("output_")}
        name = node.target.__name__
        relu = name not in FUNCTIONS
        result = FUNCTIONS[name.removesuffix("_relu") if relu else name](*args, **kwargs)
        return F.relu(result) if relu else result
    except Exception as error:  # an operator of any model, with arguments of any kind
        raise Unknown(f"{layer_and_operator(model, node)[1]}: {type(error).__name__}: {error}") from error


def sqnr_db(signal, error):
    """Signal-to-quantization-noise ratio in dB: 10 log10(sum of signal² / sum of error²); infinite without error."""
    noise = float(error.double().square().sum())
    power = float(signal.double().square().sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(power / noise) if power else -math.inf


def is_quantized(value):
    """Whether `value` is a quantized tensor."""
    return isinstance(value, torch.Tensor) and value.is_quantized


def as_float(value):
    """A quantized tensor dequantized; anything else as it is."""
    return value.dequantize() if is_quantized(value) else value


def module_in_float(module, x, *more, weights=None, **options):
    """What `module` should compute on the floating-point tensor `x`, with its own (weight, bias) or the `weights` given."""
    kind = type(module)
    if kind in (*WEIGHTED, nnq.BatchNorm2d, *FUSED_RELU):
        if isinstance(module, WEIGHTED):
            y = weighted(module, x, *(weights or (module.weight().dequantize(), module.bias())))
        else:
            y = F.batch_norm(x, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps)
        return F.relu(y) if kind in FUSED_RELU else y
    if kind is nnq.ConvTranspose2d:
        return _convolved(x, module._packed_params)
    if kind is nnq.PReLU:
        return F.prelu(x, module.weight.dequantize())
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
    convolution, padding = F.conv1d if weight.ndim == 3 else F.conv2d, module.padding
    if module.padding_mode != "zeros":
        x, padding = F.pad(x, [n for n in reversed(padding) for _ in range(2)], module.padding_mode), 0
    return convolution(x, weight, bias, module.stride, padding, module.dilation, module.groups)


def run_watched(model, names, batch, see):
    """Run `model` on `batch`; `see(name, input, output)` is called after each call of the modules `names`."""
    with contextlib.ExitStack() as hooks:
        for name in names:
            hook = lambda module, given, result, name=name: see(name, given[0], result)  # noqa: E731
            hooks.enter_context(model.get_submodule(name).register_forward_hook(hook))
        model(batch)


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
