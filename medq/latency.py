"""Stage `latency`: how long a batch takes (section 2.8 of the paper).

Every model of a backbone is timed in one process, in short turns in random order, so that a machine that drifts moves all
of them. Times depend on the graph, not on the weights: one timing per backbone serves every dataset.
"""

import contextlib
import copy
import gc
import os
import random
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from medq import artefacts, backbones, fit, keys, params as profiles, paths, provenance, regimes, stages
from medq.augment import normalise
from medq.datasets.partition import lock, once, partition
from medq.errors import UserError
from medq.params import Recipe
from medq.quantize import static, storage
from medq.quantize.engines import Unsupported, short, unsupported
from medq.quantize.stage import calibration_batches, calibration_rows, converted, float_model, prepared_model
from medq.results import SCHEMA
from medq.timing import BLOCKS, ENOUGH, TAILS, summary

TIMINGS, RAW, MANIFEST = "latency.csv", "latency_raw.parquet", "manifest.json"
FACTS = ("regime", "baseline", "engine", "device", "convert_seconds", "size_mb")  # of a variant, in latency.csv
SHOWN_TAILS = (("fp32", "eager"), ("ptq-fbgemm", ""))  # whose tail at batch 1 Table 4 shows
REFUSALS = Unsupported, MemoryError, torch.OutOfMemoryError  # by which a model turns out not to run
FUSED = Recipe(title="Batch norm fused into its convolution", batch_norm="fused")
SAME_GRAPH = "dynamic quantization gives the same integer graph with and without quantization-aware training"


# --- timing ---------------------------------------------------------------------------------------


@torch.inference_mode()
def interleave(
    calls, *, warmup, seconds, batches, enough=None, seed=42, synchronise=lambda: None, clock=time.perf_counter
):
    """Milliseconds of each call of each function of `calls` {key: function}, as {key: list}, timed in turns.

    First up to `warmup` calls each (at most a quarter of `seconds`, at least one). Then, turn after turn in random
    order, an untimed call that brings the model back into the caches, and timed ones for a share of `seconds` or of
    `batches`; calls longer than the share need no untimed one. A function ends after `batches` calls or `seconds`
    seconds, but not before `timing.ENOUGH` calls, or as many as `enough` {key: number} asks for. `synchronise` is called
    before each reading of the clock.
    """

    def once(call):
        synchronise()
        start = clock()
        call()
        synchronise()
        return clock() - start

    found, order = {key: [] for key in calls}, random.Random(seed)
    share, portion = seconds / BLOCKS, -(-batches // BLOCKS)
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
            times = found[key]
            if not times or times[-1] < share:
                calls[key]()
            start = len(times)
            while sum(times[start:]) < share and len(times) < min(batches, start + portion):
                times.append(once(calls[key]))
        active = [
            key
            for key in active
            if len(found[key]) < batches and (sum(found[key]) < seconds or len(found[key]) < least[key])
        ]
    return {key: [1000 * value for value in values] for key, values in found.items()}


def thread_count(params):
    """Threads of a timing: `latency.threads`, else every core that this process may use.

    Raises `UserError` where the profile asks for more than there are.
    """
    cores = provenance.usable_cores()
    wanted = params.latency.threads or cores
    if wanted > cores:
        raise UserError(
            f"latency.threads: {wanted} is more than the {cores} cores that this process may use; lower it."
        )
    return wanted


@contextlib.contextmanager
def pinned(threads):
    """Inside the block torch uses `threads` threads and the process keeps to as many cores; yields what was set.

    Where the system cannot pin (not Linux), `cores` is empty.
    """
    before = torch.get_num_threads()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    cores = sorted(allowed)[:threads]
    _pin(cores)
    torch.set_num_threads(threads)
    try:
        yield {"threads": torch.get_num_threads(), "interop_threads": torch.get_num_interop_threads(), "cores": cores}
    finally:
        torch.set_num_threads(before)
        _pin(allowed)


def _pin(cores):
    for task in Path("/proc/self/task").glob("*") if cores else ():  # existing threads keep a mask of their own
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cores)


@contextlib.contextmanager
def conditions(threads):
    """Pin the threads, keep other timings out, and record what the machine does; yields a dict filled at the end.

    Keys: threads, interop_threads, cores, governor, load_before, load_after (1, 5, 15 minutes), others (cores that
    processes other than this one and its children kept busy on average), seconds.
    """
    import psutil

    def busy():
        times = psutil.cpu_times()
        return times.user + times.system + getattr(times, "nice", 0.0)

    load = getattr(os, "getloadavg", lambda: None)
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    with lock(paths.runs() / ".timing"), pinned(threads) as facts:
        facts |= {"governor": governor.read_text().strip() if governor.is_file() else None, "load_before": load()}
        start, machine, own = time.perf_counter(), busy(), own_seconds()
        yield facts
        seconds = time.perf_counter() - start
        others = (busy() - machine - (own_seconds() - own)) / seconds
        facts |= {"load_after": load(), "seconds": round(seconds, 1), "others": round(max(0.0, others), 2)}


def own_seconds():
    """Processor seconds of this process and its children, including children that have ended."""
    import psutil

    own = sum(os.times()[:4])
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = child.cpu_times()
            own += times.user + times.system
            own += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return own


# --- models ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """What the timed models are made of."""

    model: torch.nn.Module  # FP32, on the CPU, in evaluation mode
    images: np.ndarray  # uint8 [n, size, size, 3]: what static quantization observes
    family: str
    facts: dict = field(default_factory=dict)  # the origin of both


def source(params, backbone, image_size):
    """The first trained FP32 model of `backbone` in this profile, with its calibration images resized to `image_size`.

    Where none is trained yet, or it was built for another size (transformers), the weights are random; without any
    prepared images the calibration images are noise. `facts` tells which.
    """
    spec, seed = profiles.backbones()[backbone], params.seeds_of(backbone)[0]
    places = ((dataset, fold) for dataset in params.datasets for fold in params.folds_of(dataset))
    cells = (paths.Cell(params.profile, dataset, backbone, "fp32", fold, seed) for dataset, fold in places)
    cell = next((cell for cell in cells if artefacts.is_finished(cell.folder)), None)
    torch.manual_seed(params.seed)
    if cell is None:
        images = np.random.default_rng(params.seed).integers(0, 256, (64, image_size, image_size, 3), dtype=np.uint8)
        facts = {"weights": "random", "calibration": f"{len(images)} images of noise"}
        return Source(backbones.create(backbone, 4, image_size).eval(), images, spec.family, facts)
    part = partition(params, cell.dataset, cell.fold)
    rows = calibration_rows(part, min(params.calibration.images, len(part.train)), params.seed)
    facts = {"weights": f"trained on {cell.dataset}", "calibration": f"{len(rows)} images of {cell.dataset}"}
    if image_size != params.image_size:
        facts["calibration"] += f", resized from {params.image_size} pixels"
    if image_size != params.image_size and spec.sized:
        facts["weights"] = "random: the trained model is of another size"
        model = backbones.create(backbone, len(part.classes), image_size).eval()
    else:
        model = float_model(params, cell, part)
    return Source(model, resized(part.images[rows], image_size), spec.family, facts)


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
    """(variants, absent): every model of `Source` `made` that this machine can build, and {name: why not} of the others."""
    found, absent = [], {}
    jobs = {
        f"fp32 {name}": lambda name=name: baseline(made.model, name, made.images, params.latency.batch_sizes)
        for name in params.latency.baselines
    }
    methods = ("ptq",) if made.family == "transformer" else ("ptq", "qat")  # see `SAME_GRAPH`
    wanted = [name for name in regimes.of(*methods) if name in params.regimes]
    jobs |= {name: lambda name=name: integer(made, name) for name in wanted}
    if params.device != "cpu" and torch.cuda.is_available():
        jobs |= {f"{name} on the GPU": lambda name=name: on_gpu(made.model, name) for name in ("fp32", "fp16")}
    elif "fp16" in params.regimes:
        absent["fp16"] = "half precision is timed on a GPU, and there is none here or the profile does not use it"
    for name, build in jobs.items():
        try:
            with unsupported("it cannot be built or run"):
                variant = build()
                with torch.inference_mode():
                    variant.call(batch(made.images, 1, variant))  # an engine may refuse only when it runs
            found.append(variant)
        except (Unsupported, torch.OutOfMemoryError) as error:
            absent[name] = str(error)
    return found, absent


def batch(images, n, variant):
    """The first `n` of `images` (repeated if there are fewer), normalised, in the form that `variant` takes."""
    x = normalise(torch.from_numpy(np.resize(images, (n, *images.shape[1:]))))
    return x.contiguous(memory_format=variant.layout).to(variant.device, variant.dtype)


def baseline(model, name, images, batch_sizes):
    """An FP32 variant: `eager`, the paper's; `channels-last`; `fused`, that with batch norm in the convolutions; `compiled`
    by torch.compile with constants frozen, whose conversion time is that of compiling every batch size.

    Raises `Unsupported` where there is nothing to fuse or no compiler.
    """
    if name == "eager":
        return Variant("fp32", model, storage.state_dict_bytes(model) / 1e6, 0.0, name)
    start = time.perf_counter()
    if name == "fused" and not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()):
        raise Unsupported("there is no batch normalisation to fuse")
    model = static.fused(model) if name == "fused" else copy.deepcopy(model)
    model = model.to(memory_format=torch.channels_last)
    size = storage.state_dict_bytes(model) / 1e6
    made = Variant("fp32", model, size, 0.0, name, layout=torch.channels_last)
    if name == "compiled":
        made = replace(made, call=compiled(model, [batch(images, n, made) for n in batch_sizes]))
    seconds = 0.0 if name == "channels-last" else round(time.perf_counter() - start, 3)
    return replace(made, convert_seconds=seconds)


def compiled(model, examples):
    """`model` compiled by torch.compile, weights frozen, for the batch sizes of `examples`.

    Raises `Unsupported` without a compiler.
    """
    from torch._dynamo.exc import BackendCompilerFailed
    from torch._inductor import config
    from torch._inductor.exc import InductorError

    call = torch.compile(model, dynamic=False)
    try:
        with torch.inference_mode(), config.patch(freezing=True):
            for x in examples:
                call(x)
    except (BackendCompilerFailed, InductorError) as error:
        raise Unsupported(f"torch.compile failed: {short(error)}") from error
    return call


def integer(made, regime):
    """The INT8 variant of a regime, with the seconds that calibration (PTQ) and conversion take.

    The graph of a QAT model does not depend on training: its fake-quantization is fed a few images instead.
    """
    method, engine_name = regime.split("-")
    size = made.images.shape[1]
    batches = list(calibration_batches(made, np.arange(len(made.images))))
    if method == "qat":
        prepared = static.prepare_training(made.model, engine_name, size).eval()
        static.calibrate(prepared, [batches[0][:8]])
    start = time.perf_counter()
    if method == "ptq":
        prepared = prepared_model(made.model, made.family, engine_name, batches, size)
    quantized = converted(prepared, engine_name)
    seconds = round(time.perf_counter() - start, 3)
    return Variant(regime, quantized, storage.state_dict_bytes(quantized.model) / 1e6, seconds, engine=engine_name)


def on_gpu(model, regime):
    """FP32 on the GPU, or FP16 as it would be deployed (weights and images in half precision); both channels-last."""
    dtype, layout = torch.float16 if regime == "fp16" else torch.float32, torch.channels_last
    model = copy.deepcopy(model).to("cuda", dtype, memory_format=layout)
    size = storage.state_dict_bytes(model) / 1e6
    return Variant(regime, model, size, 0.0, "eager", device="cuda", layout=layout, dtype=dtype)


# --- stage ----------------------------------------------------------------------------------------


def run(params, cell):
    """Time every model of `cell.backbone`; writes latency.csv, latency_raw.parquet and the manifest, returns the folder.

    What cannot be built here is left out, with the reason in `done.json` and the manifest (`absent`). A finished timing
    with the same inputs is left as it is.
    """
    place = paths.Cell(params.profile, "", cell.backbone, "")  # of all datasets and folds
    target = stages.folder("latency", place)
    return once(params, "latency", place, lambda given: _run(params, cell.backbone, target, given), target)


def _run(params, backbone, target, given):
    started, clock = provenance.now(), time.perf_counter()
    fit.true_fp32()
    with conditions(thread_count(params)) as machine:
        made = source(params, backbone, params.latency.image_size)
        found, absent = variants(params, made)
        raw = pd.concat(
            [batch_times(params, made.images, found, n, absent) for n in sorted(params.latency.batch_sizes)],
            ignore_index=True,
        )
    torch._dynamo.reset()
    raw = raw.assign(dataset="", backbone=backbone)
    rows = pd.DataFrame(
        {name: getattr(found[index], name) for name in FACTS} | {"batch_size": n} | summary(group["ms"], n)
        for (index, n), group in raw.groupby(["variant", "batch_size"], sort=False)
    ).assign(dataset="", backbone=backbone, threads=machine["threads"])
    if made.family == "transformer":
        rows, raw = _with_training(rows, params.regimes), _with_training(raw, params.regimes)
        absent["qat"] = f"not timed apart: {SAME_GRAPH}"
    artefacts.write_csv(target / TIMINGS, rows[SCHEMA[TIMINGS]])
    artefacts.write_parquet(target / RAW, raw[SCHEMA[RAW]])
    facts = {"cell": {"backbone": backbone}, "started": started, "machine": machine, "absent": absent, **made.facts}
    seconds = round(time.perf_counter() - clock, 1)
    artefacts.write_json(target / MANIFEST, provenance.manifest(params, inputs=given, seconds=seconds, **facts))
    artefacts.finish(target, [TIMINGS, RAW, MANIFEST], key=keys.key(given), inputs=given, absent=absent)


def _with_training(frame, wanted):
    """`frame` with the rows of PTQ once more as those of QAT."""
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

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    room = psutil.Process().memory_info().vms + int(0.7 * psutil.virtual_memory().available)
    resource.setrlimit(resource.RLIMIT_AS, (room if soft == resource.RLIM_INFINITY else min(room, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def reason(error):
    """Why a model is left out, in at most 300 characters: an error's message, and its type where it is not our own."""
    text = str(error) if isinstance(error, Unsupported) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


def runnable(found, images, n, absent, errors=REFUSALS):
    """{index: function} of the variants that can run a batch of `n`; the others lose their model, the reason is in `absent`.

    On the CPU they may take no more memory than is free.
    """
    calls = {}
    for index in range(len(found)):  # `enumerate` would hold on to the variant
        variant = found[index]
        if variant.call is None:
            continue
        call = partial(variant.call, batch(images, n, variant))
        try:
            with bounded_memory() if variant.device == "cpu" else contextlib.nullcontext(), torch.inference_mode():
                call()
            calls[index] = call
            continue
        except errors as error:
            absent[f"{variant.regime} at batch {n}"] = f"{reason(error)}: out of memory, or refused by the engine"
        found[index] = variant = replace(variant, call=None)
        call = None
        gc.collect()  # a traced graph refers to itself, and the memory that the engine keeps for it is needed
    return calls


def batch_times(params, images, found, n, absent, share=1.0, errors=REFUSALS):
    """Raw batch times of all variants at batch size `n`: variant, regime, baseline, batch_size, batch, ms.

    Each has `share` of the profile's `latency.seconds`; what raises one of `errors` is left out (see `runnable`).
    """
    calls = runnable(found, images, n, absent, errors)
    shown = [i for i in calls if n == 1 and (found[i].regime, found[i].baseline) in SHOWN_TAILS]
    gpu = any(variant.device == "cuda" for variant in found)
    times = interleave(
        calls,
        warmup=params.latency.warmup,
        seconds=share * params.latency.budget(n),
        batches=params.latency.batches,
        enough=dict.fromkeys(shown, TAILS["p99"][1]),
        seed=params.seed,
        synchronise=torch.cuda.synchronize if gpu else lambda: None,
    )
    parts, columns = [], ["variant", "regime", "baseline", "ms", "batch_size", "batch"]
    for index, ms in times.items():
        variant = found[index]
        name = variant.baseline if variant.device == "cpu" else variant.device
        part = pd.DataFrame({"variant": index, "regime": variant.regime, "baseline": name, "ms": ms})
        parts.append(part.assign(batch_size=n, batch=range(len(ms))))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
