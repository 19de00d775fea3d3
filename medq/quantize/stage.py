"""Stage `quantize`: INT8 by post-training quantization or quantization-aware training of the FP32 checkpoint."""

import dataclasses
import hashlib
import time

import numpy as np
import pandas as pd
import torch
from torch import fx

from medq import artefacts, backbones, evaluate, finetune, fit, keys, params as profiles, provenance, regimes, stages
from medq.augment import normalise
from medq.datasets.partition import once, partition
from medq.errors import UserError
from medq.params import Recipe
from medq.quantize import dynamic, kernels, static, storage
from medq.quantize.engines import Unsupported, engine, short, unsupported
from medq.results import SCHEMA

QUANTIZED = "quantized.safetensors"
CALIBRATION = "calibration.csv"
KERNELS = "kernels.csv"
BATCH = 32
INT8 = regimes.INT8
DEFAULT = Recipe(title="What PyTorch gives for the engine")
QUICK = Recipe(title="As the default, with ranges that take no search", activations="minmax")


def run(params, cell):
    """Quantize `cell` (regime `ptq-…` or `qat-…`) and write its folder; returns the folder.

    Writes predictions of the integer model, of its simulation and, where the engine's kernels are wrong and can be
    mended, of the mended model; of a convolutional model after QAT also of what is converted with the trained scales,
    with mended kernels. Writes the quantized state, the kernels' agreement, and the ids of the calibration images.
    What the engine cannot do ends in status `unsupported` with the reason. The FP32 cell is trained first if need be.
    """
    if artefacts.record(cell.of("fp32").folder) is None:
        for regime, reason in rehearse(cell.backbone, params.image_size, [cell.regime]).items():
            print(f"note: {cell.backbone}: {regime} will be unsupported: {reason}")
    finetune.run(params, cell.of("fp32"))
    part = partition(params, cell.dataset, cell.fold)
    return once(params, "quantize", cell, lambda inputs: _quantize(params, cell, part, inputs))


def _quantize(params, cell, part, inputs):
    started, clock = provenance.now(), time.perf_counter()
    finetune.set_threads(params)
    method, engine_name = regimes.REGIMES[cell.regime].method, regimes.REGIMES[cell.regime].engine
    family = profiles.backbones()[cell.backbone].family
    files, history, facts = [], None, {"family": family, "engine": engine_name}
    try:
        with engine(engine_name):
            pass
        model = float_model(params, cell, part)
        facts["float_bytes"] = storage.state_dict_bytes(model)
        rows = calibration_rows(part, params.calibration.images, params.seed)
        batches = list(calibration_batches(part, rows))
        if method == "qat":
            prepared, history = _train(params, cell, part, model, family, engine_name, keys.key(inputs))
            artefacts.write_csv(cell.folder / finetune.HISTORY, history)
            files.append(finetune.HISTORY)
        before = time.perf_counter()
        if method == "ptq":
            prepared = prepared_model(model, family, engine_name, batches, params.image_size)
        quantized = converted(prepared, engine_name)
        facts["convert_seconds"] = round(time.perf_counter() - before, 3)
        with unsupported("the converted model does not run"), torch.inference_mode():
            quantized(batches[0][:2])
        artefacts.write_text(cell.folder / CALIBRATION, "image_id\n" + "".join(f"{i}\n" for i in part.image_id[rows]))
        models = {
            "predictions.fake-quant.parquet": simulated(prepared, family, method),
            finetune.PREDICTIONS: quantized,
            "predictions.mended.parquet": kernels.mended(quantized),
        }
        if (family, method) == ("cnn", "qat"):
            kept = static.convert(prepared, engine_name, as_trained=True)
            models["predictions.as-trained.parquet"] = kernels.mended(kept) or kept
        files += [CALIBRATION, *_predict(cell, part, models)]
        table, agrees, note = judged(quantized, batches[0])
        artefacts.write_csv(cell.folder / KERNELS, table)
        facts |= {"engine_agrees": agrees, "engine_note": note, "int8_bytes": storage.state_dict_bytes(quantized.model)}
        recipe = DEFAULT if (family, method) == ("cnn", "ptq") else None
        described = {"backbone": cell.backbone, "n_classes": len(part.classes), "image_size": params.image_size}
        storage.save(quantized, cell.folder / QUANTIZED, recipe=recipe, **described)
        files += [KERNELS, QUANTIZED]
        status = {"status": "done"}
    except (Unsupported, FloatingPointError) as error:
        status = {"status": "unsupported", "reason": str(error)}
        files = [name for name in files if name not in (finetune.PREDICTIONS, QUANTIZED)]
    facts |= {"n_train": len(part.train), "n_held_out": len(part.held_out)} | status
    finetune.finish(params, cell, inputs, files, history, started, clock, **facts)


def judged(quantized, batch):
    """(table of the integer kernels against their simulation, whether they agree, note); None where that is unknown."""
    try:
        table = kernels.agreement(quantized, batch)
    except Exception as error:  # the model has run: a check that fails must not lose the cell
        return pd.DataFrame(columns=kernels.COLUMNS), None, f"the integer kernels could not be checked ({short(error)})"
    return table, *kernels.verdict(table)


def rehearse(backbone, image_size, regimes=INT8):
    """{regime: reason} of the INT8 `regimes` that `backbone`, with random weights, cannot be converted for or run in.

    It takes seconds and needs neither images nor a trained model. `UserError` where the model cannot be built for
    images of this size.
    """
    family, found, x = profiles.backbones()[backbone].family, {}, torch.rand(2, 3, image_size, image_size)
    for regime in (name for name in regimes if name in INT8):
        method, engine_name = regime.split("-")
        try:
            with engine(engine_name), torch.random.fork_rng(devices=[]):
                model = _as_if_trained(backbones.create(backbone, 4, image_size)).eval()
                backbones.check_images(model, backbone, 4, image_size)
                if method == "qat":
                    prepared = _prepared_training(model, family, engine_name, image_size)
                    prepared(x)
                else:
                    prepared = prepared_model(model, family, engine_name, [x], image_size, QUICK)
            with unsupported("the converted model does not run"), torch.inference_mode():
                converted(prepared.eval(), engine_name)(x)
        except Unsupported as error:
            found[regime] = str(error)
    return found


def _as_if_trained(model):
    """`model` without branches that start closed (zero batch norms, layer scale of 1e-6), whose values have no range."""
    for name, values in model.named_parameters():
        if not name.endswith("bias") and values.detach().abs().max() < 1e-3:
            torch.nn.init.ones_(values)
    return model


def study(stage, measure):
    """The function `run(params, cell)` of a stage that studies a trained cell: it makes the study's folder and returns it.

    `measure(params, cell, partition)` gives ({file: table}, facts for `done.json`); the FP32 cell is trained first if need be.
    """

    def run(params, cell):
        place = cell.of(study_name(stage, cell.regime))
        finetune.run(params, cell.of("fp32"))
        part = partition(params, cell.dataset, cell.fold)

        def make(inputs):
            started, clock = provenance.now(), time.perf_counter()
            finetune.set_threads(params)
            tables, facts = measure(params, cell, part)
            for file, table in tables.items():
                artefacts.write_csv(place.folder / file, table)
            finetune.finish(params, place, inputs, list(tables), None, started, clock, **facts)

        return once(params, stage, place, make)

    return run


def study_name(stage, regime):
    """Name of a study's folder: the stage, and where it studies one INT8 regime the engine (and `qat`)."""
    studied = regimes.of(*stages.STAGES[stage].methods)
    if not studied:
        return stage
    if regime not in studied:
        raise UserError(f"regime: {stage} is for {', '.join(studied)}, not {regime!r}; give one of these.")
    return f"{stage}-{regime.removeprefix('ptq-')}"


def tidy(rows, cell, file):
    """The table `file` of a study from `rows` (dicts or a table), with the columns that name the cell, in the order of its schema."""
    named = {name: getattr(cell, name) for name in ("dataset", "backbone", "regime", "fold")}
    return pd.DataFrame(rows).assign(**named).reindex(columns=SCHEMA[file])


def float_model(params, cell, part, regime="fp32"):
    """The trained floating-point model beside a cell, on the CPU, in evaluation mode."""
    path = cell.of(regime).folder / finetune.CHECKPOINT
    return backbones.create(cell.backbone, len(part.classes), params.image_size, str(path), trained=True).eval()


def calibration_rows(part, n, seed, draw=0):
    """Positions of `n` training images, ascending in a fixed random order of their ids: larger sets hold the smaller.

    `draw` numbers independent orders. Raises `UserError` where the training part has fewer than `n` images.
    """
    if n > len(part.train):
        raise UserError(f"calibration.images: {n} are asked for but the training part has {len(part.train)}; lower it.")
    order = sorted(part.train, key=lambda row: hashlib.sha256(f"{seed}:{draw}:{part.image_id[row]}".encode()).digest())
    return np.array(order[:n])


def calibration(params, part, prepare=normalise):
    """The profile's calibration images as a list of batches; see `calibration_rows` and `calibration_batches`."""
    return list(calibration_batches(part, calibration_rows(part, params.calibration.images, params.seed), prepare))


def trained_integer(params, cell):
    """The INT8 model of a QAT cell, trained first if need be; `Unsupported` where there is none."""
    path = run(params, cell) / QUANTIZED
    if not path.is_file():
        raise Unsupported("the QAT cell is unsupported, so there is no model")
    return storage.load(path)


def outcome(reasons, rows):
    """Facts of a study for `done.json`: each of `reasons` once, and `unsupported` where no `rows` were measured."""
    facts = {"reason": "; ".join(dict.fromkeys(reasons))} if reasons else {}
    return facts if len(rows) else facts | {"status": "unsupported"}


def calibration_batches(part, rows, prepare=normalise):
    """The images at `rows` as normalised float32 batches of at most 32 (`unnormalised`: in [0, 1])."""
    for start in range(0, len(rows), BATCH):
        yield prepare(torch.from_numpy(np.ascontiguousarray(part.images[rows[start : start + BATCH]])))


def prepared_model(model, family, engine_name, batches, image_size, recipe=DEFAULT):
    """`model` observed on `batches` (static) or simulated (dynamic), ready to be simulated and converted."""
    if family == "transformer":
        return dynamic.prepare_training(model, engine_name).eval()
    prepared = static.prepare(model, engine_name, recipe, image_size)
    static.calibrate(prepared, batches)
    return prepared


def converted(prepared, run_engine):
    """The integer model of what `prepared_model` or QAT gave: a graph where it is static."""
    return (static if isinstance(prepared, fx.GraphModule) else dynamic).convert(prepared, run_engine)


def simulated(prepared, family, method):
    """The fake-quantized model, in floating point, in evaluation mode."""
    if method == "ptq" and family == "cnn":
        return static.simulate(prepared)
    return prepared.eval()


def _prepared_training(model, family, engine_name, image_size):
    if family == "transformer":
        return dynamic.prepare_training(model, engine_name)
    return static.prepare_training(model, engine_name, image_size)


def _train(params, cell, part, model, family, engine_name, key):
    """Quantization-aware training on the fine-tuning device; the prepared model comes back on the CPU."""
    prepared = _prepared_training(model, family, engine_name, params.image_size)
    schedule = finetune.schedule_of(params, cell, finetune.pick_device(params.device), key)
    qat = params.quantization(cell.backbone)
    freeze_at = max(1, round(qat.freeze_observers * qat.epochs))  # without one epoch of observing there are no ranges
    freeze_batch_norm = schedule.before_epoch

    def before(model, epoch):
        freeze_batch_norm(model, epoch)
        static.observe(model, epoch < freeze_at)

    # `eval()` does not stop an observer: without this the held-out images would move the activations' ranges.
    schedule = dataclasses.replace(
        schedule, before_epoch=before, after_epoch=lambda model: static.observe(model, False)
    )
    history = fit.fit(prepared, part, schedule, cell.folder)
    return prepared.cpu().eval(), history


def _predict(cell, part, models):
    """Write the predictions of `models` {file: model or None}; returns the files' names."""
    models = {name: model for name, model in models.items() if model is not None}
    for name, model in models.items():
        probability = evaluate.probabilities(model, part.images[part.held_out])
        artefacts.write_parquet(cell.folder / name, finetune.held_out_table(part, cell.fold, probability))
    return list(models)
