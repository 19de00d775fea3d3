import dataclasses
import json
import math
import os
import subprocess
import sys
import weakref

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from torch import nn

from medq import backbones, latency, params as profiles, paths, plan, regimes, timing
from medq.errors import UserError
from medq.quantize.engines import Unsupported
from medq.results import SCHEMA

TAIL = timing.TAILS["p99"][1]


# --- timing ---------------------------------------------------------------------------------------


class Machine:
    """A clock that only the timed functions move, the order in which they ran, and when each ran last."""

    def __init__(self, drift=0.0):
        self.now, self.ran, self.last, self.drift = 0.0, [], {}, drift  # drift: how much slower it is each second

    def clock(self):
        return self.now

    def model(self, name, seconds):
        def call():
            self.ran.append(name)
            self.last[name] = self.now
            self.now += seconds * (1 + self.drift * self.now)

        return call

    def time(self, calls, warmup=1, seconds=1.0, batches=1000, **more):
        """`interleave` on this clock; `calls` are the seconds that each model takes."""
        calls = {name: self.model(name, taken) for name, taken in calls.items()}
        options = {"warmup": warmup, "seconds": seconds, "batches": batches}
        return latency.interleave(calls, **options, clock=self.clock, **more)


def test_times_are_those_of_the_call_alone_and_models_take_turns():
    m = Machine()
    found = m.time({"a": 0.01, "b": 0.02}, warmup=3)
    assert found["a"] == pytest.approx([10] * len(found["a"])) and found["b"] == pytest.approx([20] * len(found["b"]))
    assert sum(found["a"]) >= 1000 and sum(found["b"]) >= 1000
    changes = sum(x != y for x, y in zip(m.ran, m.ran[1:]))
    assert changes >= timing.BLOCKS / 2
    assert m.ran[:6] == ["a"] * 3 + ["b"] * 3  # warm-up
    again = Machine()
    again.time({"a": 0.01, "b": 0.02}, warmup=3)
    assert again.ran == m.ran


def test_without_a_limit_in_seconds_every_turn_has_a_share_of_the_batches():
    m = Machine()
    found = m.time(dict.fromkeys("abc", 0.01), warmup=2, seconds=math.inf, batches=3)
    assert [len(times) for times in found.values()] == [3, 3, 3]
    turns = ["".join(m.ran[6:][i : i + 6 : 2]) for i in range(0, 18, 6)]  # after two calls each: one untimed, one timed
    assert {"".join(sorted(turn)) for turn in turns} == {"abc"} and len(set(turns)) > 1


def test_a_machine_that_drifts_moves_every_model():
    found = Machine(drift=1.0).time({"a": 0.01, "b": 0.01})
    assert np.mean(found["a"]) == pytest.approx(np.mean(found["b"]), rel=0.1)
    assert max(found["a"]) > 2 * min(found["a"])


def test_a_slow_model_ends_early_but_not_before_its_median_can_be_bounded():
    m = Machine()
    found = m.time({"fast": 0.001, "slow": 5.0}, warmup=10, batches=50)
    assert len(found["slow"]) == timing.ENOUGH and len(found["fast"]) == 50
    assert m.ran.count("slow") == timing.ENOUGH + 2  # one warm-up, one before its first turn


def test_fast_and_slow_models_are_timed_over_all_turns():
    """Blocks of batches are then of the same time, whatever a batch takes."""
    m = Machine()
    m.time({"fast": 0.001, "slow": 0.1}, seconds=2.0, batches=100)
    assert m.last["fast"] > 0.8 * m.last["slow"]


def test_a_tail_that_is_to_be_shown_is_waited_for():
    m = Machine()
    found = m.time({"shown": 1.0, "other": 1.0}, seconds=10.0, batches=400, enough={"shown": TAIL})
    assert len(found["shown"]) == TAIL and len(found["other"]) == 10
    assert not math.isnan(timing.summary(found["shown"], 1)["p99_ms"])
    assert len(m.time({"a": 1.0}, batches=8, enough={"a": 368})["a"]) == 8


def test_the_device_is_waited_for_before_every_reading_of_the_clock():
    m, waited = Machine(), []

    def synchronise():
        waited.append(len(m.ran))
        m.now += 0.5  # work still queued

    found = m.time({"a": 0.01}, batches=6, synchronise=synchronise)
    assert found["a"] == pytest.approx([510] * len(found["a"]))
    assert len(waited) == 2 * (1 + len(found["a"]))


def test_threads_are_pinned_and_given_back():
    before, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    with latency.pinned(1) as facts:
        assert torch.get_num_threads() == facts["threads"] == 1
        assert os.sched_getaffinity(0) == set(facts["cores"]) and len(facts["cores"]) == 1
    assert torch.get_num_threads() == before and os.sched_getaffinity(0) == cores


def test_what_children_compute_is_no_other_work():
    work = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); input()"
    before = latency.own_seconds()
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert latency.own_seconds() - before > 0.25  # while it lives; the clock is coarse
        child.communicate(b"\n")
    assert latency.own_seconds() - before > 0.25  # and when it has ended


def test_more_threads_than_cores_are_refused():
    params = profiles.load("smoke", latency={"threads": 4096})
    with pytest.raises(UserError, match="latency.threads: 4096"):
        latency.thread_count(params)


# --- models and stage -----------------------------------------------------------------------------


def tiny(model, family="cnn"):
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    return latency.Source(model.eval(), images, family)


def small_cnn():
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), *head)


def test_fusing_batch_norm_changes_no_logit_and_is_refused_where_there_is_none():
    model = small_cnn()
    model[1].running_mean.normal_(), model[1].weight.data.uniform_(0.5, 2)
    model.eval()
    x, images = torch.randn(2, 3, 16, 16), np.zeros((1, 32, 32, 3), dtype=np.uint8)
    fused = latency.baseline(model, "fused", images, [1]).call
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    torch.testing.assert_close(fused(x), model(x), atol=1e-5, rtol=1e-4)
    for other, reason in (
        (nn.Sequential(nn.Conv2d(3, 8, 3)), "no batch normalisation"),
        (backbones.create("mobilevit_xxs", 3, 32).eval(), "torch.fx cannot trace this model"),
    ):
        with pytest.raises(Unsupported, match=reason):
            latency.baseline(other, "fused", images, [1])


def test_what_an_engine_cannot_do_is_left_out_with_its_reason(monkeypatch):
    real = latency.integer

    def refuse(made, regime):
        if regime == "ptq-qnnpack":
            raise Unsupported("failed to create add operator")
        return real(made, regime)

    monkeypatch.setattr(latency, "integer", refuse)
    params = profiles.load("smoke", regimes=["fp32", "fp16", "ptq-fbgemm", "ptq-qnnpack"])
    found, absent = latency.variants(params, tiny(small_cnn()))
    floats = [("fp32", name) for name in ("eager", "channels-last", "fused")]
    assert [(v.regime, v.baseline) for v in found] == [*floats, ("ptq-fbgemm", "")]
    assert absent["ptq-qnnpack"] == "failed to create add operator" and "GPU" in absent["fp16"]


def test_what_does_not_fit_into_memory_fails_instead_of_ending_the_process():
    size = int(0.95 * psutil.virtual_memory().available)
    with latency.bounded_memory(), pytest.raises(MemoryError):
        np.empty(size, np.uint8)
    assert np.empty(size // 2, np.uint8).nbytes  # nothing is touched, and there is no limit any more


def test_a_model_that_cannot_run_a_batch_size_is_left_out_of_it_alone():
    class Small:
        def __init__(self):
            self.itself = self  # as a traced graph refers to itself

        def __call__(self, x):
            if len(x) > 2:
                raise Unsupported("failed to run quantized::conv2d")

    images, absent = np.zeros((4, 8, 8, 3), np.uint8), {}
    found = [latency.Variant("fp32", lambda x: x, 0, 0), latency.Variant("ptq-qnnpack", Small(), 0, 0)]
    small = weakref.ref(found[1].call)
    assert set(latency.runnable(found, images, 2, absent)) == {0, 1} and absent == {}
    assert set(latency.runnable(found, images, 4, absent)) == {0}
    assert "failed to run" in absent["ptq-qnnpack at batch 4"]
    assert small() is None  # its memory is free for the others


def test_images_are_resized_and_repeated_to_the_batch():
    images = np.full((2, 8, 8, 3), 255, np.uint8)
    assert (latency.resized(images, 16) == 255).all() and latency.resized(images, 16).shape == (2, 16, 16, 3)
    variant = latency.Variant("fp32", None, 0, 0, layout=torch.channels_last)
    x = latency.batch(images, 5, variant)
    assert x.shape == (5, 3, 8, 8) and x.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def quick(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQ_RUNS", str(tmp_path))
    timing = {"threads": 1, "image_size": 32, "seconds": 0.01, "batch_sizes": [1, 2], "warmup": 1}
    return profiles.load("smoke", latency=timing | {"baselines": ["eager", "fused"]})


def test_a_backbone_is_timed_under_every_regime_and_the_raw_times_are_kept(quick, monkeypatch):
    real = latency.source
    monkeypatch.setattr(
        latency, "source", lambda *given: dataclasses.replace(real(*given), images=real(*given).images[:8])
    )
    cell = paths.Cell("smoke", "", "resnet18", "", 0)
    folder = latency.run(quick, cell)
    table, raw = (pd.read_csv(folder / latency.TIMINGS, keep_default_na=False), pd.read_parquet(folder / latency.RAW))
    assert list(table.columns) == SCHEMA["latency.csv"] and list(raw.columns) == SCHEMA["latency_raw.parquet"]
    names = {("fp32", "eager"), ("fp32", "fused"), *((name, "") for name in regimes.INT8)}
    assert set(zip(table["regime"], table["baseline"])) == names and len(table) == 2 * len(names)
    keys = ["regime", "baseline", "batch_size"]
    stored, means = table.set_index(keys)["mean_ms"].astype(float), raw.groupby(keys)["ms"].mean()
    assert means.round(9).to_dict() == stored.round(9).to_dict()
    sizes = table.drop_duplicates("regime").set_index("regime")["size_mb"].astype(float)
    assert 3.9 < sizes["fp32"] / sizes["ptq-fbgemm"] < 4.0
    done = json.loads((folder / "done.json").read_text())
    assert "fp16" in done["absent"]
    machine = json.loads((folder / latency.MANIFEST).read_text())["machine"]
    assert machine["threads"] == 1 and {"load_before", "load_after", "governor", "others", "cores"} <= set(machine)
    written = (folder / latency.TIMINGS).stat().st_mtime_ns
    latency.run(quick, cell)
    assert (folder / latency.TIMINGS).stat().st_mtime_ns == written


def test_transformers_are_timed_once_for_both_kinds_of_training(quick, monkeypatch):
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 4)

        def forward(self, x):
            return self.head(x.mean((2, 3)))

    monkeypatch.setattr(latency, "source", lambda params, backbone, size: tiny(Small(), "transformer"))
    folder = latency.run(quick, paths.Cell("smoke", "", "swin_tiny", "", 0))
    table = pd.read_csv(folder / latency.TIMINGS).set_index(["regime", "batch_size"])["mean_ms"]
    assert table["qat-fbgemm", 1] == table["ptq-fbgemm", 1]
    assert "same integer graph" in json.loads((folder / "done.json").read_text())["absent"]["qat"]


def test_random_weights_and_noise_stand_in_for_what_is_not_trained_yet(quick):
    made = latency.source(quick, "mobilenetv2", 32)
    assert made.facts == {"weights": "random", "calibration": "64 images of noise"}
    assert made.images.shape == (64, 32, 32, 3)


def test_the_model_that_is_timed_is_the_one_that_a_batch_waits_for(monkeypatch, runs):
    asked, looked_at = profiles.load("smoke", folds=[1, 0]), []
    monkeypatch.setattr(latency.artefacts, "is_finished", lambda folder: looked_at.append(folder))
    latency.source(asked, "resnet18", 32)
    (needed,) = plan.needed(asked, plan.Job("latency", paths.Cell("smoke", "", "resnet18", "")))
    assert looked_at[0] == needed.folder  # of a fixed split fold 0, though fold 1 is asked for first
