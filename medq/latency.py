"""Stage `latency`: how long a batch takes (section 2.8 of the paper), and how sure of it one can be.

Every model of a backbone is timed in one process, in short turns in random order, so that a machine that
drifts moves all of them. Times do not depend on what the weights say, only on the graph: one timing per
backbone serves every dataset.
"""

import contextlib
import copy
import gc
import os
import random
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import binom

from medq import artefacts, backbones, finetune, fit, params as profiles, paths, provenance, regimes, stages
from medq.augment import normalise
from medq.datasets.partition import lock, partition
from medq.errors import UserError
from medq.params import Recipe
from medq.quantize import static, storage
from medq.quantize.engines import Unsupported
from medq.quantize.stage import calibration_batches, calibration_rows, converted, prepared_model
from medq.results import SCHEMA

TIMINGS, RAW, MANIFEST = "latency.csv", "latency_raw.parquet", "manifest.json"
TURNS = 20  # a model's time is spent in so many turns
ENOUGH, TAIL = 6, 368  # the smallest samples whose median, and whose 99th percentile, has a 95 % interval
TAILS = (("fp32", "eager"), ("ptq-fbgemm", ""))  # whose tail at batch 1 Table 4 shows
FUSED = Recipe(title="Batch norm fused into its convolution", batch_norm="fused")
SAME_GRAPH = "dynamic quantization gives the same integer graph with and without quantization-aware training"


# --- statistics -----------------------------------------------------------------------------------


def percentile(sample, q, confidence=0.95):
    """(value, low, high) of the `q` quantile of `sample` [n], with a distribution-free confidence interval.

    The interval lies between two order statistics: the number of values below the true quantile is
    binomial(n, q), so each bound is the outermost rank that is missed with probability of at most (1 -
    confidence) / 2. Where the sample has no such rank all three are NaN; at 95 % that takes 6 values for the
    median, 36 for p90 and 368 for p99. Values are taken as independent, which turns in random order make them
    nearly. `ValueError` unless 0 < q, confidence < 1.
    """
    if not (0 < q < 1 and 0 < confidence < 1):
        raise ValueError(f"q and confidence must lie between 0 and 1, not {q} and {confidence}")
    ordered, alpha = np.sort(np.asarray(sample, dtype=float)), (1 - confidence) / 2
    n = len(ordered)
    if n == 0:
        return (np.nan,) * 3
    low, high = int(binom.ppf(alpha, n, q)), int(binom.ppf(1 - alpha, n, q)) + 1  # ranks, counted from 1
    if low < 1 or high > n:
        return (np.nan,) * 3
    return float(np.quantile(ordered, q)), float(ordered[low - 1]), float(ordered[high - 1])


def summary(ms, batch_size):
    """n_batches, mean_ms, p50_ms, p90_ms, p99_ms, their bounds and throughput (images per second) of batch
    times `ms`."""
    found = {"n_batches": len(ms), "mean_ms": float(np.mean(ms)), "throughput": 1000 * batch_size / float(np.mean(ms))}
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        found[f"{name}_ms"], found[f"{name}_low"], found[f"{name}_high"] = percentile(ms, q)
    return found


# --- timing ---------------------------------------------------------------------------------------


def interleave(
    calls, *, warmup, seconds, batches, enough=None, seed=42, synchronise=lambda: None, clock=time.perf_counter
):
    """Milliseconds of each call of each function of `calls` {key: function}, as {key: list}, timed in turns.

    First up to `warmup` calls each (at most a quarter of `seconds`, at least one). Then, turn after turn in
    random order, an untimed call that brings the model back into the caches and timed ones for a share of
    `seconds`; calls longer than the share need no untimed one. A function ends after `batches` calls or
    `seconds` seconds, but not before six calls, or as many as `enough` {key: number} says. `synchronise` is called
    before each reading of the clock.
    """

    def once(call):
        synchronise()
        start = clock()
        call()
        synchronise()
        return clock() - start

    found, order, share = {key: [] for key in calls}, random.Random(seed), seconds / TURNS
    least = dict.fromkeys(calls, ENOUGH) | (enough or {})
    for call in calls.values():
        spent = 0.0
        for _ in range(max(1, warmup)):
            spent += once(call)
            if spent > seconds / 4:
                break
    active = list(calls)
    while active:
        order.shuffle(active)
        for key in active:
            if not found[key] or found[key][-1] < share:
                calls[key]()
            spent = 0.0
            while spent < share and len(found[key]) < batches:
                found[key].append(once(calls[key]))
                spent += found[key][-1]
        active = [
            key
            for key in active
            if len(found[key]) < batches and (sum(found[key]) < seconds or len(found[key]) < least[key])
        ]
    return {key: [1000 * value for value in values] for key, values in found.items()}


def thread_count(params):
    """Threads of a timing: `latency.threads`, else every core that this process may use (`UserError` if there
    are fewer)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if (params.latency.threads or 1) > cores:
        raise UserError(
            f"latency.threads: {params.latency.threads} are asked for but this process may use {cores} cores; lower it."
        )
    return params.latency.threads or cores


@contextlib.contextmanager
def pinned(threads):
    """Inside the block torch uses `threads` threads and the process keeps to as many cores; yields what was
    set.

    Where the system cannot pin (not Linux), `cores` is empty.
    """
    before, allowed = torch.get_num_threads(), None
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        _pin(sorted(allowed)[:threads])
    torch.set_num_threads(threads)
    try:
        yield {
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "cores": sorted(allowed)[:threads] if allowed else [],
        }
    finally:
        torch.set_num_threads(before)
        if allowed:
            _pin(allowed)


def _pin(cores):
    for task in Path("/proc/self/task").glob("*"):  # threads that exist already keep their own mask
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cores)


@contextlib.contextmanager
def conditions(threads):
    """Pin the threads, keep other timings out, and record what the machine was doing; yields a dict filled at
    the end.

    Keys: threads, interop_threads, cores, governor, load_before, load_after (1, 5, 15 minutes), others (cores
    that processes other than this one and its children, such as compilers, kept busy on average), seconds.
    """
    import psutil

    with lock(paths.runs() / ".timing"), pinned(threads) as facts:
        facts |= {"governor": _governor(), "load_before": os.getloadavg() if hasattr(os, "getloadavg") else None}
        start, machine, own = time.perf_counter(), _busy(psutil.cpu_times()), _own_seconds()
        yield facts
        seconds = time.perf_counter() - start
        others = _busy(psutil.cpu_times()) - machine - (_own_seconds() - own)
        facts |= {
            "load_after": os.getloadavg() if hasattr(os, "getloadavg") else None,
            "seconds": round(seconds, 1),
            "others": round(max(0.0, others / seconds), 2),
        }


def _busy(times):
    return times.user + times.system + getattr(times, "nice", 0.0)


def _own_seconds():
    """Processor seconds of this process and its children, those that ended included."""
    import psutil

    own = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = child.cpu_times()
            own += (
                times.user
                + times.system
                + getattr(times, "children_user", 0.0)
                + getattr(times, "children_system", 0.0)
            )
    return own


def _governor():
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return path.read_text().strip() if path.is_file() else None


# --- models ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """What the timed models are made of."""

    model: torch.nn.Module  # FP32, on the CPU, in evaluation mode
    images: np.ndarray  # uint8 [n, size, size, 3]: what static quantization observes
    family: str
    facts: dict = field(default_factory=dict)  # where both are from


def source(params, backbone, image_size):
    """The first trained FP32 model of `backbone` in this profile, with its calibration images resized to
    `image_size`.

    Where none is trained yet, or it was built for another size (transformers), the weights are random;
    without any prepared images the calibration images are noise. `facts` says which.
    """
    spec, fold = profiles.backbones()[backbone], 0 if params.folds == "all" else params.folds[0]
    seed = params.seeds_of(backbone)[0]
    trained = [
        cell
        for dataset in params.datasets
        if artefacts.is_finished((cell := paths.Cell(params.profile, dataset, backbone, "fp32", fold, seed)).folder)
    ]
    if not trained:
        images = np.random.default_rng(params.seed).integers(0, 256, (64, image_size, image_size, 3), dtype=np.uint8)
        model = _random(params, backbone, 4, image_size)
        return Source(
            model, images, spec.family, {"weights": "random", "calibration": f"{len(images)} images of noise"}
        )
    cell = trained[0]
    part = partition(params, cell.dataset, cell.fold)
    rows = calibration_rows(part, min(params.calibration.images, len(part.train)), params.seed)
    said = f"{len(rows)} images of {cell.dataset}" + (
        f", resized from {params.image_size} pixels" if image_size != params.image_size else ""
    )
    if spec.sized and image_size != params.image_size:
        model, weights = (
            _random(params, backbone, len(part.classes), image_size),
            "random: the trained model is of another size",
        )
    else:
        checkpoint = cell.folder / finetune.CHECKPOINT
        model, weights = (
            backbones.create(backbone, len(part.classes), image_size, str(checkpoint), trained=True),
            f"trained on {cell.dataset}",
        )
    return Source(
        model.eval(), resized(part.images[rows], image_size), spec.family, {"weights": weights, "calibration": said}
    )


def _random(params, backbone, n_classes, image_size):
    torch.manual_seed(params.seed)
    return backbones.create(backbone, n_classes, image_size).eval()


def resized(images, size):
    """uint8 [n, h, w, 3] as uint8 [n, size, size, 3], bilinear with antialiasing."""
    if images.shape[1:3] == (size, size):
        return np.ascontiguousarray(images)
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    x = torch.nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
    return x.permute(0, 2, 3, 1).contiguous().numpy()


@dataclass(frozen=True)
class Variant:
    """One model to be timed: float32 [n, 3, h, w] to logits."""

    regime: str
    call: object
    size_mb: float
    convert_seconds: float
    baseline: str = ""
    engine: str = ""
    device: str = "cpu"
    layout: torch.memory_format = torch.contiguous_format  # of the images it is given
    dtype: torch.dtype = torch.float32


def variants(params, made):
    """(variants, absent): every model of `Source` `made` that this machine can build, and {name: why not} of
    the others."""
    sizes, found, absent = params.latency.batch_sizes, [], {}
    jobs = {
        f"fp32 {name}": lambda name=name: baseline(made.model, name, made.images, sizes)
        for name in params.latency.baselines
    }
    for regime in regimes.INT8:
        if regime in params.regimes:
            jobs[regime] = lambda regime=regime: integer(made, regime)
    if params.device != "cpu" and torch.cuda.is_available():
        jobs |= {
            f"{regime} on the GPU": lambda regime=regime: on_gpu(made.model, regime) for regime in ("fp32", "fp16")
        }
    elif "fp16" in params.regimes:
        absent["fp16"] = "half precision is timed on a GPU, and there is none here or the profile does not use it"
    for name, build in jobs.items():
        try:
            variant = build()
            with torch.inference_mode():
                variant.call(batch(made.images, 1, variant))  # an engine may refuse only when it runs
            found.append(variant)
        except (Unsupported, torch.OutOfMemoryError) as error:
            absent[name] = str(error)
    return found, absent


def batch(images, n, variant):
    """The first `n` of `images` (repeated if there are fewer), normalised, as `variant` wants its input."""
    x = normalise(torch.from_numpy(np.resize(images, (n, *images.shape[1:]))))
    return x.contiguous(memory_format=variant.layout).to(variant.device, variant.dtype)


def baseline(model, name, images, batch_sizes):
    """An FP32 variant: `eager` as the paper's; `channels-last`; `fused`, that with batch norm in the
    convolutions; `compiled` by torch.compile with constants frozen (its conversion time is that of
    compiling every batch size).

    Raises `Unsupported` where there is nothing to fuse or no compiler.
    """
    start, size = time.perf_counter(), storage.state_dict_bytes(model) / 1e6
    if name == "eager":
        return Variant("fp32", model, size, 0.0, name)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    if name == "channels-last":
        return Variant("fp32", last, size, 0.0, name, layout=torch.channels_last)
    if name == "fused":
        fused = without_batch_norm(model).to(memory_format=torch.channels_last)
        seconds = round(time.perf_counter() - start, 3)
        return Variant("fp32", fused, storage.state_dict_bytes(fused) / 1e6, seconds, name, layout=torch.channels_last)
    made = Variant("fp32", last, size, 0.0, name, layout=torch.channels_last)
    call = compiled(last, [batch(images, n, made) for n in batch_sizes])
    return Variant("fp32", call, size, round(time.perf_counter() - start, 3), name, layout=torch.channels_last)


def without_batch_norm(model):
    """A copy of `model` (in evaluation mode) with each batch norm folded into the convolution before it.

    Raises `Unsupported` where there is none, or where torch.fx cannot trace the model.
    """
    from torch.fx.experimental.optimization import fuse
    from torch.fx.proxy import TraceError

    if not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()):
        raise Unsupported("there is no batch normalisation to fuse")
    try:
        return fuse(static.with_batch_norm(model, "fused").eval())
    except TraceError as error:
        raise Unsupported(f"torch.fx cannot trace this model ({error})") from None


def compiled(model, examples):
    """`model` compiled by torch.compile, weights frozen, for the batch sizes of `examples`; `Unsupported`
    without a compiler."""
    from torch._dynamo.exc import BackendCompilerFailed
    from torch._inductor import config
    from torch._inductor.exc import InductorError

    call = torch.compile(model, dynamic=False)
    try:
        with torch.inference_mode(), config.patch(freezing=True):
            for x in examples:
                call(x)
    except (BackendCompilerFailed, InductorError) as error:
        raise Unsupported(f"torch.compile failed: {str(error).strip().splitlines()[0][:150]}") from error
    return call


def integer(made, regime):
    """The INT8 variant of a regime; its conversion time is, for PTQ, calibration and conversion, for QAT
    conversion.

    The graph of a QAT model does not depend on training: its fake-quantization is fed a few images instead.
    """
    method, engine_name = regime.split("-")
    size = made.images.shape[1]
    batches = list(calibration_batches(_Images(made.images), np.arange(len(made.images))))
    if method == "qat" and made.family == "cnn":
        prepared = static.prepare_training(made.model, engine_name, size).eval()
        static.calibrate(prepared, [batches[0][:8]])
    start = time.perf_counter()
    if method == "ptq" or made.family == "transformer":
        prepared = prepared_model(made.model, made.family, engine_name, batches, size)
    quantized = converted(prepared, made.family, engine_name)
    seconds = round(time.perf_counter() - start, 3)
    return Variant(regime, quantized, storage.state_dict_bytes(quantized.model) / 1e6, seconds, engine=engine_name)


@dataclass(frozen=True)
class _Images:
    images: np.ndarray


def on_gpu(model, regime):
    """FP32 on the GPU, or FP16 as it would be deployed: weights and images in half precision; both channels-
    last."""
    dtype = torch.float16 if regime == "fp16" else torch.float32
    model = copy.deepcopy(model).to("cuda", dtype, memory_format=torch.channels_last)
    return Variant(
        regime,
        model,
        storage.state_dict_bytes(model) / 1e6,
        0.0,
        "eager",
        device="cuda",
        layout=torch.channels_last,
        dtype=dtype,
    )


# --- stage ----------------------------------------------------------------------------------------


def run(params, cell):
    """Time every model of `cell.backbone` and write latency.csv, latency_raw.parquet and the manifest;
    returns the folder.

    What cannot be built here is left out, with the reason in `done.json` and the manifest (`absent`). A
    finished timing with the same inputs is left as it is.
    """
    target = stages.folder("latency", paths.Cell(params.profile, "", cell.backbone, ""))
    given = stages.inputs(params, "latency", cell)
    with lock(target):
        if not artefacts.is_finished(target, stages.key(given)):
            _run(params, cell.backbone, target, given)
    return target


def _run(params, backbone, target, given):
    started, clock = provenance.now(), time.perf_counter()
    fit.true_fp32()
    with conditions(thread_count(params)) as machine:
        made = source(params, backbone, params.latency.image_size)
        found, absent = variants(_leaner(params, made.family), made)
        raw = [_timed(params, made.images, found, n, absent) for n in sorted(params.latency.batch_sizes)]
    torch._dynamo.reset()
    raw = pd.concat(raw, ignore_index=True)
    raw.insert(0, "backbone", backbone)
    raw.insert(0, "dataset", "")
    rows = _rows(raw, found, backbone, machine["threads"])
    if made.family == "transformer":
        rows, raw = _with_training(rows, params.regimes), _with_training(raw, params.regimes)
        absent["qat"] = f"not timed apart: {SAME_GRAPH}"
    artefacts.write_csv(target / TIMINGS, pd.DataFrame(rows)[SCHEMA[TIMINGS]])
    artefacts.write_parquet(target / RAW, raw[SCHEMA[RAW]])
    artefacts.write_json(
        target / MANIFEST,
        provenance.manifest(
            params,
            cell={"backbone": backbone},
            inputs=given,
            started=started,
            machine=machine,
            absent=absent,
            **made.facts,
            seconds=round(time.perf_counter() - clock, 1),
        ),
    )
    artefacts.finish(target, [TIMINGS, RAW, MANIFEST], key=stages.key(given), inputs=given, absent=absent)


def _leaner(params, family):
    """`params` without the regimes whose integer graph another one has already."""
    keep = [r for r in params.regimes if not (family == "transformer" and regimes.method(r) == "qat")]
    return params.model_copy(update={"regimes": keep})


def _with_training(frame, wanted):
    """`frame` with the rows of PTQ once more as those of QAT."""
    frame = pd.DataFrame(frame)
    again = frame[frame["regime"].isin(regimes.of("ptq"))]
    again = again.assign(regime=again["regime"].str.replace("ptq", "qat"))
    return pd.concat([frame, again[again["regime"].isin(wanted)]], ignore_index=True)


@contextlib.contextmanager
def bounded_memory():
    """Within it an allocation beyond the free memory fails, where it would otherwise end the process.

    qnnpack has depthwise kernels for 3 × 3 and 5 × 5 alone; for others it keeps a table of pointers for each group of each
    layer, some 27 GB for the 7 × 7 convolutions of ConvNeXt-T at 32 images of 224 pixels.
    """
    try:
        import resource
    except ImportError:  # not a Unix
        yield
        return
    import psutil

    before = resource.getrlimit(resource.RLIMIT_AS)
    room = psutil.Process().memory_info().vms + int(0.7 * psutil.virtual_memory().available)
    resource.setrlimit(
        resource.RLIMIT_AS, (room if before[0] == resource.RLIM_INFINITY else min(room, before[0]), before[1])
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refusal(call, bounded=True, errors=(Unsupported, MemoryError, torch.OutOfMemoryError)):
    """Why `call` cannot be run, or an empty string; `bounded` keeps it from taking more memory than is free."""
    try:
        with bounded_memory() if bounded else contextlib.nullcontext(), torch.inference_mode():
            call()
    except errors as error:
        said = str(error) if isinstance(error, Unsupported) else f"{type(error).__name__} {error}"
        return f"{' '.join(said.split())[:300]}: out of memory, or refused by the engine"
    return ""


def _tried(found, images, n, absent):
    """{index: function} of the variants that can run a batch of `n`; one that cannot is let go, with the reason in `absent`."""
    calls = {}
    for index, variant in enumerate(found):
        if variant.call is None:
            continue
        x = batch(images, n, variant)
        refused = refusal(lambda: variant.call(x), variant.device == "cpu")
        if not refused:
            calls[index] = lambda call=variant.call, x=x: call(x)
            continue
        absent[f"{variant.regime} at batch {n}"] = refused
        found[index] = variant = replace(variant, call=None)
        gc.collect()  # a traced graph refers to itself, and what the engine keeps for it is needed for the others
    return calls


def _timed(params, images, found, n, absent):
    """Raw batch times of all variants at batch size `n`: regime, baseline, device, batch_size, batch, ms."""
    timing, rows = params.latency, []
    calls = _tried(found, images, n, absent)
    gpu = any(variant.device == "cuda" for variant in found)
    with torch.inference_mode():
        times = interleave(
            calls,
            warmup=timing.warmup,
            seconds=timing.budget(n),
            batches=timing.batches,
            enough={index: TAIL for index in calls if n == 1 and (found[index].regime, found[index].baseline) in TAILS},
            seed=params.seed,
            synchronise=torch.cuda.synchronize if gpu else lambda: None,
        )
    for index in times:
        variant = found[index]
        named = {
            "variant": index,
            "regime": variant.regime,
            "batch_size": n,
            "baseline": variant.baseline if variant.device == "cpu" else variant.device,
        }
        rows += [named | {"batch": k, "ms": ms} for k, ms in enumerate(times[index])]
    return pd.DataFrame(rows)


def _rows(raw, found, backbone, threads):
    """Rows of latency.csv, one per variant and batch size."""
    rows = []
    for (index, n), group in raw.groupby(["variant", "batch_size"], sort=False):
        variant = found[index]
        rows.append(
            {
                "dataset": "",
                "backbone": backbone,
                "regime": variant.regime,
                "baseline": variant.baseline,
                "engine": variant.engine,
                "device": variant.device,
                "batch_size": n,
                "threads": threads,
                "convert_seconds": variant.convert_seconds,
                "size_mb": variant.size_mb,
                **summary(group["ms"].to_numpy(), n),
            }
        )
    return rows
