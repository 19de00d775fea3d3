"""Stage `finetune`: FP32 and FP16 training of section 2.5, and two controls that start from the FP32 checkpoint.

`fp32-continued` trains on for QAT's schedule; `fp32-autocast` trains nothing and evaluates it in half precision.
"""

import ctypes
import json
import sys
import time
from functools import cache

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from medq import artefacts, backbones, evaluate, fit, keys, params as profiles, provenance, regimes
from medq.datasets.partition import once, partition
from medq.errors import UserError

CHECKPOINT = "checkpoint.safetensors"
PREDICTIONS = "predictions.parquet"
HISTORY = "history.csv"
MANIFEST = "manifest.json"
TRAINED_ON = "trained_on.csv"  # ids of the images that the model was trained on or selected with
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h


def run(params, cell):
    """Train `cell` (regime `fp32`, `fp16`) or make a control from its FP32 model, and write its folder; returns the folder.

    Writes the checkpoint, predictions of the held-out images, training history and manifest, then `done.json`. A
    finished cell with the same inputs is left as it is; an interrupted one goes on from its last epoch.
    """
    if cell.regime in profiles.CONTROLS:
        run(params, cell.of("fp32"))
    part = partition(params, cell.dataset, cell.fold)
    return once(params, "finetune", cell, lambda inputs: _train(params, cell, part, inputs))


def _train(params, cell, part, inputs):
    started, clock = provenance.now(), time.perf_counter()
    device = pick_device(params.device)
    set_threads(params)
    schedule = schedule_of(params, cell, device, keys.key(inputs))
    control = cell.regime in profiles.CONTROLS
    weights = cell.of("fp32").folder / CHECKPOINT if control else params.weights_of(cell.backbone)
    described = {"n_classes": len(part.classes), "image_size": params.image_size}
    with fit.deterministic(schedule.seed):
        trained = control or not schedule.epochs
        model = backbones.create(cell.backbone, **described, weights=str(weights), trained=trained)
    backbones.check_images(model, cell.backbone, **described)
    history = fit.fit(model, part, schedule, cell.folder)
    probability = evaluate.probabilities(model, part.images[part.held_out], device=device, autocast=schedule.autocast)
    artefacts.write_parquet(cell.folder / PREDICTIONS, held_out_table(part, cell.fold, probability))
    artefacts.write_csv(cell.folder / HISTORY, history)
    seen = np.setdiff1d(np.union1d(part.train, part.selection), part.held_out)
    artefacts.write_csv(cell.folder / TRAINED_ON, pd.DataFrame({"image_id": part.image_id[seen]}))
    files = [PREDICTIONS, HISTORY, TRAINED_ON]
    if cell.regime != "fp32-autocast":
        save_weights(model, cell.folder / CHECKPOINT, backbone=cell.backbone, **described)
        files.append(CHECKPOINT)
    facts = {"device": device, "loaded": model.loaded, "n_train": len(part.train), "n_held_out": len(part.held_out)}
    facts["autocast"] = str(schedule.autocast or "off").removeprefix("torch.")
    finish(params, cell, inputs, files, history, started, clock, **facts)


def schedule_of(params, cell, device, key):
    """The `fit.Schedule` of a cell: section 2.5, or QAT's where the cell is QAT or its control."""
    values = params.training(cell.backbone).model_dump(exclude={"selection"}) | {
        "compiled": params.compile and regimes.method(cell.regime) != "qat",
        "seed": params.seed if cell.seed is None else cell.seed,
        "device": device,
        "key": key,
    }
    if cell.regime in ("fp16", "fp32-autocast"):
        values["autocast"] = torch.float16 if device == "cuda" else torch.bfloat16
    if not regimes.REGIMES[cell.regime].schedule:
        values["epochs"] = 0
    if regimes.REGIMES[cell.regime].schedule == "qat":
        qat = params.quantization(cell.backbone)
        freeze_at = round(qat.freeze_batch_norm * qat.epochs)
        values |= {"epochs": qat.epochs, "learning_rate": qat.learning_rate}
        values["before_epoch"] = lambda model, epoch: epoch >= freeze_at and freeze_batch_norm(model)
    return fit.Schedule(**values)


def freeze_batch_norm(model):
    """Keep the running statistics of every batch-norm layer as they are, and use them."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()


def held_out_table(part, fold, probability):
    """The predictions table of a partition's held-out images."""
    return evaluate.table(part.image_id[part.held_out], fold, part.labels[part.held_out], probability, part.classes)


def pick_device(device):
    """`cuda` where asked for or (`auto`) present, else `cpu`. Raises `UserError` where it is asked for and absent."""
    if device == "cpu":
        return device
    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise UserError(
            "device: cuda is asked for, but torch sees no GPU here; set `device: auto` (the GPU where there is one) "
            "or `cpu` in the profile, or see what `medq doctor` says of the driver."
        )
    return "cpu"


def set_threads(params):
    """Use as many threads as `params.thread_count` says, and keep freed memory (`keep_memory`)."""
    keep_memory()
    if threads := params.thread_count():
        torch.set_num_threads(threads)


@cache
def keep_memory():
    """Let this process keep the memory that it frees, which halves the time of training on a CPU.

    glibc maps every large tensor anew and returns it when it is freed; half of an epoch then goes into page faults
    (`benchmarks/memory.py`). Other C libraries are left as they are.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28)):
            libc.mallopt(option, value)


def save_weights(model, path, **facts):
    """Write a state dict as safetensors with `facts` in its header, the same bytes for the same weights."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    with artefacts.replacing(path) as temporary:
        save_file(state, temporary, metadata={"medq": json.dumps(facts)})  # several entries have no fixed order


def finish(params, cell, inputs, files, history, started, clock, status="done", **facts):
    """Write the manifest, then `done.json` with the checksums of `files`; remove the state kept for resuming."""
    place = {name: value for name, value in vars(cell).items() if value is not None}
    spent = {"started": started, "seconds": round(time.perf_counter() - clock, 1)}
    manifest = provenance.manifest(params, cell=place, inputs=inputs, **spent, **facts)
    artefacts.write_json(cell.folder / MANIFEST, manifest)
    told = {name: facts[name] for name in ("reason", "absent", "engine_agrees", "engine_note") if name in facts}
    told = json.loads(json.dumps(told))  # NumPy's truth values as Python's
    trained = {"train_seconds": 0.0, "epochs": 0}
    if history is not None:
        trained = {"train_seconds": round(float(history["seconds"].sum()), 1), "epochs": len(history)}
    record = {"status": status, "key": keys.key(inputs), "inputs": inputs} | trained | told
    artefacts.finish(cell.folder, [*files, MANIFEST], **record)
    (cell.folder / fit.RESUME).unlink(missing_ok=True)
