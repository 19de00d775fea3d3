"""What brings a quantized model back without retraining it, and what does that cost?"""

import collections
import contextlib
import copy
import math
from functools import cache, partial

import numpy as np
import pandas as pd
import torch
from torch import nn

from medq import diagnosis, evaluate, latency, metrics, params as profiles, regimes
from medq.datasets.folds import inner_split
from medq.errors import UserError
from medq.params import Recipe
from medq.quantize import dynamic, kernels, static
from medq.quantize.engines import Unsupported
from medq.quantize.stage import DEFAULT, calibration, float_model, outcome, study, tidy

TABLE = "remedies.csv"
SCORES = ("auprc", "ece", "ece_top_label", "brier")
BETTER = Recipe(
    title="Per-channel weights, histogram observers, batch norm folded",
    weights="per-channel",
    activations="histogram",
    batch_norm="fused",
)
IN_RANGE = BETTER.model_copy(update={"reduce_range": False, "rounded": "layers"})
KEPT = (1, 3, 5)  # how many of the worst layers stay in FP32
# Rows whose logits are divided by a temperature: the model that they start from; other rows have no temperature.
TEMPERED = {"fp32-temperature": "fp32", "temperature": "none", "combined": "combined"}
ROUNDS = 60  # timings of each model
WEIGHTED = ("Conv2d", "ConvReLU2d", "Linear", "LinearReLU", "Linear (dynamic)")
EQUALIZATION_ROUNDS = 20
DEAD = 1e-4  # of the widest channel: below it equalization leaves a channel alone


def measure(params, cell, part):
    """({remedies.csv: scores of every remedy on the held-out part}, facts) of one cell (regime `ptq-…`).

    The rows `none` (PTQ as it is) and `fp32` are what the others are compared with. A remedy that the engine refuses or
    that does not apply to the backbone has no row; the facts give the reason.
    """
    engine_name, family = regimes.REGIMES[cell.regime].engine, profiles.backbones()[cell.backbone].family
    batches, original = calibration(params, part), float_model(params, cell, part)
    made, probability, reasons, temperatures = {}, {}, [], {}
    makers = (_transformer if family == "transformer" else _cnn)(original, engine_name, batches, params.image_size)
    for name, make in {"fp32": lambda made: original, **makers}.items():
        try:
            model = make(made)
            probability[name] = evaluate.probabilities(model, part.images[part.held_out])
            made[name] = model
        except (Unsupported, FloatingPointError, ValueError) as error:
            reasons.append(f"{name}: {error}")
    calls = {name: partial(model, batches[0][:1]) for name, model in made.items()}
    timed = latency.interleave(calls, warmup=2, seconds=math.inf, batches=ROUNDS)
    p50 = {name: float(np.median(ms)) for name, ms in timed.items()}
    labels = part.labels[part.held_out]
    for name, source in TEMPERED.items():
        try:
            if source in probability:
                probability[name], temperatures[name] = tempered(probability[source], labels, halves(part, params.seed))
                p50[name] = p50[source]
        except ValueError as error:
            reasons.append(f"{name}: {error}")
            probability.pop(name, None)
    rows = [
        {"remedy": name, "p50_ms": p50[name]} | {m: metrics.METRICS[m](labels, probability[name]) for m in SCORES}
        for name in dict.fromkeys(("fp32", "fp32-temperature", "none", "temperature", *makers))
        if name in probability
    ]
    facts = {"temperatures": temperatures} | outcome(reasons, probability.get("none", ()))
    return {TABLE: tidy(rows, cell, TABLE)}, facts


run = study("remedies", measure)


def _worst_kept(model, batches, build, among):
    """{remedy: function of the models made so far} that leave the `k` noisiest layers in FP32; `build(names)` makes them."""
    noisiest = cache(lambda int8: diagnosis.worst(diagnosis.layers(model, int8, batches[0]), max(KEPT), among)["layer"])
    return {f"worst-{k}-in-fp32": lambda made, k=k: build(list(noisiest(untreated(made))[:k])) for k in KEPT}


def _cnn(model, engine_name, batches, size):
    """{remedy: function of the models made so far} for static quantization, in the order of the table."""

    def quantized(recipe=DEFAULT, source=model, keep=()):
        prepared = static.prepare(source, engine_name, recipe, size, keep)
        static.calibrate(prepared, batches)
        return static.convert(prepared, engine_name)

    def combined(made):
        better = quantized(BETTER)
        return bias_corrected(model, kernels.mended(better) or better, batches, "fused")

    in_range = {
        "relu6-in-range": lambda made: quantized(IN_RANGE),
        "relu6-in-range-corrected": lambda made: bias_corrected(model, quantized(IN_RANGE), batches, "fused"),
    }

    def mended(made):
        found = kernels.mended(untreated(made))
        if found is None:
            raise ValueError("this model holds no operator with the defect")
        return found

    return {
        "none": lambda made: quantized(),
        **_worst_kept(model, batches, lambda names: quantized(keep=names), WEIGHTED),
        "bias-correction": lambda made: bias_corrected(model, quantized(), batches),
        "cross-layer-equalization": lambda made: quantized(latency.FUSED, equalized(model)),
        "better-recipe": lambda made: quantized(BETTER),
        **(in_range if any(isinstance(module, nn.ReLU6) for module in model.modules()) else {}),
        **({"mended": mended} if engine_name == "qnnpack" else {}),
        "combined": combined,
    }


def _transformer(model, engine_name, batches, size):
    """As `_cnn`, for dynamic quantization, which has neither observers nor batch norm to change."""
    convert = partial(dynamic.convert, model, engine_name)
    return {"none": lambda made: convert(), **_worst_kept(model, batches, convert, None)}


def untreated(made):
    """PTQ as it is, among the models made so far; `Unsupported` where the engine refused it."""
    if "none" not in made:
        raise Unsupported("starts from PTQ as it is, which this engine refuses")
    return made["none"]


# --- temperature ----------------------------------------------------------------------------------


def fit_temperature(logits, labels):
    """The T > 0 that minimises the negative log-likelihood of softmax(logits / T) (Guo et al., 2017).

    `logits` [n, classes] may be logarithms of probabilities; `labels` int [n]. T lies between 1/20 and 20. Raises
    ValueError for logits that are not finite.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logits, labels = np.asarray(logits, dtype=float), np.asarray(labels)
    if not np.isfinite(logits).all():
        raise ValueError("the model's logits are not finite, so that no temperature can be fitted.")

    def loss(log_t):
        return -log_softmax(logits / math.exp(log_t), 1)[np.arange(len(labels)), labels].mean()

    bounds = -math.log(20), math.log(20)
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)


def logarithms(probability):
    """Logits of the probabilities [n, classes], up to a constant for each image."""
    return np.log(np.clip(probability.astype(float), 1e-12, 1))


def halves(part, seed):
    """Two masks over the held-out images, each the complement of the other, with every class and whole groups in both.

    Neither half was trained on. Raises ValueError for a class that cannot be divided.
    """
    rows = part.held_out
    frame = pd.DataFrame({"image_id": part.image_id[rows], "label": part.labels[rows], "group": part.group[rows]})
    try:
        _, second = inner_split(frame, 0.5, seed)
    except UserError:
        raise ValueError(
            "a class of the held-out part cannot be divided into two, so that no temperature can be fitted"
        ) from None
    mask = np.isin(part.image_id[rows], second["image_id"])
    return mask, ~mask


def tempered(probability, labels, parts):
    """(`probability` with a temperature, the temperatures): each part of the images gets the one fitted on the other.

    `probability` [n, classes], `labels` int [n], `parts` two complementary masks [n].
    """
    from scipy.special import softmax

    logits = logarithms(probability)
    fitted = [fit_temperature(logits[~part], labels[~part]) for part in parts]
    result = np.empty_like(logits)
    for part, temperature in zip(parts, fitted):
        result[part] = softmax(logits[part] / temperature, 1)
    return result.astype(np.float32), fitted


# --- bias correction ------------------------------------------------------------------------------


def bias_corrected(model, quantized, batches, batch_norm="traced"):
    """`quantized` with the mean error of every channel of every weighted layer taken out of its bias, in place.

    Each layer is corrected on the inputs that the corrected layers before it give (Nagel et al., 2019, section 4.2,
    the empirical form), on the first two calibration batches. `model` is the FP32 model that was quantized by a recipe with
    this `batch_norm`.
    """
    batch, exact, wanted = torch.cat(batches[:2]), static.fused(model, batch_norm), collections.defaultdict(list)

    def means(values, weight):
        return values.mean([d for d in range(values.ndim) if d != (values.ndim - 1 if weight.ndim == 2 else 1)])

    def see(name, layer, given, output):
        wanted[name].append(means(output, layer.weight))

    def correct(name, layer, given):
        packed, old = layer.weight(), layer.bias()
        now = kernels.weighted(layer, given[0].dequantize(), packed.dequantize(), old)
        error = wanted[name].pop(0) - means(now, packed)
        layer.set_weight_bias(packed, error if old is None else old + error)

    with torch.inference_mode(), contextlib.ExitStack() as hooks:
        for name, layer in quantized.model.named_modules():
            if isinstance(layer, kernels.WEIGHTED):
                original = exact.get_submodule(name)
                original = original[0] if isinstance(original, nn.Sequential) else original
                original.register_forward_hook(partial(see, name))
                hooks.enter_context(layer.register_forward_pre_hook(partial(correct, name)))
        exact(batch)
        quantized(batch)
    return quantized


# --- cross-layer equalization ---------------------------------------------------------------------


def equalized(model):
    """`model` as a float graph with batch norm folded and weight ranges balanced between consecutive layers.

    Nagel et al. (2019), section 4.1: where two weighted layers follow each other with at most a ReLU between them,
    channel i of the first is divided by s_i = sqrt(r1_i / r2_i) and the second's weights for it multiplied by s_i, which
    changes no output. As there, a ReLU6 between them becomes a ReLU first, which does. Raises ValueError where the
    model has no such pair.
    """
    graph = copy.deepcopy(static.fused(model))
    found = _pairs(graph)
    if not found:
        raise ValueError("no two weighted layers follow each other with at most a ReLU between them.")
    for _, clamps, _ in found:
        for path in clamps:
            parent, _, name = path.rpartition(".")
            setattr(graph.get_submodule(parent), name, nn.ReLU())
    with torch.no_grad():
        for _ in range(EQUALIZATION_ROUNDS):
            for first, _, second in found:
                _balance(first, second)
    return graph


def _pairs(graph):
    """(first layer, paths of the ReLU6 between, second layer) of every pair that can be balanced."""
    found = []
    for node in graph.graph.nodes:
        first, clamps, at = _weighted(graph, node), [], node
        if first is None:
            continue
        while len(at.users) == 1:
            at = next(iter(at.users))
            if at.op != "call_module":
                break
            module = graph.get_submodule(at.target)
            if isinstance(module, nn.ReLU6):
                clamps.append(at.target)
            second = _weighted(graph, at)
            if second is not None:
                if isinstance(second, nn.Linear) == isinstance(first, nn.Linear) and _per_channel(second):
                    found.append((first, clamps, second))
                break
            if not isinstance(module, (nn.ReLU, nn.ReLU6, nn.Identity, nn.Dropout)):
                break
    return found


def _weighted(graph, node):
    """The convolution or Linear of a node, also where a ReLU is fused to it, else None."""
    module = graph.get_submodule(node.target) if node.op == "call_module" else None
    if isinstance(module, nn.Sequential) and len(module):
        module = module[0]
    return module if isinstance(module, (nn.Conv2d, nn.Linear)) else None


def _per_channel(layer):
    """True if each input channel has weights of its own: an ordinary or a depthwise layer."""
    return isinstance(layer, nn.Linear) or layer.groups == 1 or layer.groups == layer.in_channels == layer.out_channels


def _balance(first, second):
    depthwise = isinstance(second, nn.Conv2d) and second.groups > 1
    r1 = first.weight.abs().flatten(1).amax(1)
    r2 = (second.weight if depthwise else second.weight.transpose(0, 1)).abs().flatten(1).amax(1)
    alive = (r1 > DEAD * r1.amax()) & (r2 > DEAD * r2.amax())  # scaling a dead channel only makes its bias explode
    s = torch.where(alive, (r1 / r2.clamp_min(1e-12)).sqrt(), torch.ones_like(r1)).clamp(1e-3, 1e3)
    first.weight.div_(s.view(-1, *[1] * (first.weight.ndim - 1)))
    if first.bias is not None:
        first.bias.div_(s)
    if depthwise:
        second.weight.mul_(s.view(-1, 1, 1, 1))
    else:
        second.weight.mul_(s.view(1, -1, *[1] * (second.weight.ndim - 2)))
