"""Where does a quantized model lose its signal? Every layer against its FP32 twin, and against its own arithmetic."""

import math

import pandas as pd
import torch
from torch import fx, nn

from medq import params as profiles
from medq.quantize import kernels, storage
from medq.quantize.engines import Unsupported, engine, refusals
from medq.quantize.stage import (
    QUANTIZED,
    calibration_batches,
    calibration_rows,
    converted,
    float_model,
    prepared_model,
    study,
    study_name,
)
from medq.quantize.stage import run as quantize
from medq.quantize.static import float_weights
from medq.quantize.twin import SideBySide

LAYERS = "layers.csv"
OWN = ["layer", "operator", "sqnr_db", "saturation", "weight_range_ratio", "channel_range_ratio"]
COLUMNS = [*OWN, "kernel_sqnr_db", "kernel_max_steps"]
MOVES = ("Identity", "Dropout", "Flatten", "flatten", "reshape", "view", "permute", "contiguous", "getattr")


def layers(float_model, quantized, batch):
    """One row per quantized layer of `quantized` (a `medq.quantize.Quantized`) on `batch` (float32 [n, 3, h, w]).

    Columns: layer, operator;
    sqnr_db: signal to noise of the layer's output against its FP32 twin on the same images, dB. It holds the noise of
        all layers before it too;
    saturation: share of the twin's outputs that lie more than half a step outside the layer's grid and are clipped;
    weight_range_ratio: widest over narrowest non-zero range of the weights of an output channel;
    channel_range_ratio: widest over median range of the channels of the twin's output, which share one scale;
    kernel_sqnr_db, kernel_max_steps: the layer's integer kernel against floating point on its own inputs
        (`medq.quantize.agreement`).
    What a layer lacks is NaN; layers that only move values are left out. `float_model` is the FP32 model that was
    quantized; None where its weights no longer exist (quantization-aware training): the twin then has the quantized
    weights, and the noise is that of the activations alone. Raises `Unsupported` where the engine refuses the model.
    """
    agreement = kernels.agreement(quantized, batch)
    run = _static if isinstance(quantized.model, fx.GraphModule) else _dynamic
    with engine(quantized.engine), refusals(), torch.inference_mode():
        rows = run(float_model, quantized.model, batch)
    frame = pd.DataFrame(rows, columns=OWN)
    for table in (frame, agreement):
        table["call"] = table.groupby("layer").cumcount()  # a module may be called more than once
    frame = frame.merge(agreement[["layer", "call", *COLUMNS[len(OWN) :]]], on=["layer", "call"], how="left")
    return frame[~frame["operator"].isin(MOVES)][COLUMNS].reset_index(drop=True)


def worst(table, n=3, among=None):
    """The `n` rows of `layers` with the lowest signal to noise, worst first; `among` restricts the operators."""
    table = table if among is None else table[table["operator"].isin(among)]
    return table.nsmallest(n, "sqnr_db").reset_index(drop=True)


def _static(float_model, model, batch):
    weights = {} if float_model is None else float_weights(float_model, model)
    rows = []

    def visit(node, given, result, known):
        integer, exact = result.integer, result.exact
        if not (isinstance(integer, torch.Tensor) and integer.is_quantized and _quantized(given)):
            return
        layer, operator = kernels.layer_and_operator(model, node)
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        ratio = math.nan
        if isinstance(module, kernels.WEIGHTED):
            ratio = weight_range_ratio(weights.get(layer, (module.weight().dequantize(),))[0])
        noise = kernels.sqnr_db(exact, integer.dequantize() - exact) if known else math.nan
        saturation = clipped(integer, exact) if known else math.nan
        rows.append((layer, operator, noise, saturation, ratio, channel_range_ratio(exact)))

    SideBySide(model, weights, visit).run(batch)
    return rows


def _quantized(values):
    return any(
        _quantized(value) if isinstance(value, (list, tuple)) else getattr(value, "is_quantized", False)
        for value in values
    )


def clipped(integer, exact):
    """Share of `exact` more than half a step outside the grid of the quantized tensor `integer`."""
    info = torch.iinfo(integer.int_repr().dtype)
    steps = exact / integer.q_scale() + integer.q_zero_point()
    return float(((steps < info.min - 0.5) | (steps > info.max + 0.5)).double().mean())


def weight_range_ratio(weight):
    """Widest over narrowest non-zero range (maximum - minimum) of the output channels of a weight [channels, …]."""
    flat = weight.detach().flatten(1)
    ranges = flat.amax(1).clamp_min(0) - flat.amin(1).clamp_max(0)
    ranges = ranges[ranges > 0]
    return float(ranges.max() / ranges.min()) if len(ranges) else math.nan


def channel_range_ratio(values):
    """Widest over median range (maximum - minimum, zero included) of the channels of `values` [n, channels, …]."""
    flat = values.detach().transpose(0, 1).flatten(1) if values.ndim > 1 else values[None]
    ranges = flat.amax(1).clamp_min(0) - flat.amin(1).clamp_max(0)
    middle = float(ranges.median())
    return float(ranges.max()) / middle if middle else math.nan


def _dynamic(float_model, model, batch):
    """Each dynamic Linear: its output in the quantized model against that of the same layer in the FP32 model."""
    names = [name for name, module in model.named_modules() if isinstance(module, kernels.DYNAMIC)]
    integer = _outputs(model, names, batch)
    exact = {} if float_model is None else _outputs(float_model, names, batch)
    rows = []
    for name in names:
        for got, wanted in zip(integer[name], exact.get(name, [None] * len(integer[name]))):
            weight = (model if float_model is None else float_model).get_submodule(name).weight
            weight = weight if isinstance(weight, nn.Parameter) else weight().dequantize()
            ratio = math.nan if wanted is None else kernels.sqnr_db(wanted, got - wanted)
            rows.append((name, "Linear (dynamic)", ratio, math.nan, weight_range_ratio(weight), math.nan))
    return rows


def _outputs(model, names, batch):
    """{name: [output of each call]} of the named modules on `batch`."""
    found = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: found[name].append(output.detach())
        )
        for name in names
    ]
    try:
        model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def run(params, cell):
    """Diagnose the INT8 model of `cell` (regime `ptq-…` or `qat-…`) on a calibration batch; returns the folder.

    Writes layers.csv. A PTQ model is made again from the FP32 checkpoint; a QAT model is loaded (and trained first if
    need be), and has no FP32 twin with weights of its own (see `layers`).
    """
    return study(
        params, cell, "diagnosis", study_name("diagnosis", cell.regime), lambda part: measure(params, cell, part)
    )


def measure(params, cell, part):
    """({layers.csv: table}, facts for `done.json`) of one cell."""
    rows = calibration_rows(part, params.calibration.images, params.seed)
    batches = list(calibration_batches(part, rows))
    try:
        original, quantized = _models(params, cell, part, batches)
        table = layers(original, quantized, batches[0])
    except Unsupported as error:
        table, facts = pd.DataFrame(columns=COLUMNS), {"status": "unsupported", "reason": str(error)}
    else:
        facts = {"worst_layers": list(worst(table)["layer"])}
    for place, (name, value) in enumerate(
        (("dataset", cell.dataset), ("backbone", cell.backbone), ("regime", cell.regime), ("fold", cell.fold))
    ):
        table.insert(place, name, value)
    return {LAYERS: table}, facts


def _models(params, cell, part, batches):
    """(FP32 model or None, integer model) of an INT8 cell."""
    family, (method, engine_name) = profiles.backbones()[cell.backbone].family, cell.regime.split("-")
    if method == "qat":
        path = quantize(params, cell) / QUANTIZED
        if not path.is_file():
            raise Unsupported("the QAT cell is unsupported, so there is no model to diagnose")
        return None, storage.load(path)
    with engine(engine_name):
        original = float_model(params, cell, part)
    prepared = prepared_model(original, family, engine_name, batches, params.image_size)
    return original, converted(prepared, family, engine_name)
