"""Class activation maps of float, simulated and integer graphs.

The map of a class is the sum of the channels of one feature map, each weighted with the mean gradient of the class's
logit (Grad-CAM; Selvaraju et al., 2017), without the final ReLU, so that all positions have a rank. Where the head is
linear in globally pooled features this is the exact class activation map (Zhou et al., 2016): it sums to the logit less
its bias. The feature map is the last one that everything passes through and that has at least GRID positions a side: the
one that enters pooling at 224 pixels, an earlier one for smaller images.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import fx
from torch.fx.passes.shape_prop import ShapeProp

from medq.quantize import kernels
from medq.quantize.engines import Quantized, Unsupported, engine, refusals

GRID = 4


@dataclass(frozen=True)
class Maps:
    """Maps float32 [n, side, side] of `classes` int64 [n], and the logits float32 [n, classes] of the same images."""

    values: torch.Tensor
    logits: torch.Tensor
    classes: torch.Tensor

    @property
    def side(self):
        """Positions a side."""
        return self.values.shape[-1]

    def of_class(self, table):
        """The entry of each image's class in `table` [n, classes], [n]."""
        return table.gather(1, self.classes[:, None])[:, 0]

    def exact(self):
        """True where each map sums to its logit but for a constant of the class (the bias)."""
        score = self.of_class(self.logits)
        rest = score - self.values.sum((1, 2))
        spread = torch.zeros(2)
        for label in self.classes.unique():
            chosen = torch.stack([rest, score])[:, self.classes == label]
            spread = torch.maximum(spread, chosen.amax(1) - chosen.amin(1))
        return bool(spread[0] <= 0.01 * spread[1])


def maps(model, batches, classes=None):
    """The `Maps` of a float or simulated graph, or of a static `Quantized`, on `batches` of float32 [n, 3, size, size].

    `classes` int64 [n] are those of the maps; without it, the predicted ones. The maps of an integer model have its own
    numbers, and gradients in floating point (straight through each rounding). Raises `Unsupported` where the engine
    refuses the model or no feature map is large enough, `FloatingPointError` where a logit is not finite.
    """
    graph, cut, parts, done = getattr(model, "model", model), None, [], 0
    with engine(model.engine) if isinstance(model, Quantized) else nullcontext(), refusals():
        for batch in batches:
            cut = cut or last_map(graph, batch[:1])
            tail = _Tail(graph, cut)
            with torch.enable_grad():
                logits = tail.run(batch).exact
                chosen = logits.argmax(1) if classes is None else classes[done : done + len(batch)]
                (gradient,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), tail.features)
            values = (gradient.mean((2, 3), keepdim=True) * tail.features).sum(1)
            parts.append((values.detach(), logits.detach(), chosen))
            done += len(batch)
    found = Maps(*map(torch.cat, zip(*parts)))
    if not torch.isfinite(found.logits).all():
        raise FloatingPointError("the model gives logits that are not finite")
    return found


def last_map(graph, batch):
    """The last node of a graph that everything passes through and whose value has at least GRID positions a side.

    `batch` float32 [n, 3, size, size] is run once for the shapes. Raises `Unsupported` where there is no such node.
    """
    with torch.no_grad():
        ShapeProp(graph).propagate(batch)
    place = {node: i for i, node in enumerate(graph.graph.nodes)}
    found, reach = None, 0  # reach: the last place where what was computed so far is used
    for node, i in place.items():
        shape = getattr(node.meta.get("tensor_meta"), "shape", ())
        if node.op.startswith("call") and reach <= i and len(shape) == 4 and shape[2] == shape[3] >= GRID:
            found = node
        if node.op != "get_attr":
            reach = max([reach, *(place[user] for user in node.users)])
    if found is None:
        raise Unsupported(f"the model has no feature map of {GRID} × {GRID} positions or more")
    return found


class _Tail(kernels.SideBySide):
    """Runs a graph as it is up to the node `cut`, and from there with the gradient of floating point beside its numbers."""

    def __init__(self, graph, cut):
        super().__init__(graph, {}, _straight)
        self.cut, self.features = cut, None

    def run_node(self, node):
        if self.features is not None:
            return super().run_node(node)
        with torch.no_grad():
            value = fx.Interpreter.run_node(self, node)
        if node is not self.cut:
            return value
        self.features = kernels.as_float(value).requires_grad_()
        return kernels.Pair(value, self.features * 1)  # a copy: what follows may work in place


def _straight(node, result, known, integer):
    if not known:
        raise kernels.Unknown(f"the gradient of {node.name} is not known")
    number = kernels.as_float(result.integer)
    if isinstance(number, torch.Tensor) and number.is_floating_point():
        result.exact = number.detach() + (result.exact - result.exact.detach())
