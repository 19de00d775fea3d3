"""The training loop of section 2.5, shared by every regime that trains.

All that is random in an epoch (order, augmentation, dropout) is drawn from generators seeded by the run's seed and the
epoch's number alone. So the state after epoch k is the model, the optimizer and the record so far, and a run that was
killed continues to the same bytes as one that was not.
"""

import contextlib
import os
import pickle
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from medq import artefacts
from medq.augment import augment
from medq.errors import UserError
from medq.evaluate import half_precision, probabilities

RESUME = "resume.pt"
HISTORY = ["epoch", "train_loss", "train_accuracy", "accuracy", "seconds"]
TOO_LITTLE = ("CUDA out of memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")  # what a full GPU is called
SHOW_EVERY = 10  # batches between two updates of what the progress bar says


@dataclass(frozen=True)
class Schedule:
    """What the loop needs to know beside model and images."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    patience: int
    min_improvement: float
    seed: int
    device: str = "cpu"
    autocast: torch.dtype | None = None
    compiled: bool = False
    key: str = ""  # what the run was made from: a state saved under another key is not resumed
    before_epoch: object = None  # called with (model in training mode, epoch): the freezing points of QAT
    after_epoch: object = None  # called with the model before it is scored, lest it learn from the images that score


@contextlib.contextmanager
def deterministic(seed, device="cpu"):
    """Fixed seeds, true FP32 and, inside the block, deterministic kernels where they exist (section 2.5)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may sum in another order each time
    np.random.seed(seed)
    torch.manual_seed(seed)
    true_fp32()
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs a pass over each tensor; nothing here reads it
    # The fused kernels of attention sum gradients in any order on a GPU, also when told not to with `warn_only`.
    attention = sdpa_kernel(SDPBackend.MATH) if device == "cuda" else contextlib.nullcontext()
    try:
        with attention:
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def true_fp32():
    """Have a GPU compute FP32 in FP32, not in TF32, from now on."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def fit(model, partition, schedule, folder):
    """Train `model` in place on `partition` and leave its best weights in it; return the history.

    The best weights are those of the highest accuracy on the selection rows (section 2.5); training stops after
    `patience` epochs without an improvement of more than `min_improvement`; 0 epochs leave the model as it is. After
    each epoch all that is needed to go on lies in `folder`. History columns: epoch, train_loss, train_accuracy, accuracy, seconds.
    Raises `UserError` naming the epoch when the loss is no longer finite, and the key when a GPU's memory is too small.
    """
    with deterministic(schedule.seed, schedule.device):
        try:
            return _fit(model, partition, schedule, folder)
        except RuntimeError as error:  # of the allocator, of CUDA or of a library that asks for memory itself
            said = " ".join(str(error).split(". ")[0].splitlines()[:1])
            if not any(sign in said for sign in TOO_LITTLE):
                raise
            raise UserError(
                f"train.batch_size: training with {schedule.batch_size} images at a time does not fit into the "
                f"GPU's memory ({said}); lower it in the profile (or in `overrides` for this backbone), or let "
                "fewer cells share the GPU (MEDQ_GPU_SLOTS)."
            ) from error


def _fit(model, partition, schedule, folder):
    model.to(schedule.device, memory_format=torch.channels_last)
    if not schedule.epochs:
        return pd.DataFrame(columns=HISTORY)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True
    )
    scaler = torch.amp.GradScaler(schedule.device, enabled=schedule.autocast == torch.float16)
    parts = {"model": model, "optimizer": optimizer, "scaler": scaler}
    state = _resume(folder, parts, schedule)
    # Compiled, it shares its weights; `model` itself scores and is saved. A graph for each size of batch: one for all would
    # depend on which sizes this process has met, and a resumed run has met others.
    trained = torch.compile(model, dynamic=False) if schedule.compiled else model
    images = Images(partition, schedule.device)
    while len(state["history"]) < schedule.epochs and state["stale"] < schedule.patience:
        epoch = len(state["history"])
        start = time.perf_counter()
        with _compiling(schedule.compiled):
            loss, train_accuracy = _epoch(trained, images, optimizer, scaler, schedule, epoch)
        if schedule.after_epoch:
            schedule.after_epoch(model)
        predicted = probabilities(
            model, partition.images[partition.selection], device=schedule.device, autocast=schedule.autocast
        )
        accuracy = float((predicted.argmax(1) == partition.labels[partition.selection]).mean())
        _judge(state, model, accuracy, schedule.min_improvement)
        seconds = round(time.perf_counter() - start, 3)
        state["history"].append(dict(zip(HISTORY, (epoch, loss, train_accuracy, accuracy, seconds))))
        said = f"loss {loss:.3f}, accuracy {accuracy:.3f} (training {train_accuracy:.3f}), {seconds:.1f} s"
        print(f"epoch {epoch + 1}/{schedule.epochs}: {said}", file=sys.stderr)
        if len(state["history"]) < schedule.epochs and state["stale"] < schedule.patience:
            _save(folder, state, parts, schedule)
    model.load_state_dict(state["best"])
    return pd.DataFrame(state["history"])


@contextlib.contextmanager
def _compiling(on):
    """The same dropout as uncompiled, and the compiler's errors as one sentence."""
    if not on:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor import config

    try:
        with config.patch(fallback_random=True):
            yield
    except TorchDynamoException as error:
        said = " ".join(str(error).strip().splitlines()[:2])[:200] or type(error).__name__
        raise UserError(
            f"compile: torch.compile cannot train this model here ({said}); set `compile: false`."
        ) from error


class Images:
    """Training images in memory on the device, and the batches of one epoch."""

    def __init__(self, partition, device):
        self.images = torch.from_numpy(np.ascontiguousarray(partition.images[partition.train])).to(device)
        self.labels = torch.from_numpy(partition.labels[partition.train].astype(np.int64)).to(device)

    def batches(self, batch_size, generator):
        order = torch.randperm(len(self.labels), generator=generator)
        for chunk in order.split(batch_size):
            if len(chunk) > 1:  # batch normalisation needs two
                chunk = chunk.to(self.images.device, non_blocking=True)
                yield augment(self.images[chunk], generator), self.labels[chunk]


def _epoch(model, images, optimizer, scaler, schedule, epoch):
    """One pass over the training images; mean loss and accuracy on the augmented batches."""
    from tqdm import tqdm

    generator = torch.Generator().manual_seed(schedule.seed * 100_003 + epoch)
    torch.manual_seed(schedule.seed * 100_003 + epoch)  # dropout and stochastic depth
    model.train()
    if schedule.before_epoch:
        schedule.before_epoch(model, epoch)
    total, right, seen = torch.zeros((), device=schedule.device), torch.zeros((), device=schedule.device), 0
    bar = tqdm(
        images.batches(schedule.batch_size, generator),
        total=-(-len(images.labels) // schedule.batch_size),
        desc=f"epoch {epoch + 1}/{schedule.epochs}",
        unit="batch",
        leave=False,
        disable=not sys.stderr.isatty(),
    )
    for number, (x, y) in enumerate(bar, 1):
        with half_precision(schedule.device, schedule.autocast):
            logits = model(x)
            loss = F.cross_entropy(logits.float(), y)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        total += loss.detach() * len(y)
        right += (logits.detach().argmax(1) == y).sum()
        seen += len(y)
        if not bar.disable and number % SHOW_EVERY == 0:  # reading a value back makes a GPU wait
            bar.set_postfix(loss=f"{float(total) / seen:.3f}", accuracy=f"{float(right) / seen:.3f}", refresh=False)
    mean = float(total) / seen
    if not np.isfinite(mean):
        raise UserError(
            f"the training loss is not finite in epoch {epoch}; lower `train.learning_rate` in the profile "
            "(or `overrides` for this backbone)."
        )
    return mean, float(right) / seen


def _judge(state, model, accuracy, min_improvement):
    """Keep the best weights and count the epochs without a sufficient improvement."""
    if accuracy > state["best_accuracy"]:
        state["best_accuracy"] = accuracy
        state["best"] = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    if accuracy > state["reference"] + min_improvement:
        state["reference"], state["stale"] = accuracy, 0
    else:
        state["stale"] += 1


def _save(folder, state, parts, schedule):
    saved = {name: part.state_dict() for name, part in parts.items()} | {"schedule": _identity(schedule)}
    with artefacts.replacing(Path(folder) / RESUME) as path:
        torch.save(state | saved, path)


def _resume(folder, parts, schedule):
    """The state to go on from: that of the last finished epoch if there is one for the same schedule, else a fresh one."""
    fresh = {"history": [], "best": None, "best_accuracy": -1.0, "reference": -1.0, "stale": 0}
    path = Path(folder) / RESUME
    if not path.is_file():
        return fresh
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        print(f"{path} is damaged ({type(error).__name__}): training starts again.", file=sys.stderr)
        return fresh
    if saved.pop("schedule", None) != _identity(schedule):
        return fresh
    for name, part in parts.items():
        part.load_state_dict(saved.pop(name))
    return saved


def _identity(schedule):
    return {key: str(value) for key, value in vars(schedule).items() if not callable(value)}
