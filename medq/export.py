"""`medq export`: a trained model as one file that runs without this package.

Preprocessing (scaling, ImageNet statistics) and the softmax with its temperature are part of the graph: it takes decoded
images, uint8 [n, 3, size, size], and gives probabilities. Beside it lie its facts as JSON and a model card.
"""

import json
import re
from pathlib import Path

import numpy as np

from medq import __version__, artefacts, params as profiles, paths, provenance, regimes
from medq.config import validate
from medq.datasets.partition import partition
from medq.errors import UserError
from medq.results import METRICS, title

FORMATS = {"onnx": "onnxruntime", "openvino": "openvino"}  # and the runtime of `medq.peers` that writes it
TOLERANCE = 1e-4  # largest difference of a probability from PyTorch's that an FP32 export may show
FACTS, CARD = "model.json", "MODEL_CARD.md"
# Operators of preprocessing and softmax, which stay in floating point.
_KEEP = {"onnx": ("Cast", "Sub", "Div", "Softmax"), "openvino": ("Convert", "Subtract", "Divide", "Softmax")}


def add_arguments(parser):
    """Arguments of `medq export`."""
    parser.add_argument(
        "cell", type=Path, help="folder of a trained model: runs/<profile>/<dataset>/<backbone>/fp32/fold<k>"
    )
    parser.add_argument("output", type=Path, help="folder to write to")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="default: onnx")
    precision = "int8: static, calibrated (default: fp32)"
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32", help=precision)
    temperature = (
        "divide logits by this number before the softmax; `fit`: by the one that fits the held-out images best"
    )
    parser.add_argument("--temperature", default="1", metavar="T", help=f"{temperature} (default: 1)")


def run(args):
    """Export, and print where to."""
    facts = export(args.cell, args.output, format=args.format, precision=args.precision, temperature=args.temperature)
    print(
        f"{args.output / facts['file']}: {facts['size_mb']:.1f} MB, largest difference from PyTorch "
        f"{facts['largest_difference']:.2g}; see {args.output / CARD}"
    )


def export(cell_folder, output, *, format="onnx", precision="fp32", temperature=1.0):
    """Write the trained model in `cell_folder` to `output` as `format` (`onnx`, `openvino`); returns its facts (a dict).

    `precision` int8 quantizes it as the stage `peers` does, on the profile's calibration images. `temperature` is a
    number, or `fit`: the FP32 model's on the held-out images, whose scores then use that of the other half. The file is
    loaded again and compared with PyTorch on held-out images. Raises `UserError` for a folder without a finished model, a
    missing package, a temperature that is not above 0 or cannot be fitted, or an FP32 export whose probabilities differ by
    more than 1e-4.
    """
    from medq import evaluate, metrics, peers, remedies

    runtime = next(r for r in peers.RUNTIMES if (r.runtime, r.precision) == (FORMATS[format], precision))
    if lacking := peers.missing(runtime.packages):
        raise UserError(f"exporting to {format} needs packages: {lacking}.")
    params, cell, part, model = _opened(cell_folder)
    held, labels, fit = part.images[part.held_out], part.labels[part.held_out], temperature == "fit"
    try:
        if fit:
            parts = remedies.halves(part, params.seed)
            temperature = remedies.fit_temperature(remedies.logarithms(evaluate.probabilities(model, held)), labels)
        if not 0 < (temperature := float(temperature)) < float("inf"):
            raise ValueError("it must be above 0")
    except ValueError as error:
        raise UserError(
            f"--temperature {temperature}: {error}; give a number above 0{'' if fit else ' or `fit`'}."
        ) from None
    whole, output = deployable(model, temperature), Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be a folder ({error.strerror}); choose another.") from None
    path = output / f"model{runtime.suffix}"
    runtime.save(_task(params, cell, part, whole, format, precision), path)
    found, exact = load(path)(held), evaluate.probabilities(whole.logits, held)
    facts = _facts(params, cell, part, path, precision, found, exact) | {"temperature_fitted": fit}
    facts["temperature"] = temperature
    if precision == "fp32" and not facts["largest_difference"] <= TOLERANCE:
        raise UserError(
            f"{output}: the exported model's probabilities differ from PyTorch's by "
            f"{facts['largest_difference']:.1g}; do not use it, and export with the other --format."
        )
    if fit:
        found, exact = (remedies.tempered(p, labels, parts)[0] for p in (found, exact))
    scores, reference = (metrics.summary(labels, p, facts["classes"]) for p in (found, exact))
    facts["metrics"] = scores[scores["class"] == ""].set_index("metric")["value"].to_dict()
    artefacts.write_json(output / FACTS, facts)
    artefacts.write_text(output / CARD, card(facts, scores, reference, profiles.datasets()[facts["dataset"]]))
    return facts


def _task(params, cell, part, whole, format, precision):
    """What a runtime of `medq.peers` is given to write `whole`, on the profile's calibration images."""
    import torch

    from medq.peers import Task
    from medq.quantize.stage import calibration_rows

    rows = calibration_rows(part, min(params.calibration.images, len(part.train)), params.seed)
    return Task(
        whole,
        [torch.from_numpy(x) for x in _planar(part.images[rows])],
        cell.backbone,
        profiles.backbones()[cell.backbone].family,
        len(part.classes),
        params.image_size,
        batch_sizes=(),
        threads=1,
        names=("images", "probabilities"),
        keep=_KEEP[format],
        origin=_identity(params, cell, precision),
    )


def _opened(folder):
    """(params, cell, partition, model) of a finished cell with float weights, from its manifest."""
    from medq.finetune import CHECKPOINT
    from medq.quantize.stage import float_model

    folder = Path(folder)
    if why := artefacts.damage(folder):
        raise UserError(
            f"{folder}: is not a finished cell ({why}); give runs/<profile>/<dataset>/<backbone>/fp32/fold<k> of a batch "
            "that ran."
        )
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    cell = paths.Cell(**manifest["cell"])
    if not (folder / CHECKPOINT).is_file():
        raise UserError(
            f"{folder}: regime {cell.regime} holds no float weights; export the fp32 cell beside it, with --precision int8 "
            f"for an INT8 model. Regimes with weights: {', '.join(regimes.of('float'))}."
        )
    if cell.folder.resolve() != folder.resolve():
        raise UserError(
            f"{folder}: its manifest belongs to {cell.folder}; set MEDQ_RUNS to the folder that holds the batch."
        )
    params = validate(profiles.Params, manifest["parameters"], str(folder / "manifest.json"))
    part = partition(params, cell.dataset, cell.fold)
    return params, cell, part, float_model(params, cell, part, cell.regime)


def deployable(model, temperature):
    """`model` from decoded images to probabilities: uint8 or float [n, 3, h, w] in 0 to 255 to float32 [n, classes].

    Its method `logits` takes the input of `model` and gives logits divided by the temperature.
    """
    import torch

    from medq.augment import MEAN, STD

    class Deployable(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model
            self.register_buffer("mean", 255 * torch.tensor(MEAN).view(1, 3, 1, 1))
            self.register_buffer("std", 255 * torch.tensor(STD).view(1, 3, 1, 1))

        def logits(self, x):
            return self.model(x) / temperature

        def forward(self, images):
            return torch.softmax(self.logits((images.float() - self.mean) / self.std), 1)

    return Deployable().eval()


def _identity(params, cell, precision):
    """What the file itself tells about its origin (strings only)."""
    names = ("dataset", "backbone", "regime", "fold")
    return {name: str(getattr(cell, name)) for name in names} | {
        "precision": precision,
        "profile": params.profile,
        "image_size": str(params.image_size),
        "medq": __version__,
        "classes": json.dumps(list(profiles.datasets()[cell.dataset].classes)),
    }


def load(path):
    """A function from decoded images (uint8 [n, h, w, 3]) to probabilities (float32 [n, classes]) of an exported file."""
    from medq import peers

    call = peers.opened(Path(path), 1)
    return lambda images: np.concatenate([call(x) for x in _planar(images)])


def _planar(images, n=32):
    """Decoded images [.., h, w, 3] as batches of at most `n`, [n, 3, h, w]."""
    return [np.ascontiguousarray(images[k : k + n].transpose(0, 3, 1, 2)) for k in range(0, len(images), n)]


def _facts(params, cell, part, path, precision, found, exact):
    from medq.finetune import CHECKPOINT

    files = [path, *([path.with_suffix(".bin")] if path.suffix == ".xml" else [])]
    size, weights = params.image_size, params.weights_of(cell.backbone)
    prepared = "RGB as decoded, resized bilinearly with antialiasing, aspect not kept"
    return _identity(params, cell, precision) | {
        "classes": list(part.classes),
        "image_size": size,
        "fold": cell.fold,
        "file": path.name,
        "input": {"name": "images", "type": "uint8", "shape": ["n", 3, size, size], "what": prepared},
        "output": {"name": "probabilities", "type": "float32", "shape": ["n", len(part.classes)]},
        "largest_difference": float(np.abs(found.astype(float) - exact).max()),
        "same_decision": float((found.argmax(1) == exact.argmax(1)).mean()),
        "held_out_images": len(found),
        "size_mb": sum(f.stat().st_size for f in files) / 1e6,
        "sha256": {f.name: artefacts.sha256(f) for f in files},
        "checkpoint_sha256": artefacts.record(cell.folder)["files"][CHECKPOINT],
        "weights": weights if weights in ("imagenet", "none") else Path(weights).name,
        "versions": provenance.versions() | provenance.installed(("onnx", "onnxruntime", "openvino", "nncf")),
        "written": provenance.now(),
    }


def plain(text):
    """`text` as it is in Markdown, outside of tables: characters with a meaning there are escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#$~])", r"\\\1", " ".join(str(text).split()))


def in_table(text):
    """`text` as it is in a cell of a Markdown table, which a bar would end."""
    return plain(text).replace("|", r"\|")


def card(facts, scores, reference, spec):
    """The model card as Markdown: `model_card.md` filled in from the facts and the metrics of the file and of PyTorch's FP32.

    `scores` and `reference`: tables of `metrics.summary`; `spec`: the dataset's.
    """
    import jinja2

    def score(frame, metric, klass=""):
        row = frame[(frame["metric"] == metric) & (frame["class"] == klass)]["value"]
        return f"{row.iloc[0]:.4f}" if len(row) else ""

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"plain": plain, "in_table": in_table}
    template = environment.from_string(Path(__file__).with_name("model_card.md").read_text(encoding="utf-8"))
    shown = {name: METRICS[name] for name in ("auroc", "auprc", "ece", "ece_top_label", "brier", "accuracy")}
    given = {"title": title(facts["backbone"]), "spec": spec, "shown": shown, "score": score}
    return template.render(facts | given | {"scores": scores, "reference": reference}) + "\n"
