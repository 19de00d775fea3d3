"""Training on a GPU, skipped without one: the CPU's results, the same each time, and nothing that makes the GPU wait."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures import quantize as fixtures_quantize
from medq import errors, evaluate, fit, slots
from medq.datasets.partition import Partition
from medq.quantize import static

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
SCHEDULE = dict(epochs=3, batch_size=16, learning_rate=1e-2, weight_decay=1e-4, patience=9, min_improvement=0.0, seed=1)
KINDS = {"fp32": {}, "fp16": {"autocast": torch.float16}, "qat": {}, "attention": {}}


class Attention(torch.nn.Module):
    """Patches of 8 x 8 pixels that attend to each other: the gradients of fused attention change from run to run."""

    def __init__(self):
        super().__init__()
        self.patches, self.mixed = torch.nn.Conv2d(3, 96, 8, 8), torch.nn.Linear(32, 32)
        self.head = torch.nn.Linear(32, 4)

    def forward(self, x):
        q, k, v = self.patches(x).flatten(2).transpose(1, 2).unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.mixed(mixed).mean(1))


def trained(folder, kind, device=DEVICE, **changes):
    """(model, history) of a small network trained in one of these ways."""
    torch.manual_seed(0)
    model = Attention() if kind == "attention" else fixtures_quantize.SmallNet()
    if kind == "qat":
        model = static.prepare_training(model, "fbgemm", fixtures_quantize.SIZE)
    schedule = fit.Schedule(**SCHEDULE | KINDS[kind] | changes, device=device)
    return model, fit.fit(model, fixtures_quantize.part(), schedule, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_what_the_cpu_learns(kind, tmp_path):
    model, history = trained(tmp_path / "gpu", kind)
    part = fixtures_quantize.part()
    autocast = KINDS[kind].get("autocast")
    found = evaluate.probabilities(model, part.images[part.held_out], device=DEVICE, autocast=autocast)
    assert (found.argmax(1) == part.labels[part.held_out]).mean() > 0.5  # four classes
    _, its = trained(tmp_path / "cpu", kind, device="cpu", autocast=None)
    assert np.allclose(history["train_loss"], its["train_loss"], rtol=0.1)
    assert len(history) == SCHEDULE["epochs"] and history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_gives_the_bytes_of_a_whole_one(kind, tmp_path, interrupted):
    whole, _ = trained(tmp_path / "whole", kind)
    with interrupted():
        trained(tmp_path / "resumed", kind)
    resumed, history = trained(tmp_path / "resumed", kind)
    assert len(history) == SCHEDULE["epochs"]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_no_batch_waits_for_the_one_before():
    images = fit.Images(fixtures_quantize.part(), DEVICE)
    model = fixtures_quantize.SmallNet().to(DEVICE, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    scaler = torch.amp.GradScaler(DEVICE)
    schedule = fit.Schedule(**SCHEDULE, device=DEVICE, autocast=torch.float16)
    fit._epoch(model, images, optimizer, scaler, schedule, 0)  # what is made once (cuDNN, the scaler) is made
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz") as caught:
            fit._epoch(model, images, optimizer, scaler, schedule, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    lines = [str(entry.statement) for entry in caught.traceback if Path(str(entry.path)).name == "fit.py"]
    assert lines[-1].strip() == "mean = float(total) / seen"  # the first thing that waits: the epoch's loss


def test_a_share_of_the_memory_is_kept_to_and_what_is_beyond_it_is_one_sentence(tmp_path):
    rows = np.arange(64)
    images, ids = np.zeros((64, 256, 256, 3), np.uint8), rows.astype(str)
    large = Partition(images, rows % 4, ids, list("abcd"), rows, rows, rows, ids)
    torch.cuda.empty_cache()
    slots._limit_memory(64 * 2**20 / torch.cuda.get_device_properties(0).total_memory)
    schedule = fit.Schedule(**SCHEDULE | {"batch_size": 64}, device=DEVICE)
    try:
        with pytest.raises(errors.UserError, match="train.batch_size: .*out of memory.*MEDQ_GPU_SLOTS"):
            fit.fit(fixtures_quantize.SmallNet(), large, schedule, tmp_path)
    finally:
        slots._limit_memory(1.0)
        torch.cuda.empty_cache()


def test_the_benchmark_reports_a_share():
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
    try:
        import gpu
    finally:
        sys.path.pop(0)
    options = type("Options", (), {"images": 64, "image_size": 64, "batch_size": 16})
    seconds, share, first = gpu.measure(options, "resnet18", None, compiled=False)
    assert 0 < share <= 1 and 0 < seconds <= first
