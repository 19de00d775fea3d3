"""Static INT8 for convolutional backbones: FX graph mode, with the recipe as data (section 2.6)."""

import copy
import warnings
from functools import partial

import torch
from torch import fx, nn
from torch.ao.quantization import (
    QConfig,
    disable_observer,
    enable_observer,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
)
from torch.ao.quantization import observer as observers
from torch.ao.quantization.fx.tracer import QuantizationTracer
from torch.ao.quantization.quantize_fx import convert_fx, convert_to_reference_fx, fuse_fx, prepare_fx, prepare_qat_fx
from torch.nn import functional as F

from medq.quantize import fake, kernels
from medq.quantize.engines import DYNAMIC_INSTEAD, ENGINES, Quantized, Unsupported, engine, refusals, unsupported

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
TAIL = 0.0005  # share of the values beyond each end of the range of a `PercentileObserver`


class PercentileObserver(observers.HistogramObserver):
    """Takes the range that holds all values but the outermost `TAIL` on either side.

    `HistogramObserver` chooses the range of the least squared error instead; both see the same histogram.
    """

    def _non_linear_param_search(self):
        mass = self.histogram.cumsum(0) / self.histogram.sum()
        width = (self.max_val - self.min_val) / self.bins
        below, above = (mass <= TAIL).sum(), (mass >= 1 - TAIL).sum() - 1
        return self.min_val + below * width, self.max_val - above * width


# `torch.ao` tells of its deprecation and of observers that saw nothing.
_quiet = partial(warnings.catch_warnings, action="ignore")
_ACTIVATIONS = {
    "minmax": observers.MinMaxObserver,
    "moving-average": observers.MovingAverageMinMaxObserver,
    "histogram": observers.HistogramObserver,
    "percentile": PercentileObserver,
}
_WEIGHTS = {
    "per-tensor": observers.default_weight_observer,
    "per-channel": observers.default_per_channel_weight_observer,
}
# Functions that differ in training: the name and position of their flag.
_MODES = {
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), ("training", 2)),
    **dict.fromkeys((F.alpha_dropout, F.feature_alpha_dropout), ("training", 2)),
    **{
        getattr(torch, name + end): ("train", 2)
        for name in ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")
        for end in ("", "_")
    },
    torch.native_dropout: ("train", 2),
    **dict.fromkeys((F.rrelu, torch.rrelu, torch.rrelu_), ("training", 3)),
}


def resolved(recipe, engine_name):
    """`recipe` with what PyTorch gives for the engine written out wherever the recipe leaves it open."""
    return recipe.model_copy(
        update={
            "weights": recipe.weights or ENGINES[engine_name].weights,
            "activations": recipe.activations or "histogram",
            "reduce_range": ENGINES[engine_name].reduced if recipe.reduce_range is None else recipe.reduce_range,
        }
    )


def qconfig_mapping(engine_name, recipe):
    """PyTorch's default mapping for the engine, with the recipe wherever it uses the default configuration."""
    mapping, recipe = get_default_qconfig_mapping(engine_name), resolved(recipe, engine_name)
    default, weight = mapping.global_qconfig, _WEIGHTS[recipe.weights]
    activation = _ACTIVATIONS[recipe.activations].with_args(dtype=torch.quint8, reduce_range=recipe.reduce_range)
    mapping.set_global(QConfig(activation=activation, weight=weight))
    for kind, config in mapping.object_type_qconfigs.items():
        if config is not None and config.activation is default.activation:
            mapping.set_object_type(
                kind,
                QConfig(activation=activation, weight=weight if config.weight is default.weight else config.weight),
            )
    return mapping


def with_batch_norm(model, kind):
    """A copy of `model` that an engine can take, whose batch normalisation traces as `kind` (`traced`, `fused`, `unfused`) asks.

    timm's BatchNormAct2d is traced through to a functional call that no engine fuses, and in training mode to one that
    uses batch statistics forever. As a plain BatchNorm2d followed by its activation it fuses.
    """
    from medq import _torchvision

    _torchvision.ensure()
    from timm.layers import BatchNormAct2d

    model = copy.deepcopy(model)
    for module in model.modules():  # the engines take padding in numbers alone
        if isinstance(module, nn.Conv2d) and isinstance(module.padding, str):
            sides = module._reversed_padding_repeated_twice[::-1]
            if sides[0::2] == sides[1::2]:
                module.padding = tuple(sides[0::2])
    if kind == "traced":
        return model
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if kind == "fused" and isinstance(child, BatchNormAct2d):
                setattr(parent, name, nn.Sequential(_norm(child, nn.BatchNorm2d), child.drop, child.act))
            elif kind == "unfused" and type(child) is nn.BatchNorm2d:
                setattr(parent, name, _norm(child, BatchNormAct2d, apply_act=False))
    return model


def _norm(source, kind, **options):
    for name in ("eps", "momentum", "affine", "track_running_stats"):
        options[name] = getattr(source, name)
    norm = kind(source.num_features, **options)
    norm.load_state_dict(source.state_dict())
    return norm.train(source.training).to(source.running_mean.device)


def prepare(model, engine_name, recipe, image_size, keep=()):
    """Trace `model` and put the recipe's observers in; the float model itself is left as it was.

    `keep` names modules (paths in `model`) that stay in floating point. Raises `Unsupported` where torch.fx cannot trace
    the model, or PyTorch refuses to fuse what the recipe leaves in training mode.
    """
    model = with_batch_norm(model, recipe.batch_norm).train(recipe.training_mode).cpu()
    for module in model.modules():  # statistics of the batch are what is studied: nothing random is traced beside them
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) and not type(module).__module__.startswith("torch."):
            module.training = False
    mapping = qconfig_mapping(engine_name, recipe)
    for name in keep:
        mapping.set_module_name(name, None)
    with _quiet(), engine(engine_name), _tracing(recipe.training_mode):
        if recipe.rounded == "layers":
            model = _relu6_in_range(_traced(model))
        prepared = prepare_fx(model, mapping, _example(image_size))
    if recipe.rounded == "inputs":
        _observe_inputs_alone(prepared)
    return without_dropout(prepared)


def _traced(model):
    return fx.GraphModule(model, QuantizationTracer([], []).trace(model))


def _relu6_in_range(graph):
    """`graph` whose ReLU6 behind a layer fuse with it, as only ReLU does, and go on computing ReLU6 in floating point.

    The observer behind sees nothing above 6, so that the integer kernel, a ReLU, saturates where ReLU6 would.
    """
    modules, fuse = dict(graph.named_modules(remove_duplicate=False)), {}
    for node in list(graph.graph.nodes):
        if isinstance(modules.get(node.target), nn.Identity):  # as timm's norm has it before its activation
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif type(modules.get(node.target)) is nn.ReLU6:
            behind = isinstance(modules.get(node.args[0].target), (*LAYERS, nn.BatchNorm2d))
            fuse[node.target] = fuse.get(node.target, True) and behind and len(node.args[0].users) == 1
    for name in filter(fuse.get, fuse):
        relu = nn.ReLU().train(graph.training)
        relu.forward = F.relu6
        graph.set_submodule(name, relu)
    graph.recompile()
    return graph


def _observe_inputs_alone(prepared):
    """Take the observers out of `prepared` that no convolution and no linear layer reads."""
    modules = dict(prepared.named_modules(remove_duplicate=False))
    for node in list(prepared.graph.nodes):
        if isinstance(modules.get(node.target), observers.ObserverBase):
            for user in list(node.users):
                layer = modules.get(user.target)
                layer = layer[0] if isinstance(layer, nn.Sequential) else layer  # with the ReLU that it is fused with
                if not isinstance(layer, LAYERS):
                    user.replace_input_with(node, node.args[0])
            if not node.users:
                prepared.graph.erase_node(node)
    prepared.recompile()
    prepared.meta["no_kernel"] = "no engine has kernels of 8-bit inputs that leave their result in floating point"


def without_dropout(graph):
    """`graph` with every functional dropout as in evaluation, also where the model's code does not ask for the mode."""
    for node in graph.graph.nodes:
        place = _MODES.get(node.target) if node.op == "call_function" else None
        if place and len(node.args) > place[1]:
            node.args = (*node.args[: place[1]], False, *node.args[place[1] + 1 :])
        elif place:
            node.kwargs = {**node.kwargs, place[0]: False}
    graph.recompile()
    return graph


def fused(model, kind="fused"):
    """The float graph of `model` in evaluation mode, batch norm folded as a recipe of this `kind` folds it."""
    with _quiet(), _tracing():
        return without_dropout(fuse_fx(with_batch_norm(model, kind).cpu().eval()))


def float_weights(model, converted):
    """{module path: (weight, bias)} in `model` of each weighted module of the integer graph `converted`.

    How batch norm was folded cannot be read off `converted`: the way whose weights lie nearest counts.
    """
    quantized = {
        name: module.weight().dequantize()
        for name, module in converted.named_modules()
        if isinstance(module, kernels.WEIGHTED)
    }
    best, smallest = {}, float("inf")
    for kind in ("traced", "fused", "unfused"):
        found = {}
        for name, module in fused(model, kind).named_modules():
            module = module[0] if isinstance(module, nn.Sequential) and len(module) and name in quantized else module
            if name in quantized and getattr(module, "weight", None) is not None:
                found[name] = (module.weight.detach(), None if module.bias is None else module.bias.detach())
        distance = sum(
            float((quantized[name] - weight).norm() / weight.norm().clamp_min(1e-12))
            for name, (weight, _) in found.items()
            if weight.shape == quantized[name].shape
        )
        if found and distance < smallest:
            best, smallest = found, distance
    return best


def calibrate(prepared, batches):
    """Let the observers see `batches`, an iterable of float32 [n, 3, h, w]."""
    with torch.inference_mode(), unsupported("the traced model does not run", DYNAMIC_INSTEAD):
        for batch in batches:
            prepared(batch)


def simulate(prepared):
    """The fake-quantized twin: every quantized operator in floating point between a quantize and a dequantize."""
    with _quiet(), unsupported("the traced model cannot be converted", DYNAMIC_INSTEAD):
        return convert_to_reference_fx(copy.deepcopy(prepared)).eval()


def convert(prepared, run_engine, as_trained=False):
    """The integer model for `run_engine` (`Unsupported` where the engine refuses).

    `as_trained`: with the scales that quantization-aware training rounded with, which PyTorch replaces by others.
    """
    if "no_kernel" in prepared.meta:
        raise Unsupported(prepared.meta["no_kernel"])
    with _quiet(), engine(run_engine), unsupported("the traced model cannot be converted", DYNAMIC_INSTEAD), refusals():
        prepared = copy.deepcopy(prepared)
        return Quantized(convert_fx(fake.keep_scales(prepared) if as_trained else prepared), run_engine)


def prepare_training(model, engine_name, image_size):
    """Fake-quantization modules for quantization-aware training, batch norm fused into its convolution.

    Traced in evaluation mode: what reads `self.training` in code of its own, such as stochastic depth and functional
    dropout, is off for good, while layers of `torch.nn` go on following the mode.
    """
    model = with_batch_norm(model, "fused").eval()
    with _quiet(), engine(engine_name), _tracing():
        traced = without_dropout(_traced(model)).train()
        mapping = get_default_qat_qconfig_mapping(engine_name)
        prepared = fake.accelerate(prepare_qat_fx(traced, mapping, _example(image_size)))
    calibrate(copy.deepcopy(prepared).eval(), _example(image_size))  # one that does not run is not trained
    return prepared


def observe(model, on):
    """Let every observer follow what passes (`on`), or keep each scale and zero point as it is."""
    model.apply(enable_observer if on else disable_observer)


def _example(image_size):
    return (torch.zeros(1, 3, image_size, image_size),)


def _tracing(training_mode=False):
    if training_mode:
        return unsupported("PyTorch does not prepare this model in training mode")
    return unsupported("torch.fx cannot trace this model", DYNAMIC_INSTEAD)
