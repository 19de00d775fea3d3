"""The integer engines of torch: the only place that sets their global state, and a type that ties a model to its engine."""

import contextlib
from dataclasses import dataclass

import torch
from torch import fx, nn

from medq.errors import UserError, first_line, one_of


@dataclass(frozen=True)
class Engine:
    """What PyTorch does under an engine by default."""

    reduced: bool  # activations keep to 7 bits, so that sums of products in 16 bits cannot saturate
    weights: str  # scales of a layer's weights: `per-channel` or `per-tensor`
    levels: int | None = None  # steps of a dynamic activation's grid; None: not measured
    mistaken: str = ""  # the engine that the recipe `other-engine` runs its models under


ENGINES = {
    "fbgemm": Engine(True, "per-channel", 127, "qnnpack"),
    "qnnpack": Engine(False, "per-tensor", 255, "fbgemm"),
    "x86": Engine(True, "per-channel"),
    "onednn": Engine(False, "per-channel"),
}
DYNAMIC_INSTEAD = "`family: transformer` in params/backbones.yaml quantizes its Linear layers dynamically instead"


class Unsupported(Exception):
    """An engine cannot do what a cell asks of it; the message is the reason that tables show."""


@contextlib.contextmanager
def engine(name):
    """Make `name` the engine of torch's quantized operators inside the block, and what it was before afterwards.

    Raises `Unsupported` where this build or processor lacks it, `UserError` for an unknown name.
    """
    one_of("engine", name, ENGINES)
    if name not in torch.backends.quantized.supported_engines:
        raise Unsupported(f"engine {name} is not available on this processor")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


@dataclass(frozen=True)
class Quantized:
    """A converted INT8 model, in evaluation mode, and the one engine it may run under.

    Calling it (float32 [n, 3, h, w] to logits [n, classes]) sets that engine for the call. `Unsupported` is raised when
    the engine refuses an operator.
    """

    model: nn.Module
    engine: str
    mended: bool = False  # rewritten by `kernels.mended`

    def __post_init__(self):
        self.model.eval()

    def __call__(self, x):
        with engine(self.engine), refusals(DYNAMIC_INSTEAD if isinstance(self.model, fx.GraphModule) else ""):
            return self.model(x)


_REFUSALS = ("qnnpack", "fbgemm", "onednn", "create_", "failed to create", "scale ratio", "requantization", "engine")


@contextlib.contextmanager
def refusals(way_out=""):
    """Turn the errors by which an engine, or a layer that it replaced, refuses to be built or run into `Unsupported`.

    A reason that lies in the model's own code ends with `way_out`.
    """
    try:
        yield
    except (NotImplementedError, TypeError, AttributeError) as error:
        reason = f"the converted model does not run ({short(error)})"
        raise Unsupported("; ".join(filter(None, (reason, way_out)))) from error
    except RuntimeError as error:
        text = first_line(error)
        if "could not run 'quantized" in text.lower() or any(sign in text.lower() for sign in _REFUSALS):
            raise Unsupported(_reason(text)) from error
        raise


@contextlib.contextmanager
def unsupported(what, way_out=""):
    """Turn any error but a lack of memory into `Unsupported`, whose reason starts with `what` and ends with `way_out`."""
    try:
        yield
    except (Unsupported, UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch.fx and torch.ao raise whatever a model's own code makes them raise
        if "allocate memory" in str(error):
            raise
        raise Unsupported("; ".join(filter(None, (f"{what} ({short(error)})", way_out)))) from error


def short(error):
    """An exception's type and the start of its message."""
    return f"{type(error).__name__}: {first_line(error)[:150]}"


def _reason(text):
    """The engine's message without torch's assertion around it; qnnpack prints the cause to stderr only."""
    reason = text.rpartition("please report a bug to PyTorch. ")[2][:200]
    if "QNNPACK Add" in reason or "QNNPACK Mul" in reason:
        reason += ": an input's scale over the output's must lie in [2^-14, 2^8)"
    return reason
