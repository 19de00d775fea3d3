"""`medq export`: a trained model as one file that runs without this package.

Preprocessing (scaling, ImageNet statistics) and the softmax with its temperature are part of the graph: it
takes images as they are decoded, uint8 [n, 3, size, size], and gives probabilities. Beside it lie its facts
as JSON and a model card.
"""

import contextlib
import json
from importlib import metadata as packages
from pathlib import Path

from medq.errors import UserError, one_of

FORMATS = {"onnx": "model.onnx", "openvino": "model.xml"}
PRECISIONS = ("fp32", "int8")
TOLERANCE = 1e-4  # largest difference of a probability from PyTorch's that an FP32 export may show
FLOAT_REGIMES = ("fp32", "fp16", "fp32-continued")
FACTS, CARD = "model.json", "MODEL_CARD.md"
# Operators of preprocessing and softmax, which stay in floating point.
_KEEP = {"onnx": ("Cast", "Sub", "Div", "Softmax"), "openvino": ("Convert", "Subtract", "Divide", "Softmax")}
_NEEDS = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}


def add_arguments(parser):
    """Arguments of `medq export`."""
    parser.add_argument(
        "cell", type=Path, help="folder of a trained model: runs/<profile>/<dataset>/<backbone>/fp32/fold<k>"
    )
    parser.add_argument("output", type=Path, help="folder to write to")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="default: onnx")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="int8: static, calibrated (default: fp32)"
    )
    parser.add_argument(
        "--temperature",
        default="1",
        metavar="T",
        help="divide logits by this number before the softmax; `fit`: the one that suits the calibration "
        "images best (default: 1)",
    )


def run(args):
    """Export and say where to."""
    temperature = args.temperature
    if temperature != "fit":
        try:
            temperature = float(temperature)
        except ValueError:
            raise UserError(f"--temperature: give a number above 0 or `fit`, not {temperature!r}.") from None
    facts = export(args.cell, args.output, format=args.format, precision=args.precision, temperature=temperature)
    print(
        f"{args.output / facts['file']}: {facts['size_mb']:.1f} MB, largest difference from PyTorch "
        f"{facts['largest_difference']:.2g}; see {args.output / CARD}"
    )


def export(cell_folder, output, *, format="onnx", precision="fp32", temperature=1.0):
    """Write the trained model in `cell_folder` to `output` as `format` (`onnx`, `openvino`); returns its
    facts (a dict).

    `precision` int8 quantizes it as the stage `peers` does, on the profile's calibration images.
    `temperature` is a number or `fit`. The written file is loaded again and compared with PyTorch on held-out
    images. Raises `UserError` for a folder without a finished model, a missing package, a temperature that is
    not above 0, or an FP32 export whose probabilities differ by more than 1e-4.
    """
    from medq import evaluate, peers
    from medq.quantize.stage import calibration_rows, float_model

    one_of("format", format, FORMATS), one_of("precision", precision, PRECISIONS)
    lacking = peers.missing((*_NEEDS[format], *(("nncf",) if (format, precision) == ("openvino", "int8") else ())))
    if lacking:
        raise UserError(f"exporting to {format} needs packages: {lacking}.")
    params, cell, part = _opened(cell_folder)
    model = float_model(params, cell, part) if cell.regime == "fp32" else _model(params, cell, part)
    rows = calibration_rows(part, min(params.calibration.images, len(part.train)), params.seed)
    value = fitted_temperature(model, part.images[rows], part.labels[rows]) if temperature == "fit" else temperature
    if not 0 < value < float("inf"):
        raise UserError(f"temperature: must be a number above 0, not {value!r}.")
    whole = deployable(model, value)
    output = Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be a folder ({error.strerror}); choose another.") from None
    _write(whole, output / FORMATS[format], format, precision, part.images[rows], params, cell)
    predict = load(output / FORMATS[format])
    held = part.images[part.held_out]
    found, exact = predict(held), evaluate.probabilities(whole.logits, held)
    facts = _facts(params, cell, part, output / FORMATS[format], precision, value, temperature == "fit", found, exact)
    if precision == "fp32" and not facts["largest_difference"] <= TOLERANCE:
        raise UserError(
            f"{output}: the exported model's probabilities differ from PyTorch's by "
            f"{facts['largest_difference']:.1g}; do not use it, and export with the other --format."
        )
    _describe(output, facts, part, found, exact)
    return facts


def _opened(folder):
    """(params, cell, partition) of a finished cell with float weights, from its manifest."""
    from medq import artefacts, paths
    from medq.datasets.partition import partition
    from medq.params import Params, validate

    folder = Path(folder)
    if artefacts.damage(folder):
        raise UserError(
            f"{folder}: is not a finished cell ({artefacts.damage(folder)}); give runs/<profile>/<dataset>/"
            "<backbone>/fp32/fold<k> of a batch that ran."
        )
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    cell = paths.Cell(**manifest["cell"])
    if cell.regime not in FLOAT_REGIMES:
        raise UserError(
            f"{folder}: regime {cell.regime} holds a model tied to PyTorch's engines; export the fp32 cell "
            "beside "
            "it, with --precision int8."
        )
    if cell.folder.resolve() != folder.resolve():
        raise UserError(
            f"{folder}: its manifest belongs to {cell.folder}; set MEDQ_RUNS to the folder that holds the batch."
        )
    params = validate(Params, manifest["parameters"], str(folder / "manifest.json"))
    return params, cell, partition(params, cell.dataset, cell.fold)


def _model(params, cell, part):
    from medq import backbones, finetune

    return backbones.create(
        cell.backbone, len(part.classes), params.image_size, str(cell.folder / finetune.CHECKPOINT), trained=True
    ).eval()


def deployable(model, temperature):
    """`model` from decoded images to probabilities: uint8 or float [n, 3, h, w] in 0 to 255 to float32 [n,
    classes].

    Its attribute `logits` takes what `model` takes and gives logits divided by the temperature.
    """
    import torch

    from medq.augment import MEAN, STD

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x) / temperature

    class Deployable(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = Scaled()
            self.register_buffer("mean", 255 * torch.tensor(MEAN).view(1, 3, 1, 1))
            self.register_buffer("std", 255 * torch.tensor(STD).view(1, 3, 1, 1))

        def forward(self, images):
            return torch.softmax(self.logits((images.float() - self.mean) / self.std), 1)

    return Deployable().eval()


def fitted_temperature(model, images, labels):
    """The temperature in [0.05, 20] of the least negative log-likelihood on `images` (uint8 [n, h, w, 3])."""
    import numpy as np
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    from medq import evaluate

    log_probability = np.log(np.clip(evaluate.probabilities(model, images).astype(float), 1e-12, 1))

    def loss(log_temperature):
        return -log_softmax(log_probability / np.exp(log_temperature), 1)[np.arange(len(labels)), labels].mean()

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def _write(whole, path, format, precision, images, params, cell):
    """The file itself, in the format and precision asked for."""
    import numpy as np
    import torch

    from medq import params as profiles, peers

    planar = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    example = torch.from_numpy(planar[:2])
    batches = [planar[k : k + 32] for k in range(0, len(planar), 32)]
    names = ("images", "probabilities")
    if format == "openvino":
        graph = peers.read_openvino(whole, path, example, names)
        if precision == "int8":
            graph = peers.quantize_openvino(graph, batches, profiles.backbones()[cell.backbone].family, _KEEP[format])
        for name, value in _identity(params, cell, precision).items():
            graph.set_rt_info(value, ["medq", name])
        peers.write_openvino(graph, path)
        return
    if precision == "fp32":
        peers.to_onnx(whole, path, example, names)
    else:
        source = path.with_suffix(".float.onnx")
        peers.to_onnx(whole, source, example, names)
        try:
            peers.quantize_onnx(source, path, batches, _KEEP[format])
        finally:
            source.unlink()
    _name_onnx(path, _identity(params, cell, precision))


def _name_onnx(path, facts):
    import onnx

    from medq import artefacts

    model = onnx.load(path)
    onnx.helper.set_model_props(model, facts)
    with artefacts.replacing(path) as temporary:
        onnx.save(model, str(temporary))


def _identity(params, cell, precision):
    """What the file itself says it is (strings only)."""
    from medq import __version__, params as profiles

    return {
        "dataset": cell.dataset,
        "backbone": cell.backbone,
        "regime": cell.regime,
        "precision": precision,
        "fold": str(cell.fold),
        "profile": params.profile,
        "image_size": str(params.image_size),
        "medq": __version__,
        "classes": json.dumps(list(profiles.datasets()[cell.dataset].classes)),
    }


def load(path):
    """A function from decoded images (uint8 [n, h, w, 3]) to probabilities (float32 [n, classes]) of an
    exported file."""
    import numpy as np

    from medq import peers

    path = Path(path)
    if path.suffix == ".onnx":
        session = peers.onnx_session(path, 1)

        def call(x):
            return session.run(None, {"images": x})[0]
    else:
        model = peers.openvino_model(path, 1)

        def call(x):
            return np.array(model(x)[0])

    return lambda images: np.concatenate(
        [call(np.ascontiguousarray(images[k : k + 32].transpose(0, 3, 1, 2))) for k in range(0, len(images), 32)]
    )


def _facts(params, cell, part, path, precision, temperature, fitted, found, exact):
    import numpy as np

    from medq import artefacts, provenance

    files = [path, *([path.with_suffix(".bin")] if path.suffix == ".xml" else [])]
    return _identity(params, cell, precision) | {
        "classes": list(part.classes),
        "image_size": params.image_size,
        "fold": cell.fold,
        "file": path.name,
        "temperature": temperature,
        "temperature_fitted": fitted,
        "input": {
            "name": "images",
            "type": "uint8",
            "shape": ["n", 3, params.image_size, params.image_size],
            "what": "RGB as decoded, resized bilinearly with antialiasing, aspect not kept",
        },
        "output": {"name": "probabilities", "type": "float32", "shape": ["n", len(part.classes)]},
        "largest_difference": float(np.abs(found.astype(float) - exact).max()),
        "same_decision": float((found.argmax(1) == exact.argmax(1)).mean()),
        "held_out_images": len(found),
        "size_mb": sum(f.stat().st_size for f in files) / 1e6,
        "sha256": {f.name: artefacts.sha256(f) for f in files},
        "checkpoint_sha256": artefacts.record(cell.folder)["files"]["checkpoint.safetensors"],
        "weights": params.weights,
        "versions": provenance.versions()
        | {name: packages.version(name) for name in ("onnx", "onnxruntime", "openvino", "nncf") if _installed(name)},
        "written": provenance.now(),
    }


def _installed(name):
    with contextlib.suppress(packages.PackageNotFoundError):
        return bool(packages.version(name))
    return False


def _describe(output, facts, part, found, exact):
    """Write model.json and the model card."""
    from medq import artefacts, metrics, params as profiles

    labels = part.labels[part.held_out]
    scores = metrics.summary(labels, found, part.classes)
    facts["metrics"] = scores[scores["class"] == ""].set_index("metric")["value"].to_dict()
    reference = metrics.summary(labels, exact, part.classes)
    spec = profiles.datasets()[facts["dataset"]]
    artefacts.write_json(output / FACTS, facts)
    artefacts.write_text(output / CARD, card(facts, scores, reference, spec))


def _score_tables(facts, scores, reference, spec):
    """Rows of the card's two tables: metrics of the file and of PyTorch's FP32, and the file's per class."""
    from medq.results import METRICS

    def score(frame, metric, klass=""):
        row = frame[(frame["metric"] == metric) & (frame["class"] == klass)]["value"]
        return f"{row.iloc[0]:.4f}" if len(row) else ""

    macro = "\n".join(
        f"| {METRICS[m]} | {score(scores, m)} | {score(reference, m)} |"
        for m in ("auroc", "auprc", "ece", "ece_top_label", "brier", "accuracy")
    )
    classes = "\n".join(
        f"| {_table_text(spec.titles.get(c, c))} | {score(scores, 'auprc', c)} | {score(scores, 'auroc', c)} |"
        for c in facts["classes"]
    )
    return macro, classes


def _table_text(text):
    """`text` for a cell of a Markdown table."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def card(facts, scores, reference, spec):
    """The model card as Markdown, from the facts and the metrics (`metrics.summary`) of the file and of
    PyTorch's FP32."""
    from medq.results import title

    macro, classes = _score_tables(facts, scores, reference, spec)
    phantom = (
        "**Trained on generated phantoms: it knows nothing about medicine.**\n\n"
        if facts["dataset"].startswith("phantom")
        else ""
    )
    fitted = "fitted on calibration images of the training part" if facts["temperature_fitted"] else "set by hand"
    return f"""# {title(facts["backbone"])} for {spec.title}, {facts["precision"].upper()}

{phantom}A research model, not a medical device. It must not be used for diagnosis without validation where it
is to work.

## What it does

One image to probabilities of {len(facts["classes"])} classes, in this order: {", ".join(facts["classes"])}.

- Input `{facts["input"]["name"]}`: uint8, n × 3 × {facts["image_size"]} × {facts["image_size"]};
  {facts["input"]["what"]}. Scaling and ImageNet statistics are inside.
- Output `{facts["output"]["name"]}`: float32, n × {len(facts["classes"])}; softmax of logits divided by the
  temperature {facts["temperature"]:.4g} ({fitted}).

```python
{_snippet(facts)}
```

## How it was made

Backbone {facts["backbone"]}, initial weights `{facts["weights"]}`, regime {facts["regime"]},
fold {facts["fold"]} of {facts["dataset"]} (profile {facts["profile"]}), medq {facts["medq"]}.
SHA-256 of the checkpoint: `{facts["checkpoint_sha256"]}`.

## How good it is

On {facts["held_out_images"]} held-out images, this file and the FP32 model in PyTorch that it was made from:

| | this file | PyTorch FP32 |
| --- | --- | --- |
{macro}

| class | AUPRC | ROC-AUC |
| --- | --- | --- |
{classes}

The largest difference of a probability is {facts["largest_difference"]:.2g};
{100 * facts["same_decision"]:.1f} % of the decisions are the same.

## Limits

- Data: {_origin(spec)}. The held-out images are of the same sources as the training images.
- Probabilities hold for the class frequencies of these data and for images prepared as above.
- Integer arithmetic differs between runtimes and processors: check the numbers above on the
  machine that will run it.
"""


def _origin(spec):
    """Where the images are from and under which licence, as far as params/datasets.yaml says."""
    if spec.layout == "phantom":
        return "generated by medq"
    source = spec.source or f"{spec.title}, whose `source` params/datasets.yaml does not name"
    licence = spec.licence or ("see the source" if spec.source else "not recorded")
    return f"{source}; licence: {licence}"


def _snippet(facts):
    if facts["file"].endswith(".onnx"):
        return (
            'import onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx")\n'
            'probabilities = session.run(None, {"images": images})[0]'
        )
    return (
        "import openvino\n\nmodel = openvino.Core().compile_model(\n"
        '    "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})\n'
        "probabilities = model(images)[0]"
    )
