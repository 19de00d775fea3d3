"""Imports what notebooks need. The process that `medq.execute` forks them from imports this module, and nothing else does."""

import contextlib
import importlib
import os
import warnings

from medq import _torchvision, stages

LIBRARIES = (
    "papermill matplotlib.pyplot matplotlib_inline.backend_inline pandas pyarrow.parquet sklearn.metrics timm "
    "torch.ao.quantization.quantize_fx ipykernel.debugger ipykernel.inprocess.ipkernel ipykernel.inprocess.manager"
).split()
MODULES = ["backbones", *(row.module or name for name, row in stages.STAGES.items()), "figures", "notebook", "show"]

os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # a remark of the debugger that comes with ipykernel
with warnings.catch_warnings(action="ignore"):
    with contextlib.suppress(Exception):
        _torchvision.ensure()  # timm can be imported then
    for _name in [*(f"medq.{name}" for name in MODULES), *LIBRARIES]:
        with contextlib.suppress(Exception):  # the notebook that needs it will show why
            importlib.import_module(_name)
