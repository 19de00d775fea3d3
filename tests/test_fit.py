"""Training compiled: the same model by another way of computing, and one sentence where it cannot be had."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from medq import doctor, errors, evaluate, fit, keys, params, paths
from medq.datasets.partition import Partition
from medq.finetune import schedule_of

SCHEDULE = dict(epochs=2, batch_size=8, learning_rate=1e-3, weight_decay=1e-4, patience=9, min_improvement=0.0, seed=1)


@pytest.fixture
def part():
    """Twenty-eight noisy images of two classes, one of them brighter: a whole batch, and a smaller last one."""
    rng = np.random.default_rng(0)
    labels = np.arange(28) % 2
    images = (rng.integers(0, 128, (28, 16, 16, 3)) + 100 * labels[:, None, None, None]).astype(np.uint8)
    rows = np.arange(28)
    ids = rows.astype(str)
    return Partition(images, labels, ids, ["a", "b"], rows[:20], rows[20:], rows[20:], ids)


def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.3), nn.Linear(4, 2))


NEEDS = pytest.mark.skipif(not doctor.compiler(), reason="it needs a C++ compiler, and no space in torch's path")


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, NEEDS])])
def test_compiled_training_gives_the_weights_of_plain_training_also_when_interrupted(
    part, tmp_path, interrupted, monkeypatch, backend
):
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: real(model, backend=backend, **options))
    plain, compiled, resumed = model(), model(), model()
    history = fit.fit(plain, part, fit.Schedule(**SCHEDULE), tmp_path / "plain")
    schedule = fit.Schedule(**SCHEDULE, compiled=True)
    own = fit.fit(compiled, part, schedule, tmp_path / "compiled")
    assert np.allclose(history["train_loss"], own["train_loss"], atol=1e-5)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, compiled.state_dict()[name], atol=1e-4), name
    assert not torch.equal(plain[0].weight, model()[0].weight)

    with interrupted():
        fit.fit(model(), part, schedule, tmp_path / "resumed")
    torch._dynamo.reset()  # as in a process that has seen no batch yet
    fit.fit(resumed, part, schedule, tmp_path / "resumed")
    assert all(torch.equal(value, compiled.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_a_compiler_that_fails_is_one_sentence_that_names_the_key(part, tmp_path, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **_: real(model, backend=broken))
    with pytest.raises(errors.UserError, match="^compile: .*no compiler"):
        fit.fit(model(), part, fit.Schedule(**SCHEDULE, compiled=True), tmp_path)


@pytest.mark.parametrize(
    "kind, said",
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has 8 GiB"),
        (torch.AcceleratorError, "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"),
        (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        (RuntimeError, "shapes cannot be multiplied"),
        (RuntimeError, ""),
    ],
)
def test_a_gpu_too_small_is_one_sentence_that_names_the_key(part, tmp_path, kind, said):
    class Greedy(nn.Linear):
        def forward(self, x):
            raise kind(said)

    small = "CUDA" in said
    with pytest.raises(errors.UserError if small else RuntimeError) as caught:
        fit.fit(Greedy(2, 2), part, fit.Schedule(**SCHEDULE), tmp_path)
    assert not list(tmp_path.iterdir())
    assert re.fullmatch("train.batch_size: .*MEDQ_GPU_SLOTS.*" if small else re.escape(said), str(caught.value))


def test_compile_is_an_input_of_a_cell_and_leaves_qat_as_it_is():
    plain = params.load("smoke")
    asked = plain.model_copy(update={"compile": True})
    cell = paths.Cell("smoke", plain.datasets[0], "resnet18", "fp32")
    values = [keys.parameters(p, "finetune", cell) for p in (plain, asked)]
    assert values[0] | {"compile": True} == values[1] != values[0]
    for regime, compiled in {"fp32": True, "fp16": True, "qat-fbgemm": False}.items():
        cell = paths.Cell("smoke", plain.datasets[0], "resnet18", regime, 0)
        assert schedule_of(asked, cell, "cpu", "").compiled is compiled


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has the option")
def test_freed_memory_stays_in_the_process():
    """A large tensor that is made again needs no new pages; by default every one of its pages is faulted in again."""
    script = (
        "import resource, torch; from medq import finetune; finetune.keep_memory()\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.ones(16, 1024, 1024)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "print(faults(), [faults() for _ in range(3)][-1])"
    )
    first, again = map(int, subprocess.check_output([sys.executable, "-c", script], text=True).split())
    assert first > 10_000 and again < first / 100


def test_a_processor_without_bfloat16_rounds_what_convolutions_read_and_sums_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    torch.manual_seed(0)
    layer, x = nn.Conv2d(8, 8, 3, groups=8), torch.randn(2, 8, 9, 9)
    with evaluate.half_precision("cpu", torch.bfloat16):
        found = layer(x)
        assert (x.flatten(1) @ x.flatten(1).T).dtype == torch.bfloat16  # what is no convolution is torch's own
    rounded = layer.weight.bfloat16().double(), layer.bias.bfloat16().double()
    exact = nn.functional.conv2d(x.bfloat16().double(), *rounded, groups=8)
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).abs().max() <= exact.abs().max() * 2**-8  # one rounding
    found.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32 and layer.bias.grad.allclose(torch.full((8,), 2.0 * 7 * 7))
    with evaluate.half_precision("cpu", None):
        assert layer(x).dtype == torch.float32
