"""Everything that touches `torch.ao.quantization`.

engines    the global engine state, and models tied to their engine
static     FX graph mode for convolutional backbones, recipes as data
dynamic    dynamic Linear for transformers, and its simulation
kernels    integer operators compared with floating point, each on its own and a whole graph beside its twin
sweep      the same comparison for every quantized operator on its own
storage    quantized models on disk, without pickled code
stage      the stage `quantize` of a batch
"""

from medq.quantize.engines import ENGINES, Quantized, Unsupported, engine
from medq.quantize.kernels import agreement, mended
from medq.quantize.stage import run
from medq.quantize.storage import load, save, state_dict_bytes
