"""Stage `peers`: the same trained model in other INT8 runtimes, calibrated and evaluated on the same images, timed together.

Two steps, so that only the second needs a quiet machine: `build` converts, stores and evaluates every model, `run` times
the stored ones. A runtime is a row of `RUNTIMES`: how to build a file, how to load one, and the packages it needs.
"""

import contextlib
import copy
import importlib.util
import io
import logging
import shutil
import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from medq import artefacts, backbones, evaluate, finetune, keys, latency, metrics, params as profiles, provenance
from medq.augment import normalise
from medq.datasets.partition import lock, partition
from medq.errors import UserError
from medq.quantize import static, storage
from medq.quantize.engines import Unsupported
from medq.quantize.stage import DEFAULT, calibration, converted, float_model, prepared_model
from medq.results import SCHEMA
from medq.timing import summary

TABLE, RAW, BUILT = "peers.csv", "peers_raw.parquet", "built.csv"
BATCH = 32  # of evaluation
COMPILES = "inductor"  # takes a minute for each model
NOT_COMPILED = "`latency.baselines` of the profile does not name `compiled`"
SHARE = 0.5  # of `latency.seconds`: there are about twice as many models
SCORES = list(metrics.SCORES)


@dataclass(frozen=True)
class Task:
    """What a runtime is given to convert: a float model and what it may observe."""

    model: torch.nn.Module  # FP32, on the CPU, in evaluation mode
    batches: list  # tensors [n, 3, size, size] in the form of its input; a converter traces it on the first two images
    backbone: str
    family: str
    n_classes: int
    image_size: int
    batch_sizes: tuple  # that a loaded model must serve; others are padded
    threads: int
    names: tuple = ("image", "logits")  # of the graph's input and output
    keep: tuple = ()  # types of operators that stay in floating point
    origin: dict = field(default_factory=dict)  # strings that the file itself tells about the model

    @property
    def arrays(self):
        """The batches as NumPy arrays."""
        return [x.contiguous().numpy() for x in self.batches]


# --- PyTorch --------------------------------------------------------------------------------------


def _load_torch(task, path):
    model = copy.deepcopy(task.model)
    backbones.load_into(model, path, task.backbone)
    return model


def _save_engine(task, path, engine_name, recipe=DEFAULT):
    if task.family == "transformer" and recipe is not DEFAULT:
        raise Unsupported("dynamic quantization has no batch norm to fuse")
    prepared = prepared_model(task.model, task.family, engine_name, task.batches, task.image_size, recipe)
    described = {"backbone": task.backbone, "n_classes": task.n_classes, "image_size": task.image_size}
    recipe = None if task.family == "transformer" else recipe
    storage.save(converted(prepared, engine_name), path, recipe=recipe, **described)


def _load_compiled(task, path):
    return _fixed_batches(task, _load_torch(task, path).to(memory_format=torch.channels_last))


def _save_pt2e(task, path):
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    example = (torch.zeros(2, 3, task.image_size, task.image_size),)
    dynamic_shapes = ({0: torch.export.Dim("n")},)
    exported = torch.export.export(task.model, example, dynamic_shapes=dynamic_shapes).module()
    prepared = prepare_pt2e(exported, X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config()))
    static.calibrate(prepared, task.batches)
    converted = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)
    used = {node.target for node in converted.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in converted.named_parameters() if name not in used]:  # float weights, now integers
        owner, _, leaf = name.rpartition(".")
        delattr(converted.get_submodule(owner), leaf)
    torch.export.save(torch.export.export(converted, example, dynamic_shapes=dynamic_shapes), path)


def _load_pt2e(task, path):
    import torchao.quantization.pt2e  # noqa: F401  (registers the operators that the file refers to)

    return _fixed_batches(task, torch.export.load(path).module())


def _fixed_batches(task, model):
    """`model` compiled for the task's batch sizes; another size is padded to the next larger."""
    shapes = [(n, 3, task.image_size, task.image_size) for n in task.batch_sizes]
    examples = [torch.zeros(shape).contiguous(memory_format=torch.channels_last) for shape in shapes]
    return partial(padded, dict.fromkeys(task.batch_sizes, latency.compiled(model, examples)))


def padded(calls, x):
    """Logits of `x` from the call for the smallest batch size in `calls` {size: call} that holds it."""
    n = min(size for size in calls if size >= len(x))
    if n == len(x):
        return calls[n](x)
    return calls[n](torch.cat([x, x[:1].expand(n - len(x), *x.shape[1:])]))[: len(x)]


# --- ONNX Runtime and OpenVINO --------------------------------------------------------------------


def _to_onnx(task, path):
    """Write the float model (in evaluation mode) as ONNX with a free batch dimension."""
    with _quiet(), artefacts.replacing(path) as temporary:
        torch.onnx.export(
            task.model,
            (task.batches[0][:2],),
            str(temporary),
            dynamo=False,
            opset_version=17,
            input_names=[task.names[0]],
            output_names=[task.names[1]],
            dynamic_axes={name: {0: "n"} for name in task.names},
        )


@contextlib.contextmanager
def _float_onnx(task, path):
    """Inside the block the float model lies as ONNX beside `path`; yields where."""
    source = path.with_suffix(".float.onnx")
    _to_onnx(task, source)
    try:
        yield source
    finally:
        source.unlink()


def _save_onnx(task, path, int8=False):
    """ONNX, for INT8 by ONNX Runtime's static quantization: QDQ, per-channel weights, its own defaults otherwise."""
    if int8:
        with _float_onnx(task, path) as source:
            _quantize_onnx(task, source, path)
    else:
        _to_onnx(task, path)
    if task.origin:
        import onnx

        model = onnx.load(path)
        onnx.helper.set_model_props(model, task.origin)
        with artefacts.replacing(path) as temporary:
            onnx.save(model, str(temporary))


def _quantize_onnx(task, source, path):
    import onnx
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(ort.CalibrationDataReader):
        feeds = ({task.names[0]: x} for x in task.arrays)

        def get_next(self):
            return next(self.feeds, None)

    with _quiet(), artefacts.replacing(path) as temporary:
        ready = Path(f"{temporary}.onnx")
        try:
            quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
            nodes = onnx.load(ready).graph.node
            ort.quantize_static(
                str(ready),
                str(temporary),
                Reader(),
                quant_format=ort.QuantFormat.QDQ,
                per_channel=True,
                nodes_to_exclude=[node.name for node in nodes if node.op_type in task.keep],
            )
        finally:
            ready.unlink(missing_ok=True)


def _save_openvino(task, path, int8=False):
    """OpenVINO's IR by way of ONNX, for INT8 by NNCF with its defaults for the family; the weights in a `.bin` beside it."""
    import openvino

    with _float_onnx(task, path) as source:
        graph = openvino.convert_model(source)
    if int8:
        import nncf

        with _quiet():
            graph = nncf.quantize(
                graph,
                nncf.Dataset(task.arrays),
                subset_size=len(task.arrays),
                model_type=nncf.ModelType.TRANSFORMER if task.family == "transformer" else None,
                ignored_scope=nncf.IgnoredScope(types=list(task.keep), validate=False) if task.keep else None,
            )
    for name, value in task.origin.items():
        graph.set_rt_info(value, ["medq", name])
    with artefacts.replacing(path) as temporary, artefacts.replacing(path.with_suffix(".bin")) as weights:
        whole = temporary.with_name(f"{temporary.name}.xml")
        openvino.save_model(graph, str(whole), compress_to_fp16=False)
        shutil.move(whole.with_suffix(".bin"), weights)
        shutil.move(whole, temporary)


def opened(path, threads, shape=None):
    """The model in an ONNX or OpenVINO file on the CPU, as a function of arrays; OpenVINO's for one input `shape` if given.

    OpenVINO's floating-point operators stay in 32 bits; by default it uses bfloat16 where the processor has it.
    """
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda x: session.run(None, {name: x})[0]
    import openvino

    core = openvino.Core()
    graph = core.read_model(path)
    if shape:
        graph.reshape(shape)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = core.compile_model(graph, "CPU", settings)
    return lambda x: np.array(model(x)[0])


def _load(task, path):
    def call(run, x):
        return torch.from_numpy(run(x.contiguous().numpy()))

    if path.suffix == ".onnx":
        return partial(call, opened(path, task.threads))
    shapes = {n: [n, 3, task.image_size, task.image_size] for n in task.batch_sizes}
    return partial(padded, {n: partial(call, opened(path, task.threads, shape)) for n, shape in shapes.items()})


# --- all of them ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runtime:
    """How one runtime stores a precision and runs what it stored."""

    runtime: str
    precision: str
    suffix: str
    save: object  # (task, path)
    load: object  # (task, path) -> float32 [n, 3, h, w] to logits
    packages: tuple = ()

    @property
    def name(self):
        """Name of its folder, and in lists of runtimes."""
        return f"{self.runtime}-{self.precision}"


_ONNX, _OPENVINO, _NNCF = ("onnx", "onnxruntime"), ("onnx", "openvino"), ("onnx", "openvino", "nncf")
RUNTIMES = (
    Runtime("pytorch", "fp32", ".safetensors", lambda task, path: finetune.save_weights(task.model, path), _load_torch),
    *(
        Runtime(name, "int8", ".safetensors", partial(_save_engine, **how), lambda task, path: storage.load(path))
        for name, how in {
            "pytorch-fbgemm": {"engine_name": "fbgemm"},
            "pytorch-x86": {"engine_name": "x86"},
            "pytorch-onednn": {"engine_name": "onednn"},
            "pytorch-fbgemm-fused": {"engine_name": "fbgemm", "recipe": latency.FUSED},
        }.items()
    ),
    Runtime(
        COMPILES, "fp32", ".safetensors", lambda task, path: finetune.save_weights(task.model, path), _load_compiled
    ),
    Runtime(COMPILES, "int8", ".pt2", _save_pt2e, _load_pt2e, ("torchao",)),
    Runtime("onnxruntime", "fp32", ".onnx", _save_onnx, _load, _ONNX),
    Runtime("onnxruntime", "int8", ".onnx", partial(_save_onnx, int8=True), _load, _ONNX),
    Runtime("openvino", "fp32", ".xml", _save_openvino, _load, _OPENVINO),
    Runtime("openvino", "int8", ".xml", partial(_save_openvino, int8=True), _load, _NNCF),
)


def missing(packages):
    """Which of `packages` are not installed, as a reason with the way out; empty if all are."""
    lacking = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{', '.join(lacking)} not installed: pip install 'medq[peers]'" if lacking else ""


def versions():
    """{package: version} of the installed packages that runtimes need."""
    return provenance.installed(sorted({name for runtime in RUNTIMES for name in runtime.packages}))


def chosen(params, names=None):
    """The runtimes of these names; without names all, those that compile only where `latency.baselines` does too."""
    if names is not None:
        return [r for r in RUNTIMES if r.name in names]
    return [r for r in RUNTIMES if r.runtime != COMPILES or "compiled" in params.latency.baselines]


def run(params, cell, runtimes=None):
    """Build, evaluate and time every runtime for the model of `cell`; returns the folder.

    Writes peers.csv (metrics, size and conversion of the trained model; times at `latency.image_size`), every batch time
    (peers_raw.parquet), the predictions of each runtime and a manifest; `absent` tells which rows are missing and why.
    `runtimes` limits the comparison to those named (`pytorch-fp32`, `openvino-int8`, …).
    """
    target, given = cell.of("peers").folder, keys.inputs(params, "peers", cell.of("peers"))
    if runtimes is not None:
        given["runtimes"] = [r.name for r in chosen(params, runtimes)]
    build(params, cell, runtimes)
    with lock(target):
        if not artefacts.is_finished(target, keys.key(given)):
            _run(params, cell, chosen(params, runtimes), target, given)
    return target


def _run(params, cell, taking_part, target, given):
    started, clock = provenance.now(), time.perf_counter()
    absent = {r.name: NOT_COMPILED for r in RUNTIMES if r.runtime == COMPILES and r not in taking_part}
    with latency.conditions(latency.thread_count(params)) as machine:
        raw = _time(params, cell, taking_part, absent)
    if raw.empty:
        raise UserError(f"None of the runtimes could be run: {'; '.join(f'{k}: {why}' for k, why in absent.items())}.")
    model = ["runtime", "precision"]
    groups = raw.groupby([*model, "batch_size"], sort=False)["ms"]
    timed = [dict(zip(groups.keys, place)) | summary(ms, place[2]) for place, ms in groups]
    built = [_folder(cell, params.image_size) / r.name / BUILT for r in taking_part if r.name not in absent]
    table = pd.concat(map(pd.read_csv, built)).merge(pd.DataFrame(timed), on=model)
    place = {"dataset": cell.dataset, "backbone": cell.backbone, "fold": cell.fold}
    table = table.assign(**place, image_size=params.latency.image_size)[SCHEMA[TABLE]]
    artefacts.write_csv(target / TABLE, table)
    artefacts.write_parquet(target / RAW, raw.assign(**place)[SCHEMA[RAW]])
    predictions = [f"predictions.{name}.parquet" for name in table["runtime"].str.cat(table["precision"], "-").unique()]
    facts = {"machine": machine, "absent": absent, "peers": versions()}
    finetune.finish(params, cell.of("peers"), given, [TABLE, RAW, *predictions], None, started, clock, **facts)


def _folder(cell, size):
    return cell.of("peers").folder / f"models-{size}px"


def build(params, cell, runtimes=None):
    """Convert and store the model of `cell` for every runtime, and evaluate each on the held-out images.

    Idempotent per runtime: what is stored with the same inputs is kept. Returns the folder.
    """
    finetune.run(params, cell.of("fp32"))
    given = keys.inputs(params, "peers", cell.of("peers")) | {"versions": versions()}
    used = given["parameters"]["latency"]
    given["parameters"]["latency"] = {k: used[k] for k in ("image_size", "batch_sizes", "threads")}
    with lock(cell.of("peers").folder):
        for size in sorted({params.image_size, params.latency.image_size}):
            task, part = _task(params, cell, size)
            for runtime in chosen(params, runtimes):
                folder = _folder(cell, size) / runtime.name
                if not artefacts.is_finished(folder, keys.key(given)):
                    _build(task, part if size == params.image_size else None, cell, folder, runtime, keys.key(given))
    return cell.of("peers").folder


def _task(params, cell, size):
    """The task at an image size, and the partition; at another than the trained one only times are wanted."""
    part, spec = partition(params, cell.dataset, cell.fold), profiles.backbones()[cell.backbone]
    if size == params.image_size:
        model = float_model(params, cell, part)
        batches = calibration(params, part)
    else:
        one = params.model_copy(update={"datasets": [cell.dataset], "folds": [cell.fold]})
        made = latency.source(one, cell.backbone, size)  # random weights, where the trained ones are of one size
        model, batches = made.model, [normalise(torch.from_numpy(made.images[:BATCH]))]
    needed = {BATCH} if size == params.image_size else set()
    needed |= set(params.latency.batch_sizes) if size == params.latency.image_size else set()
    described = cell.backbone, spec.family, len(part.classes), size, tuple(sorted(needed))
    return Task(model, batches, *described, latency.thread_count(params)), part


def _build(task, part, cell, folder, runtime, key):
    """Store one model; `part` holds the images to evaluate it on, if any."""
    path, row = folder / f"model{runtime.suffix}", {"runtime": runtime.runtime, "precision": runtime.precision}
    shutil.rmtree(folder, ignore_errors=True)
    files, facts = [], {"status": "done"}
    try:
        if missing(runtime.packages):
            raise Unsupported(missing(runtime.packages))
        folder.mkdir(parents=True)
        start = time.perf_counter()
        runtime.save(task, path)
        row["convert_seconds"] = round(time.perf_counter() - start, 3)
        row["size_mb"] = sum(p.stat().st_size for p in folder.glob("model*")) / 1e6
        if part is not None:
            row |= _evaluate(runtime.load(task, path), part, cell, runtime.name)
        artefacts.write_csv(folder / BUILT, pd.DataFrame([row]))
        files = [BUILT, *(p.name for p in folder.glob("model*"))]
    except Exception as error:  # another project's converter can raise anything: the row is absent, with the reason
        facts = {"status": "unsupported", "reason": latency.reason(error)}
    torch._dynamo.reset()
    artefacts.finish(folder, files, key=key, **facts)


def _evaluate(call, part, cell, name):
    """Store the held-out predictions of a loaded model and return its metrics."""
    probability = evaluate.probabilities(call, part.images[part.held_out], batch_size=BATCH)
    table = finetune.held_out_table(part, cell.fold, probability)
    artefacts.write_parquet(cell.of("peers").folder / f"predictions.{name}.parquet", table)
    return {metric: metrics.METRICS[metric](part.labels[part.held_out], probability) for metric in SCORES}


def _time(params, cell, taking_part, absent):
    """Batch times [runtime, precision, batch_size, batch, ms] of all stored models; fills `absent` {name: reason}."""
    size, found = params.latency.image_size, []
    task, part = _task(params, cell, size)
    images = latency.resized(part.images[np.resize(part.train, max(params.latency.batch_sizes))], size)
    for runtime in taking_part:
        try:
            for record in (artefacts.record(_folder(cell, s) / runtime.name) for s in (params.image_size, size)):
                if record["status"] != "done":
                    raise Unsupported(record["reason"])
            model = runtime.load(task, _folder(cell, size) / runtime.name / f"model{runtime.suffix}")
            layout = torch.channels_last if runtime.runtime == COMPILES else torch.contiguous_format
            found.append(latency.Variant(runtime.name, model, 0, 0, layout=layout))
        except Exception as error:
            absent[runtime.name] = latency.reason(error)
    # Another project's runtime can raise anything.
    timed = partial(latency.batch_times, params, images, found, absent=absent, share=SHARE, errors=Exception)
    raw = pd.concat([timed(n) for n in sorted(params.latency.batch_sizes)], ignore_index=True)
    torch._dynamo.reset()
    names = pd.DataFrame(
        [(r.name, r.runtime, r.precision) for r in taking_part], columns=["regime", "runtime", "precision"]
    )
    return raw.merge(names, on="regime")


@contextlib.contextmanager
def _quiet():
    """Keep converters' progress bars and remarks off the page."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
