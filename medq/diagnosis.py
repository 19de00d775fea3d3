"""Where does a quantized model lose its signal? Every layer against its FP32 twin, and against its own arithmetic."""

import math

import pandas as pd
import torch
from torch import fx, nn
from torch.nn import functional as F

from medq import params as profiles, regimes
from medq.quantize import kernels
from medq.quantize.engines import Unsupported, engine, refusals
from medq.quantize.stage import calibration, converted, float_model, prepared_model, study, tidy, trained_integer
from medq.quantize.static import float_weights

LAYERS = "layers.csv"
_OWN = ["layer", "operator", "sqnr_db", "saturation", "weight_range_ratio", "channel_range_ratio", "normed_range_ratio"]
COLUMNS = [*_OWN, "kernel_sqnr_db", "kernel_max_steps"]
MOVES = ("Identity", "Dropout", "Flatten", "flatten", "reshape", "view", "permute", "contiguous", "getattr", "dropout")


def layers(float_model, quantized, batch):
    """One row per quantized layer of `quantized` (a `medq.quantize.Quantized`) on `batch` (float32 [n, 3, h, w]).

    Columns: layer, operator;
    sqnr_db: signal to noise of the layer's output against its FP32 twin on the same images, dB. It includes the noise of
        all layers before it;
    saturation: share of the twin's outputs more than half a step outside the layer's grid, which are clipped;
    weight_range_ratio: widest over narrowest non-zero range of the weights of an output channel;
    channel_range_ratio: widest over median range of the channels of the twin's output, which share one scale;
    normed_range_ratio: the same after a batch norm that is not folded into the layer, which amplifies the noise of the
        channels that it widens;
    kernel_sqnr_db, kernel_max_steps: the layer's integer kernel against floating point on its own inputs
        (`medq.quantize.agreement`).
    What a layer lacks, or what is not known of an operator, is NaN; layers that only move values are left out.
    `float_model` is the FP32 model that was quantized; None where its weights no longer exist (quantization-aware
    training): the twin then has the quantized weights, and the noise is that of the activations alone. Raises
    `Unsupported` where the engine refuses the model.
    """
    agreement = kernels.agreement(quantized, batch)
    run = _static if isinstance(quantized.model, fx.GraphModule) else _dynamic
    with engine(quantized.engine), refusals(), torch.inference_mode():
        frame = pd.DataFrame(run(float_model, quantized.model, batch), columns=_OWN)
    # Both tables have one row for each call of an operator, in the same order.
    frame = frame.join(agreement[["kernel_sqnr_db", "kernel_max_steps"]])
    return frame[~frame["operator"].isin(MOVES)][COLUMNS].reset_index(drop=True)


def worst(table, n=3, among=None):
    """The `n` rows of `layers` with the lowest signal to noise, worst first; `among` restricts the operators."""
    table = table if among is None else table[table["operator"].isin(among)]
    return table.nsmallest(n, "sqnr_db").reset_index(drop=True)


def _static(float_model, model, batch):
    weights = {} if float_model is None else float_weights(float_model, model)
    rows, sources = {}, {}

    def visit(node, result, known, quantized):
        exact = result.exact
        if node.op == "call_method" and node.target == "dequantize":
            sources[node] = node.args[0]
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        before = sources.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if before in rows and (node.target is F.batch_norm or isinstance(module, nn.modules.batchnorm._BatchNorm)):
            rows[before]["normed_range_ratio"] = channel_range_ratio(exact)
        if not quantized:
            return
        layer, operator = kernels.layer_and_operator(model, node)
        rows[node] = {"layer": layer, "operator": operator}
        if isinstance(module, kernels.WEIGHTED):
            rows[node]["weight_range_ratio"] = weight_range_ratio(
                weights.get(layer, (module.weight().dequantize(),))[0]
            )
        if known:
            rows[node] |= {
                "sqnr_db": kernels.sqnr_db(exact, result.integer.dequantize() - exact),
                "saturation": clipped(result.integer, exact),
                "channel_range_ratio": channel_range_ratio(exact),
            }

    kernels.SideBySide(model, weights, visit).run(batch)
    return list(rows.values())


def clipped(integer, exact):
    """Share of `exact` more than half a step outside the grid of the quantized tensor `integer`."""
    info = torch.iinfo(integer.int_repr().dtype)
    steps = exact / integer.q_scale() + integer.q_zero_point()
    return float(((steps < info.min - 0.5) | (steps > info.max + 0.5)).double().mean())


def weight_range_ratio(weight):
    """Widest over narrowest non-zero range (maximum - minimum) of the output channels of a weight [channels, …]."""
    ranges = _ranges(weight.detach())
    ranges = ranges[ranges > 0]
    return float(ranges.max() / ranges.min()) if len(ranges) else math.nan


def channel_range_ratio(values):
    """Widest over median range (maximum - minimum, zero included) of the channels of `values` [n, channels, …]."""
    ranges = _ranges(values.detach().transpose(0, 1) if values.ndim > 1 else values[None])
    middle = float(ranges.median())
    return float(ranges.max()) / middle if middle else math.nan


def _ranges(values):
    flat = values.flatten(1)
    return flat.amax(1).clamp_min(0) - flat.amin(1).clamp_max(0)


def _dynamic(float_model, model, batch):
    """Each dynamic Linear: its output in the quantized model against that of the same layer in the FP32 model."""
    names = [name for name, module in model.named_modules() if isinstance(module, kernels.DYNAMIC)]
    rows, exact = [], []
    if float_model is not None:
        kernels.run_watched(float_model, names, batch, lambda name, _, output: exact.append(output))

    def compare(name, _, output):
        weight = (model if float_model is None else float_model).get_submodule(name).weight
        ratio = weight_range_ratio(weight().dequantize() if float_model is None else weight)
        row = {"layer": name, "operator": "Linear (dynamic)", "weight_range_ratio": ratio}
        if exact:
            wanted = exact[len(rows)]
            row["sqnr_db"] = kernels.sqnr_db(wanted, output - wanted)
        rows.append(row)

    kernels.run_watched(model, names, batch, compare)
    return rows


def measure(params, cell, part):
    """({layers.csv: `layers` of its INT8 model on a calibration batch}, facts) of one cell (regime `ptq-…` or `qat-…`).

    A PTQ model is made again from the FP32 checkpoint; a QAT model is loaded (and trained first if need be), and has no
    FP32 twin with weights of its own.
    """
    batches, family = calibration(params, part), profiles.backbones()[cell.backbone].family
    regime = regimes.REGIMES[cell.regime]
    try:
        if regime.method == "qat":
            original, quantized = None, trained_integer(params, cell)
        else:
            original = float_model(params, cell, part)
            prepared = prepared_model(original, family, regime.engine, batches, params.image_size)
            quantized = converted(prepared, regime.engine)
        table = layers(original, quantized, batches[0])
        facts = {"worst_layers": list(worst(table)["layer"])}
    except Unsupported as error:
        table, facts = [], {"status": "unsupported", "reason": str(error)}
    return {LAYERS: tidy(table, cell, LAYERS)}, facts


run = study("diagnosis", measure)
