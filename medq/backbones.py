"""The backbones of section 2.4, as timm builds them, at any image size and class count."""

import difflib
import functools
import importlib.util
import re
from pathlib import Path

from medq import params
from medq.errors import UserError, one_of


def create(name, n_classes, image_size=224, weights="none"):
    """A trainable model of backbone `name` with a fresh head for `n_classes` classes.

    `weights`: `imagenet` (timm's, from its hub), `none` (random) or the path of a state dict (`.safetensors`, or `.pt`
    without pickled code). Returns an `nn.Module` taking float [n, 3, image_size, image_size], giving logits [n, n_classes].
    Raises `UserError` for an unknown name, weights that cannot be had, or that belong to another model.
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
                f"ImageNet weights of {spec.timm} cannot be had ({type(error).__name__}: {_first_line(error)}); "
                "connect to the hub once, or set `weights: none` or `weights: <file>` in the profile."
            ) from error
        raise UserError(
            f"backbones.yaml: {name}: timm cannot build {spec.timm} with {options or 'no options'} "
            f"({type(error).__name__}: {_first_line(error)}); mend `options`, `scratch` or `sized`."
        ) from error
    _with_small_head(model)
    if weights not in ("none", "imagenet"):
        load_into(model, weights, f"{name} with {n_classes} classes at {image_size} pixels")
    return model


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
        spec = _entry(name)
        if spec.timm not in registered():
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

    training = model.training
    try:
        with torch.no_grad():  # not inference mode: a model may keep what it computes for later, and is trained next
            found = model.eval()(torch.zeros(2, 3, image_size, image_size))
        said = f"gives {tuple(found.shape)}" if isinstance(found, torch.Tensor) else f"gives a {type(found).__name__}"
        fits = isinstance(found, torch.Tensor) and found.shape == (2, n_classes)
    except Exception as error:  # someone else's model can raise anything
        fits, said = False, f"{type(error).__name__}: {_first_line(error)}"
    model.train(training)
    if not fits:
        raise UserError(
            f"backbones.yaml: {name}: {params.backbones()[name].timm} does not turn 2 colour images of {image_size} pixels "
            f"into logits of shape {(2, n_classes)} ({said}); set `sized: true` if it is built for one size, mend its "
            "`options`, or choose another image_size."
        )


def _with_small_head(model):
    """Start the fresh head with torch's own small weights.

    timm draws the heads of its EfficientNet family for 1,000 classes: with a handful they start at a loss near 20.
    """
    head = model.get_classifier() if hasattr(model, "get_classifier") else None
    if hasattr(head, "reset_parameters"):
        head.reset_parameters()
    return model


def load_into(model, path, what):
    """Load the state dict at `path` into `model`; `UserError` where it is missing, unsafe or of another model."""
    state = read_state(path)
    own = model.state_dict()
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    extra = [key for key in state if key not in own]
    if wrong or extra:
        key = (wrong or extra)[0]
        found = "absent" if key not in state else f"of shape {tuple(state[key].shape)}"
        raise UserError(
            f"{path}: does not hold the weights of {what}: {key!r} is {found} there "
            f"({len(wrong)} entries missing or of another shape, {len(extra)} unknown); give the file of that model."
        )
    model.load_state_dict(state)


def read_state(path):
    """The state dict in a `.safetensors` or torch file, tensors only; pickled code is refused, never executed."""
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; `weights` is `imagenet`, `none` or the path of a state dict.")
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds pickled code and is refused; save `model.state_dict()` alone ({_first_line(error)[:80]})."
        ) from None
    except (SafetensorError, RuntimeError, EOFError, LookupError, TypeError, ValueError, OSError) as error:
        raise UserError(
            f"{path}: is damaged or not a state dict ({_first_line(error)[:80]}); write it again."
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: must hold a state dict, that is names and tensors; save `model.state_dict()` alone.")
    for name, value in state.items():
        if value.is_complex() or value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{path}: {name!r} holds numbers that are not real and finite; save the weights again.")
    return state


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
