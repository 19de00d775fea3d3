"""Does an engine compute what the simulation says? Each integer operator against floating point, on its own inputs.

Every quantized operator of a converted model is run once as the engine runs it and once in floating point on the same
(dequantized) inputs, weights and output scale. A sound kernel differs by at most a step of rounding.
"""

import math

import pandas as pd
import torch
from torch import fx, nn
from torch.ao.nn import intrinsic
from torch.ao.nn import quantized as nnq
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from medq.quantize.dynamic import LEVELS, fake_activation
from medq.quantize.engines import Quantized, engine, refusals

MAX_STEPS = 2  # an output further than this from the simulation is wrong
MAX_WRONG = 0.01  # share of wrong outputs above which an operator disagrees
MIN_SQNR_DB = 30.0  # for dynamic layers, whose outputs are floats
COLUMNS = ["layer", "operator", "kernel_sqnr_db", "kernel_max_steps", "wrong", "agrees"]

_CLAMPS = (F.relu6, F.hardtanh, torch.clamp)
# torch.ops.quantized operators in floating point; they alone are also given the output's scale and zero point.
_FUNCTIONS = {"add": torch.add, "add_relu": lambda a, b: F.relu(a + b), "mul": torch.mul,
              "mul_relu": lambda a, b: F.relu(a * b), "cat": torch.cat, "layer_norm": F.layer_norm}


def agreement(quantized, batch):
    """One row per integer operator of `quantized` on `batch` (float32 [n, 3, h, w]).

    Returns a DataFrame [layer, operator, kernel_sqnr_db (signal to error against the simulation, dB), kernel_max_steps
    (largest error in quantization steps; NaN for dynamic layers), wrong (share of outputs more than 2 steps off),
    agrees]. `Unsupported` where the engine refuses the model.
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
    """(agrees, note): whether every operator agrees, and which do not, the most frequent first."""
    wrong = table[~table["agrees"].astype(bool)]
    if wrong.empty:
        return True, ""
    counts = wrong["operator"].value_counts()
    named = ", ".join(f"{name} ({count} of {int((table['operator'] == name).sum())})" for name, count in counts.items())
    return False, f"integer kernels differ from their simulation: {named}"


def mended(quantized):
    """`quantized` with each clamp under qnnpack fed a contiguous tensor, or None where nothing needs mending.

    qnnpack's clamp (ReLU6, hardtanh) returns values in the wrong places for channels-last tensors. The rewrite changes
    the layout before and after, and no weight.
    """
    if quantized.engine != "qnnpack" or not isinstance(quantized.model, fx.GraphModule):
        return None
    model = fx.GraphModule(quantized.model, _copy(quantized.model.graph))
    changed = False
    for node in list(model.graph.nodes):
        if not _is_clamp(model, node):
            continue
        with model.graph.inserting_before(node):
            plain = model.graph.call_method("contiguous", (node.args[0],))
        node.args = (plain, *node.args[1:])
        with model.graph.inserting_after(node):
            back = model.graph.call_method("contiguous", (node,), {"memory_format": torch.channels_last})
        node.replace_all_uses_with(back, delete_user_cb=lambda user, back=back: user is not back)
        changed = True
    model.recompile()
    return Quantized(model.eval(), "qnnpack") if changed else None


def _copy(graph):
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    return copied


def _is_clamp(model, node):
    if node.op == "call_module":
        return isinstance(model.get_submodule(node.target), (nn.ReLU6, nn.Hardtanh))
    return node.op == "call_function" and node.target in _CLAMPS


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
        args, kwargs = tree_map(_float, given)  # before the call: it may work in place
        result = super().run_node(node)
        if integer and isinstance(result, torch.Tensor) and result.is_quantized:
            self.rows.append(self._row(node, args, kwargs, result))
        return result

    def _row(self, node, args, kwargs, result):
        if node.op == "call_module":
            module = self.module.get_submodule(node.target)
            name, exact = type(module).__name__, _module_in_float(module, args[0])
        elif node.op == "call_method":
            name, exact = node.target, getattr(args[0], node.target)(*args[1:], **kwargs)
        else:
            name = getattr(node.target, "__name__", str(node.target))
            in_float = _FUNCTIONS.get(name) if isinstance(node.target, torch._ops.OpOverloadPacket) else None
            if in_float:
                args = args if "output_scale" in kwargs else args[:-2]
                kwargs = {key: value for key, value in kwargs.items() if not key.startswith("output_")}
            exact = (in_float or node.target)(*args, **kwargs)
        exact = torch.quantize_per_tensor(exact.contiguous(), result.q_scale(), result.q_zero_point(), result.dtype)
        error = result.dequantize() - exact.dequantize()
        steps = error.abs() / result.q_scale()
        wrong = float((steps > MAX_STEPS + 0.5).double().mean())
        return {"layer": str(node.target) if node.op == "call_module" else node.name, "operator": name,
                "kernel_sqnr_db": sqnr_db(exact.dequantize(), error), "kernel_max_steps": round(float(steps.max())),
                "wrong": wrong, "agrees": wrong <= MAX_WRONG}


def sqnr_db(signal, error):
    """Signal-to-quantization-noise ratio in dB: 10 log10(sum of signal² / sum of error²); infinite without error."""
    noise = float(error.double().square().sum())
    power = float(signal.double().square().sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(power / noise) if power else -math.inf


def _float(value):
    return value.dequantize() if isinstance(value, torch.Tensor) and value.is_quantized else value


def _module_in_float(module, x):
    """What `module` should compute on the floating-point tensor `x`."""
    if isinstance(module, nnq.Conv2d):  # and ConvReLU2d
        y = F.conv2d(x, module.weight().dequantize(), module.bias(), module.stride, module.padding, module.dilation,
                     module.groups)
        return F.relu(y) if isinstance(module, intrinsic.quantized.ConvReLU2d) else y
    if isinstance(module, nnq.Linear):
        y = F.linear(x, module.weight().dequantize(), module.bias())
        return F.relu(y) if isinstance(module, intrinsic.quantized.LinearReLU) else y
    if isinstance(module, nnq.BatchNorm2d):
        return F.batch_norm(x, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps)
    return module(x)


def _dynamic_rows(quantized, batch):
    """Each dynamic Linear against its simulation, on the inputs it meets in the integer model."""
    rows, hooks = [], []

    def check(name):
        def hook(module, inputs, output):
            weight, bias = module._packed_params._weight_bias()
            exact = F.linear(fake_activation(inputs[0], LEVELS[quantized.engine]), weight.dequantize(), bias)
            ratio = sqnr_db(exact, output - exact)
            rows.append({"layer": name, "operator": "Linear (dynamic)", "kernel_sqnr_db": ratio,
                         "kernel_max_steps": math.nan, "wrong": math.nan, "agrees": ratio >= MIN_SQNR_DB})
        return hook

    for name, module in quantized.model.named_modules():
        if isinstance(module, nnq.dynamic.Linear):
            hooks.append(module.register_forward_hook(check(name)))
    try:
        quantized.model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return rows
