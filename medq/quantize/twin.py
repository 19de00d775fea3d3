"""A converted graph and its floating-point twin, run side by side on the same images.

The twin is the converted graph itself with every quantize and dequantize taken out and each weight as it was before
quantization, so that a layer of one is compared with exactly the same layer of the other.
"""

import torch
from torch import fx
from torch.utils._pytree import tree_map

from medq.quantize import kernels


class Pair:
    """One value of the integer graph and of its twin."""

    def __init__(self, integer, exact):
        self.integer, self.exact = integer, exact


class SideBySide(fx.Interpreter):
    """Runs a converted graph and its twin in one pass; values are `Pair`s, and each is dropped once it is used up.

    `weights`: {module path: (weight, bias)} of the float model; a layer that is not there takes its own, dequantized.
    `visit(node, given, result, known)` is called with the `Pair` that every operator gives; `before(node, module, given)`
    ahead of every weighted module. Where an operator's floating-point counterpart is not known, `known` is False and the
    twin goes on from the integer result.
    """

    def __init__(self, model, weights, visit=None, before=None):
        super().__init__(model)
        self.weights, self.visit, self.before = weights, visit, before

    def run_node(self, node):
        if node.op == "placeholder":
            value = super().run_node(node)
            return Pair(value, value)
        if not node.op.startswith("call"):
            return super().run_node(node)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        module = self.module.get_submodule(node.target) if node.op == "call_module" else None
        if self.before and isinstance(module, kernels.WEIGHTED):
            self.before(node, module, args[0])
        (integer_args, integer_kwargs), (exact_args, exact_kwargs) = (
            tree_map(lambda v, side=side: getattr(v, side) if isinstance(v, Pair) else v, (args, kwargs))
            for side in ("integer", "exact")
        )
        try:
            exact = self._exact(node, exact_args, exact_kwargs)
        except kernels.Unknown:
            exact = None
        integer = getattr(self, node.op)(node.target, integer_args, integer_kwargs)
        known = exact is not None
        result = Pair(integer, exact if known else kernels.as_float(integer))
        if self.visit:
            self.visit(node, integer_args, result, known)
        return result

    def _exact(self, node, args, kwargs):
        if node.target in (torch.quantize_per_tensor, torch.quantize_per_channel) or (
            node.op == "call_method" and node.target == "dequantize"
        ):
            return args[0].clone()  # what follows may work in place
        args, kwargs = tree_map(kernels.as_float, (args, kwargs))
        return kernels.node_in_float(self.module, node, args, kwargs, self.weights.get(node.target))
