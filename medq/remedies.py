"""What brings a quantized model back without retraining it, and what does that cost?"""

import copy
import math
import time
from functools import cache

import numpy as np
import pandas as pd
import torch
from torch import nn

from medq import diagnosis, evaluate, metrics, params as profiles, regimes
from medq.errors import UserError
from medq.params import Recipe
from medq.quantize import dynamic, kernels, static
from medq.quantize.engines import Unsupported, engine
from medq.quantize.stage import DEFAULT, calibration_batches, calibration_rows, float_model, study, study_name
from medq.quantize.twin import SideBySide

TABLE = "remedies.csv"
SCORES = ("auprc", "ece", "ece_top_label", "brier")
COLUMNS = ["dataset", "backbone", "regime", "fold", "remedy", *SCORES, "p50_ms"]
BETTER = Recipe(
    title="Per-channel weights, histogram observers, batch norm folded",
    weights="per-channel",
    activations="histogram",
    batch_norm="fused",
)
FUSED = Recipe(title="Batch norm folded", batch_norm="fused")
KEPT = (1, 3, 5)  # how many of the worst layers stay in FP32
ROUNDS = 60  # timings of each model, one round after the other
WEIGHTED = ("Conv2d", "ConvReLU2d", "Linear", "LinearReLU", "Linear (dynamic)")
EQUALIZATION_ROUNDS = 20


def run(params, cell):
    """Measure every remedy on `cell` (regime `ptq-…`), held-out part; writes remedies.csv and returns the folder.

    The rows `none` (PTQ as it is) and `fp32` are what the others are held against. A remedy that the engine refuses or
    that does not apply to the backbone has no row; `done.json` says why.
    """
    if regimes.method(cell.regime) != "ptq":
        raise UserError(f"regime: remedies without retraining mend ptq-fbgemm and ptq-qnnpack, not {cell.regime!r}.")
    return study(
        params, cell, "remedies", study_name("remedies", cell.regime), lambda part: measure(params, cell, part)
    )


def measure(params, cell, part):
    """({remedies.csv: table}, facts for `done.json`) of one cell."""
    engine_name, family = cell.regime.removeprefix("ptq-"), profiles.backbones()[cell.backbone].family
    rows = calibration_rows(part, params.calibration.images, params.seed)
    batches, labels = list(calibration_batches(part, rows)), torch.from_numpy(part.labels[rows].astype(np.int64))
    original = float_model(params, cell, part)
    models, reasons = {"fp32": original}, []
    build = _transformer if family == "transformer" else _cnn
    makers = build(original, engine_name, batches, labels, params.image_size)
    for name, make in makers.items():
        try:
            models[name] = make(models)
        except (Unsupported, ValueError) as error:
            reasons.append(f"{name}: {error}")
    scores = {}
    for name, model in list(models.items()):
        try:
            probability = evaluate.probabilities(model, part.images[part.held_out])
            scores[name] = {m: metrics.METRICS[m](part.labels[part.held_out], probability) for m in SCORES}
        except (Unsupported, FloatingPointError) as error:
            reasons.append(f"{name}: {error}")
            del models[name]
    p50 = latencies(models, batches[0][:1])
    table = pd.DataFrame(
        [
            {
                "dataset": cell.dataset,
                "backbone": cell.backbone,
                "regime": cell.regime,
                "fold": cell.fold,
                "remedy": name,
                **scores[name],
                "p50_ms": p50[name],
            }
            for name in scores
        ],
        columns=COLUMNS,
    )
    status = {} if "none" in scores else {"status": "unsupported"}
    return {TABLE: table}, status | ({"reason": "; ".join(reasons)} if reasons else {})


def _cnn(model, engine_name, batches, labels, size):
    """{remedy: function of the models made so far} for static quantization, in the order of the table."""

    def quantized(recipe=DEFAULT, source=model, keep=()):
        prepared = static.prepare(source, engine_name, recipe, size, keep)
        static.calibrate(prepared, batches)
        return static.convert(prepared, engine_name)

    @cache
    def diagnosed(int8):
        return diagnosis.layers(model, int8, batches[0])

    def worst(made, k):
        return list(diagnosis.worst(diagnosed(untreated(made)), k, WEIGHTED)["layer"])

    def combined(made):
        better = quantized(BETTER)
        return tempered(bias_corrected(model, kernels.mended(better) or better, batches), batches, labels)

    makers = {"none": lambda made: quantized(), "temperature": lambda made: tempered(untreated(made), batches, labels)}
    for k in KEPT:
        makers[f"worst-{k}-in-fp32"] = lambda made, k=k: quantized(keep=worst(made, k))
    makers |= {
        "bias-correction": lambda made: bias_corrected(model, quantized(), batches),
        "cross-layer-equalization": lambda made: quantized(FUSED, equalized(model)),
        "better-recipe": lambda made: quantized(BETTER),
    }
    if engine_name == "qnnpack":
        makers["mended"] = lambda made: _mended(untreated(made))
    return makers | {"combined": combined}


def _transformer(model, engine_name, batches, labels, size):
    """As `_cnn`, for dynamic quantization: there are neither observers nor batch norm to do anything about."""

    @cache
    def diagnosed(int8):
        return diagnosis.layers(model, int8, batches[0])

    def worst(made, k):
        return list(diagnosis.worst(diagnosed(untreated(made)), k)["layer"])

    makers = {
        "none": lambda made: dynamic.convert(model, engine_name),
        "temperature": lambda made: tempered(untreated(made), batches, labels),
    }
    for k in KEPT:
        makers[f"worst-{k}-in-fp32"] = lambda made, k=k: dynamic.convert(model, engine_name, worst(made, k))
    return makers


def untreated(made):
    """PTQ as it is, among the models made so far; `Unsupported` where the engine refused it."""
    if "none" not in made:
        raise Unsupported("starts from PTQ as it is, which this engine refuses")
    return made["none"]


def _mended(quantized):
    mended = kernels.mended(quantized)
    if mended is None:
        raise ValueError("no operator of this model needs mending")
    return mended


# --- temperature ----------------------------------------------------------------------------------


def fit_temperature(logits, labels):
    """The T > 0 that minimises the negative log-likelihood of softmax(logits / T) (Guo et al., 2017).

    `logits` float [n, classes], `labels` int64 [n]. Sought between 1/20 and 20; ValueError if a logit is not finite.
    """
    from scipy.optimize import minimize_scalar

    logits = logits.double()
    if not torch.isfinite(logits).all():
        raise ValueError("the model's logits are not finite, so that no temperature can be fitted.")

    def loss(log_t):
        return float(nn.functional.cross_entropy(logits / math.exp(log_t), labels))

    return math.exp(
        minimize_scalar(loss, bounds=(-math.log(20), math.log(20)), method="bounded", options={"xatol": 1e-6}).x
    )


def tempered(model, batches, labels):
    """`model` with its logits divided by the temperature that fits the calibration images best."""
    with torch.inference_mode():
        temperature = fit_temperature(torch.cat([model(batch) for batch in batches]), labels)
    return lambda x: model(x) / temperature


# --- bias correction ------------------------------------------------------------------------------


def bias_corrected(model, quantized, batches):
    """`quantized` with the mean error of every channel of every weighted layer taken out of its bias, in place.

    Each layer is corrected on the inputs that the corrected layers before it give (Nagel et al., 2019, section 4.2,
    the empirical form), on the first two calibration batches. `model` is the FP32 model that was quantized.
    """
    graph = quantized.model
    weights = static.float_weights(model, graph)

    def correct(node, module, given):
        weight, bias = weights.get(node.target, (None, None))
        if weight is None:
            return
        packed, old = module.weight(), module.bias()
        exact = kernels.weighted(module, given.exact, weight, bias)
        now = kernels.weighted(module, given.integer.dequantize(), packed.dequantize(), old)
        channel = exact.ndim - 1 if module.weight().ndim == 2 else 1
        error = (exact - now).mean([d for d in range(exact.ndim) if d != channel])
        module.set_weight_bias(packed, error if old is None else old + error)

    with engine(quantized.engine), torch.inference_mode():
        SideBySide(graph, weights, before=correct).run(torch.cat(batches[:2]))
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
    s = torch.where((r1 > 0) & (r2 > 0), (r1 / r2.clamp_min(1e-12)).sqrt(), torch.ones_like(r1)).clamp(1e-3, 1e3)
    first.weight.div_(s.view(-1, *[1] * (first.weight.ndim - 1)))
    if first.bias is not None:
        first.bias.div_(s)
    if depthwise:
        second.weight.mul_(s.view(-1, 1, 1, 1))
    else:
        second.weight.mul_(s.view(1, -1, *[1] * (second.weight.ndim - 2)))


# --- cost -----------------------------------------------------------------------------------------


def latencies(models, image, rounds=ROUNDS):
    """{name: median milliseconds} of each model on one image [1, 3, h, w].

    All are timed in turns, so that they drift alike, in an order drawn anew for each turn: what ran before decides what
    the caches hold.
    """
    times, draw = {name: [] for name in models}, np.random.default_rng(0)
    with torch.inference_mode():
        for i in range(rounds + 2):
            for name in draw.permutation(list(models)):
                start = time.perf_counter()
                models[name](image)
                if i > 1:  # the first two warm up
                    times[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in times.items()}
