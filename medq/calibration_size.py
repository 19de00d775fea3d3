"""Figure 4: how many calibration images does static post-training quantization need?"""

import copy

from medq import evaluate, metrics, params as profiles, regimes
from medq.quantize import static
from medq.quantize.engines import Unsupported
from medq.quantize.stage import DEFAULT, calibration_batches, calibration_rows, float_model, outcome, study, tidy

TABLE = "calibration_size.csv"
DYNAMIC = "dynamic quantization reads no calibration images"


def measure(params, cell, part):
    """({calibration_size.csv: AUPRC by the calibration set's size}, facts) of one cell (regime `ptq-…`).

    Sizes are `params.calibration.sizes` as far as the training part reaches, each drawn `params.calibration.subsets`
    times. For a transformer the table is empty and the facts give the reason.
    """
    sizes = sorted({size for size in params.calibration.sizes if size <= len(part.train)})
    rows, reasons, engine_name = [], [], regimes.REGIMES[cell.regime].engine
    dynamic = profiles.backbones()[cell.backbone].family == "transformer"
    if dynamic or not sizes:
        few = f"the training part has {len(part.train)} images, fewer than any size of the sweep"
        return {TABLE: tidy([], cell, TABLE)}, {"reason": DYNAMIC if dynamic else few}
    try:
        fresh = static.prepare(float_model(params, cell, part), engine_name, DEFAULT, params.image_size)
        for subset in range(params.calibration.subsets):
            order = calibration_rows(part, sizes[-1], params.seed, draw=subset)
            for size, auprc in _sweep(fresh, engine_name, part, order, sizes, reasons):
                rows.append({"n_calibration": size, "subset": subset, "auprc": auprc})
    except Unsupported as error:
        reasons.append(str(error))
    return {TABLE: tidy(rows, cell, TABLE)}, outcome(reasons, rows)


def _sweep(fresh, engine_name, part, order, sizes, reasons):
    """(size, AUPRC) for each size: the observers go on from the smaller set, so all cost as much as the largest."""
    prepared = copy.deepcopy(fresh)
    for seen, size in zip([0, *sizes], sizes):
        static.calibrate(prepared, calibration_batches(part, order[seen:size]))
        try:
            quantized = static.convert(prepared, engine_name)
            probability = evaluate.probabilities(quantized, part.images[part.held_out])
        except (Unsupported, FloatingPointError) as error:
            reasons.append(f"{size} images: {error}")
            continue
        yield size, metrics.auprc(part.labels[part.held_out], probability)


run = study("calibration_size", measure)
