"""Let `import torchvision` (and so timm) succeed beside a CPU build of torch.

PyPI's torchvision wheel is linked against CUDA. Where its compiled operators cannot load, two fake kernels are still
registered for operators that nobody has declared, and the import fails. Declaring the two schemas first is enough:
medq never calls them. Nothing is done where the compiled operators load.
"""

import sys

_SCHEMAS = ("nms", "qnms")
_library = None  # a torch Library unregisters when collected


def ensure():
    """Import torchvision, declaring the missing operator schemas first if that is what it takes."""
    global _library
    if "torchvision" in sys.modules:
        return
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "DEF")
        for name in _SCHEMAS:
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
