"""The backbones of section 2.4, as timm builds them, at any image size and class count."""

import contextlib
import difflib
import functools
import importlib.util
import pickle
import re
import sys
from pathlib import Path

from medq import artefacts, params
from medq.errors import UserError, first_line, one_of

SUFFIXES = (".safetensors", ".pth", ".pt")  # of a state dict in a folder of weights, in the order of preference
OF_FLOATS = "save the `state_dict()` of the floating-point model"
# {timm's name: family} of models that are known to convert under both engines: a batch tries others before it starts.
CONVERTED = dict.fromkeys(
    "resnet18 resnet50 densenet121 efficientnet_b0 mobilenetv2_100 convnext_tiny efficientnet_lite0".split(), "cnn"
) | dict.fromkeys("swin_tiny_patch4_window7_224 vit_base_patch16_224 mobilevit_xxs".split(), "transformer")


def create(name, n_classes, image_size=224, weights="none", trained=False):
    """A trainable model of backbone `name` for `n_classes` classes.

    `weights`: `imagenet` (timm's, from its hub), `none` (random), a state dict (`.safetensors`, or `.pt` and `.pth`
    without pickled code) or a folder of them under timm's names. A head of another class count is replaced by a fresh
    one (section 2.4), unless `trained` asks for the model as it is. Returns an `nn.Module` taking float
    [n, 3, image_size, image_size], giving logits [n, n_classes]; its attribute `loaded` {file, sha256, replaced,
    resampled} says what came from where. Raises `UserError` for an unknown name, weights that cannot be had, or that
    belong to another model.
    """
    spec = _entry(name)
    timm = _ask_timm(name, spec)
    options = dict(spec.options) | ({"img_size": image_size} if spec.sized else {})
    options |= spec.scratch if weights == "none" else {}
    try:
        model = timm.create_model(spec.timm, pretrained=weights == "imagenet", num_classes=n_classes, **options)
    except MemoryError:
        raise
    except Exception as error:  # timm's builders raise anything
        if weights == "imagenet" and isinstance(error, (OSError, RuntimeError)):
            raise UserError(
                f"ImageNet weights of {spec.timm} cannot be had ({type(error).__name__}: {first_line(error)}); "
                "connect to the hub once, or set `weights: none` or `weights: <file or folder>` in the profile."
            ) from error
        raise UserError(
            f"backbones.yaml: {name}: timm cannot build {spec.timm} with {options or 'no options'} "
            f"({type(error).__name__}: {first_line(error)}); correct `options`, `scratch` or `sized`."
        ) from error
    head = model.get_classifier() if hasattr(model, "get_classifier") else None
    if hasattr(head, "reset_parameters"):  # timm draws those of EfficientNets for 1,000 classes
        head.reset_parameters()
    path, what = weights_file(weights, name), f"{name} with {n_classes} classes at {image_size} pixels"
    model.loaded = load_into(model, path, what, trained) if path else {"file": weights}
    return model


def weights_file(weights, name):
    """The file that `weights` (a file or a folder) holds for backbone `name`, or None for `imagenet` and `none`.

    In a folder it is called after timm's model, with or without the name of its weights. Raises `UserError` where it
    is absent.
    """
    path = Path(weights)
    if weights in ("imagenet", "none"):
        return None
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(
            f"weights: {path}: no such file or folder; give `imagenet`, `none`, a state dict, or a folder of them."
        )
    timm = _entry(name).timm
    names = dict.fromkeys(f"{stem}{suffix}" for stem in (timm, timm.split(".")[0]) for suffix in SUFFIXES)
    for file in names:
        if (path / file).is_file():
            return path / file
    raise UserError(f"weights: {path}: has no file for {name}; put {' or '.join([*names][:2])} there.")


def _timm():
    from medq import _torchvision

    _torchvision.ensure()
    import timm

    return timm


@functools.cache
def registered():
    """Names of the models that timm's sources register, without importing it, which takes seconds."""
    found = importlib.util.find_spec("timm")
    sources = Path(found.origin).with_name("models").glob("*.py") if found else ()
    return {
        name
        for path in sources
        for name in re.findall(r"@register_model\ndef (\w+)\(", path.read_text(encoding="utf-8"))
    }


def check_names(names):
    """`UserError` for the first of the backbones `names` that the catalogue does not know, or timm by what it says there."""
    for name in names:
        if (spec := _entry(name)).timm not in registered():
            _ask_timm(name, spec)


def _entry(name):
    known = params.backbones()
    return known[one_of("backbone", name, list(known))]


def _ask_timm(name, spec):
    """timm, if it has the model of an entry and the weights that its name may end in; `UserError` otherwise."""
    timm = _timm()
    if not timm.is_model(spec.timm):
        near = difflib.get_close_matches(spec.timm, timm.list_models(), n=3)
        raise UserError(
            f"backbones.yaml: {name}.timm: timm {timm.__version__} has no model {spec.timm!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else "; `timm.list_models()` lists them.")
        )
    model, _, tag = spec.timm.partition(".")
    if tag and spec.timm not in (tagged := timm.list_pretrained(f"{model}.*")):
        raise UserError(
            f"backbones.yaml: {name}.timm: timm {timm.__version__} has no weights {tag!r} for {model}: "
            f"{'known are ' + ', '.join(tagged) if tagged else 'it has none'}; leave out {'.' + tag!r}, or give one of these."
        )
    return timm


def check_images(model, name, n_classes, image_size):
    """`UserError` where a fresh model of backbone `name` does not turn images of `image_size` pixels into `n_classes` logits."""
    import torch

    training, wanted = model.training, (2, n_classes)
    try:
        with torch.no_grad():  # not inference mode: a model may keep what it computes for later, and is trained next
            found = model.eval()(torch.zeros(2, 3, image_size, image_size))
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
        wrong = "" if shape == wanted else f"gives {shape}"
    except Exception as error:  # someone else's model can raise anything
        wrong = f"{type(error).__name__}: {first_line(error)}"
    model.train(training)
    if wrong:
        raise UserError(
            f"backbones.yaml: {name}: {params.backbones()[name].timm} does not turn 2 colour images of {image_size} pixels "
            f"into logits of shape {wanted} ({wrong}); set `sized: true` if it is built for one size, mend its "
            "`options`, or choose another image_size."
        )


def load_into(model, path, what, trained=True):
    """Load the state dict at `path` into `model`; returns {file, sha256, replaced, resampled}.

    With `trained=False` a head of another class count, or none, leaves the model's own in place (`replaced`); position
    embeddings and tables of relative positions are resampled to the model's image size as timm does it (`resampled`).
    Raises `UserError` where the file is missing, unsafe or of another model.
    """
    given, own = read_state(path), model.state_dict()
    head = {} if trained else _head_of(model, given)
    state = given | head
    adapt = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    if adapt and set(own) <= set(state):
        with contextlib.suppress(Exception):  # of another model: its entries are compared below
            state = adapt(dict(state), model)
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    extra = [key for key in state if key not in own]
    if wrong or extra:
        key = (wrong or extra)[0]
        found = f"of shape {tuple(given[key].shape)}" if key in given else "absent"
        expected = f"not {tuple(own[key].shape)}" if key in own else "unknown to this model"
        raise UserError(
            f"{path}: does not hold the weights of {what}: {key!r} is {found} there, {expected} "
            f"({len(wrong)} entries missing or of another shape, {len(extra)} unknown); give the file of that model."
        )
    whole = [key for key in own if own[key].is_floating_point() and not state[key].is_floating_point()]
    if whole:
        raise UserError(f"{path}: {whole[0]!r} holds whole numbers; {OF_FLOATS}.")
    model.load_state_dict(state)
    return {
        "file": Path(path).name,
        "sha256": artefacts.sha256(path),
        "replaced": [*head],
        "resampled": [key for key in own if key not in head and given[key].shape != own[key].shape],
    }


def _head_of(model, given):
    """The entries of `model`'s own head, where the one in `given` is absent or for another number of classes."""
    names = model.pretrained_cfg.get("classifier") or () if hasattr(model, "pretrained_cfg") else ()
    names = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    own = {key: value for key, value in model.state_dict().items() if key.startswith(names or "\0")}
    other = [key for key in own if key in given and given[key].shape != own[key].shape]
    fits = all(given[key].shape[1:] == own[key].shape[1:] for key in other)
    return own if fits and (other or not any(key in given for key in own)) else {}


def read_state(path):
    """The state dict in a `.safetensors` or torch file: dense tensors of finite numbers; pickled code is never executed."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    safe, torchs = Path(path).suffix == ".safetensors", {"map_location": "cpu", "weights_only": True}
    try:
        state = load_file(path) if safe else torch.load(path, **torchs)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds pickled code and is refused; save `model.state_dict()` alone ({first_line(error)[:80]})."
        ) from None
    except (SafetensorError, RuntimeError, EOFError, LookupError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{path}: is damaged or not a state dict ({first_line(error)[:80]}); write it again.") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: must hold a state dict, that is names and tensors; save `model.state_dict()` alone.")
    for name, value in state.items():
        if why := _unfit(value):
            raise UserError(f"{path}: {name!r} {why}; {OF_FLOATS}.")
    return state


def _unfit(value):
    """Why a tensor cannot be a weight, or an empty string."""
    import torch

    if value.is_meta:
        return "is a meta tensor, without numbers"
    if value.is_quantized or value.is_floating_point() and value.itemsize == 1:  # whose scales are elsewhere
        return "is quantized"
    if value.is_nested or value.layout is not torch.strided:
        return "is nested" if value.is_nested else "is sparse"
    wrong = value.is_complex() or not torch.isfinite(value).all()
    return "holds numbers that are not real and finite" if wrong else ""
