"""Quantized models on disk: plain integer and float tensors in safetensors, never pickled code.

A file holds the state of the converted model and, in its header, how to build the same graph again. Loading builds that
graph from the package's own code and fills it in, so a file cannot execute anything.
"""

import collections
import io
import json
from typing import Annotated, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import fx

from medq import artefacts, backbones
from medq.errors import UserError
from medq.params import Model, Positive, Recipe, validate
from medq.quantize import dynamic, kernels, static
from medq.quantize.engines import ENGINES, engine


class Header(Model):
    """The header of a file: how to build its graph again."""

    method: Literal["static", "static-qat", "dynamic"]
    backbone: str
    n_classes: Positive
    image_size: Annotated[int, Field(ge=32, le=1024)]
    engine: Literal[tuple(ENGINES)]
    recipe: Recipe | None
    mended: bool = False


def save(quantized, path, *, backbone, n_classes, image_size, recipe=None):
    """Write `quantized` to `path`; `recipe` is that of static post-training quantization, None for other methods."""
    static_graph = isinstance(quantized.model, fx.GraphModule)
    header = Header(
        method="dynamic" if not static_graph else "static" if recipe else "static-qat",
        backbone=backbone,
        n_classes=n_classes,
        image_size=image_size,
        engine=quantized.engine,
        recipe=recipe,
        mended=quantized.mended,
    )
    with artefacts.replacing(path) as temporary:
        save_file(_flat(quantized.model.state_dict()), temporary, metadata={"medq": json.dumps(header.model_dump())})


def load(path):
    """The `Quantized` model in `path`, with outputs bit-identical to those of the model that was saved.

    Raises `UserError` where the file is missing, damaged or not one of ours, `Unsupported` where its engine is missing.
    """
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("medq", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path}: is not a readable quantized model ({str(error)[:80]}); make it again.") from None
    if not isinstance(header, dict):
        raise UserError(f"{path}: is not a quantized model of medq (its header does not say how to build it).")
    header = validate(Header, header, f"{path} (header)")
    if (header.recipe is not None) != (header.method == "static"):
        raise UserError(
            f"{path} (header): recipe: belongs to the method static, not to {header.method}; make it again."
        )
    quantized = _rebuild(header)
    template = quantized.model.state_dict()
    try:
        with engine(quantized.engine):  # which also packs the weights
            state = collections.OrderedDict(_restored(template, tensors))
            for name in [name for name, value in state.items() if isinstance(value, torch.ScriptObject)]:
                setattr(quantized.model, name, state.pop(name))  # torch saves these, but loads only some of them
            state._metadata = template._metadata  # the modules' versions, which say how packed parameters are stored
            quantized.model.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"{path}: does not fit {header.backbone} as this version builds it ({str(error)[:80]}); make it again."
        ) from None
    return kernels.mended(quantized) if header.mended else quantized


def state_dict_bytes(model):
    """Size in bytes of the model's state dict as `torch.save` writes it (Table 4 of the paper)."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


def _rebuild(header):
    model = backbones.create(header.backbone, header.n_classes, header.image_size).eval()
    if header.method == "dynamic":
        return dynamic.convert(model, header.engine)
    if header.method == "static":
        prepared = static.prepare(model, header.engine, header.recipe, header.image_size)
    else:
        prepared = static.prepare_training(model, header.engine, header.image_size).eval()
    static.calibrate(prepared, [torch.zeros(1, 3, header.image_size, header.image_size)])
    return static.convert(prepared, header.engine)


def _flat(state):
    """A state dict with quantized tensors and packed parameters as plain tensors."""
    flat = {}
    for name, value in state.items():
        value = value.unpack() if isinstance(value, torch.ScriptObject) else value
        if isinstance(value, tuple):
            flat |= _flat({f"{name}/{i}": part for i, part in enumerate(value)})
        elif isinstance(value, torch.Tensor) and value.is_quantized:
            flat[f"{name}/int"] = value.int_repr().contiguous()
            if value.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
                flat[f"{name}/scale"] = value.q_per_channel_scales().clone()
                flat[f"{name}/zero"] = value.q_per_channel_zero_points().clone()
            else:
                flat[f"{name}/scale"] = torch.tensor(value.q_scale(), dtype=torch.float64)
                flat[f"{name}/zero"] = torch.tensor(value.q_zero_point())
        elif isinstance(value, torch.Tensor):
            flat[name] = value.contiguous().clone()
    return flat


def _restored(template, tensors, prefix=""):
    """`tensors` in the form of `template`, a state dict of the same model."""
    state = {}
    for name, like in template.items():
        key, packed = f"{prefix}{name}", like if isinstance(like, torch.ScriptObject) else None
        like = like if packed is None else packed.unpack()
        if isinstance(like, tuple):
            parts = _restored({f"{i}": part for i, part in enumerate(like)}, tensors, f"{key}/")
            parts = tuple(parts[f"{i}"] for i in range(len(like)))
            state[name] = parts if packed is None else _packed(packed, *parts)
        elif isinstance(like, torch.Tensor) and like.is_quantized:
            state[name] = _quantized(like, tensors, key)
        else:
            state[name] = tensors[key] if isinstance(like, torch.Tensor) else like
    return state


def _packed(like, weight, bias):
    """Weight and bias of a functional operator, packed as `like`: for a convolution or a linear layer."""
    if not hasattr(like, "stride"):
        return torch.ops.quantized.linear_prepack(weight, bias)
    return torch.ops.quantized.conv2d_prepack(
        weight, bias, like.stride(), like.padding(), like.dilation(), like.groups()
    )


def _quantized(like, tensors, key):
    values, scale, zero = (tensors[f"{key}/{part}"] for part in ("int", "scale", "zero"))
    if scale.ndim:
        return torch._make_per_channel_quantized_tensor(values, scale, zero, like.q_per_channel_axis())
    return torch._make_per_tensor_quantized_tensor(values, scale.item(), zero.item())
