"""The integer engines of torch: one place that sets their global state, one type that ties a model to its engine."""

import contextlib
from dataclasses import dataclass

import torch
from torch import nn

from medq.errors import one_of

ENGINES = ("fbgemm", "qnnpack", "x86", "onednn")


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
    """A converted INT8 model and the one engine it may run under.

    Calling it (float32 [n, 3, h, w] to logits [n, classes]) sets that engine for the call. `Unsupported` is raised when
    the engine refuses an operator.
    """

    model: nn.Module
    engine: str
    mended: bool = False  # rewritten by `kernels.mended`

    def __call__(self, x):
        with engine(self.engine), refusals():
            return self.model(x)


@contextlib.contextmanager
def refusals():
    """Turn what an engine says when it cannot build or run an operator into `Unsupported`."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if any(
            sign in text.lower()
            for sign in (
                "qnnpack",
                "fbgemm",
                "onednn",
                "create_",
                "failed to create",
                "scale ratio",
                "requantization",
                "engine",
                "could not run 'quantized",
            )
        ):
            raise Unsupported(_reason(text)) from error
        raise


def _reason(text):
    """What an engine said, without torch's assertion around it; qnnpack prints the cause to stderr only."""
    said = text.rpartition("please report a bug to PyTorch. ")[2][:200]
    if "QNNPACK Add" in said or "QNNPACK Mul" in said:
        said += ": an input's scale over the output's must lie in [2^-14, 2^8)"
    return said
