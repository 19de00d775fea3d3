"""The regimes: one table of what each precision is called, how it is made and how it is drawn.

A new INT8 engine is a row `<method>-<engine>` with `paper=False` for each method here, and one of
`medq.quantize.engines`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Regime:
    """One way to obtain the model that is evaluated."""

    name: str
    title: str  # as in the paper's tables
    method: str  # "float", "ptq" or "qat"
    colour: str
    engine: str = ""  # of the INT8 kernels; empty for floating point
    start: str = ""  # the regime whose checkpoint it starts from; empty: from `weights` of the profile
    schedule: str = ""  # section of the profile that it trains with (`train` or `qat`); empty: it does not train
    paper: bool = True  # one of the paper's six

    @property
    def int8(self):
        """Whether the model is quantized, and so exists fake-quantized and converted."""
        return bool(self.engine)

    @property
    def stage(self):
        """The stage that makes its predictions."""
        return "quantize" if self.int8 else "finetune"


_ROWS = (
    Regime("fp32", "FP32", "float", "#575d6d", schedule="train"),
    Regime("fp16", "FP16", "float", "#34bcf6", schedule="train"),
    Regime("ptq-fbgemm", "INT8-PTQ (FBGEMM)", "ptq", "#ce0e17", "fbgemm", "fp32"),
    Regime("ptq-qnnpack", "INT8-PTQ (QNNPACK)", "ptq", "#f18102", "qnnpack", "fp32"),
    Regime("qat-fbgemm", "INT8-QAT (FBGEMM)", "qat", "#428364", "fbgemm", "fp32", "qat"),
    Regime("qat-qnnpack", "INT8-QAT (QNNPACK)", "qat", "#a0b88d", "qnnpack", "fp32", "qat"),
    Regime("fp32-continued", "FP32 continued", "float", "#8a58d0", start="fp32", schedule="qat", paper=False),
    Regime("fp32-autocast", "FP32 in half precision", "float", "#b48ba6", start="fp32", paper=False),
)
REGIMES = {row.name: row for row in _ROWS}  # in the order of the paper's tables, controls last
PAPER = tuple(row.name for row in _ROWS if row.paper)
CONTROLS = tuple(row.name for row in _ROWS if not row.paper and not row.int8)
ENGINES = tuple(dict.fromkeys(row.engine for row in _ROWS if row.engine))
PAPER_ENGINES = tuple(dict.fromkeys(row.engine for row in _ROWS if row.engine and row.paper))
INT8 = tuple(row.name for row in _ROWS if row.int8)


def method(name):
    """`float`, `ptq` or `qat`; empty for a name that is not a regime."""
    return REGIMES[name].method if name in REGIMES else ""


def of(*methods):
    """Names of the regimes of these methods, in order."""
    return tuple(row.name for row in _ROWS if row.method in methods)


def pairs():
    """(a, b) of every two regimes that are compared with a paired bootstrap (section 3.5)."""
    controls = [name for name in CONTROLS if REGIMES[name].schedule]
    wanted = (
        *(("fp32", name) for name in PAPER if REGIMES[name].method == "float" and name != "fp32"),
        *(("fp32", f"{m}-{e}") for e in ENGINES for m in ("ptq", "qat")),
        *((f"ptq-{e}", f"qat-{e}") for e in ENGINES),
        *(("fp32", name) for name in CONTROLS),
        *((control, f"qat-{e}") for control in controls for e in ENGINES),
        *((f"{m}-{first}", f"{m}-{other}") for m in ("ptq", "qat") for first, other in zip(ENGINES, ENGINES[1:])),
    )
    return tuple(pair for pair in wanted if REGIMES.keys() >= {*pair})  # an engine may have one method alone
