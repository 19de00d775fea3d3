"""Post-training quantization and quantization-aware training: engines, simulation, storage, sizes, refusals."""

import copy
import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures.quantize import Functional, batch, cell, defective, observed, part, trained
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize

from medq import artefacts, backbones, calibration_size, evaluate, finetune, fit, metrics, params, paths
from medq.errors import UserError
from medq.params import Recipe
from medq.quantize import dynamic, engines, fake, kernels, stage, static, storage
from medq.quantize.engines import Quantized, Unsupported, engine
from medq.quantize.stage import QUICK
from medq.results import published

DEFAULT = stage.DEFAULT
INT8 = ("fbgemm", "qnnpack")


@pytest.fixture(autouse=True)
def one_engine():
    """No test may leave the global engine changed."""
    before = torch.backends.quantized.engine
    yield
    assert torch.backends.quantized.engine == before


# --- engines --------------------------------------------------------------------------------------


def test_a_model_runs_under_its_own_engine_and_that_of_before_is_restored():
    class Spy(nn.Module):
        def forward(self, x):
            seen.append(torch.backends.quantized.engine)
            return x

    seen = []
    with engine("fbgemm"):
        for name in INT8:
            Quantized(Spy(), name)(torch.zeros(1))
        with pytest.raises(ZeroDivisionError), engine("qnnpack"):
            raise ZeroDivisionError
        assert torch.backends.quantized.engine == "fbgemm"
    assert seen == list(INT8)


def test_unknown_and_missing_engines(monkeypatch):
    with pytest.raises(UserError, match="unknown engine 'fbgem'; did you mean 'fbgemm'"), engine("fbgem"):
        pass
    backends = SimpleNamespace(quantized=SimpleNamespace(supported_engines=["fbgemm"]))
    monkeypatch.setattr(engines, "torch", SimpleNamespace(backends=backends))
    with pytest.raises(Unsupported, match="qnnpack is not available"), engine("qnnpack"):
        pass


def test_only_an_engine_s_refusal_becomes_unsupported():
    with pytest.raises(Unsupported), engines.refusals():
        raise RuntimeError("failed to create add operator with 1.0 A-to-output scale ratio: scale ratio must be in …")
    with pytest.raises(RuntimeError, match="mat1 and mat2"), engines.refusals():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_torch_quantization_is_behind_one_package():
    root = paths.ROOT / "medq"
    users = {
        path.relative_to(root).parts[0]
        for path in root.rglob("*.py")
        if re.search(r"^\s*(from|import) torch\.ao\b", path.read_text("utf-8"), re.M)
    }
    assert users == {"quantize"}


# --- simulation and integers ----------------------------------------------------------------------


@pytest.mark.parametrize("name", INT8)
def test_integer_model_agrees_with_its_simulation(name):
    prepared = observed(trained(), name, batches=list(stage.calibration_batches(part(), np.arange(64))))
    quantized = static.convert(prepared, name)
    integer = kernels.mended(quantized) or quantized
    held_out = part().images[part().held_out]
    exact, simulated, converted, as_it_is = (
        evaluate.probabilities(m, held_out)
        for m in (copy.deepcopy(trained()), static.simulate(prepared), integer, quantized)
    )
    assert np.abs(simulated - converted).max() < (0.05 if integer.mended else 0.1)
    assert np.abs(simulated - as_it_is).max() > 0.3 or name == "fbgemm" or not defective()
    assert np.abs(simulated - exact).max() > 1e-4  # it is a simulation of something
    assert metrics.accuracy(part().labels[part().held_out], exact) > 0.8
    assert metrics.accuracy(part().labels[part().held_out], converted) > 0.8


@pytest.mark.parametrize("name", INT8)
@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-8, 0.0])
def test_small_activations_have_the_engines_smallest_step(name, size):
    torch.manual_seed(2)
    model, x = nn.Linear(16, 8, bias=False), size * (torch.randn(4, 16) - 0.5)
    with torch.inference_mode():
        simulated = dynamic.prepare_training(nn.Sequential(model), name)(x)
        integer = dynamic.convert(nn.Sequential(model), name)(x)
    assert torch.allclose(simulated, integer, rtol=1e-4, atol=1e-3 * size)


def test_fake_quantized_linear_has_a_straight_through_gradient():
    layer = dynamic.prepare_training(nn.Sequential(nn.Linear(8, 3)), "qnnpack")
    x = torch.randn(5, 8, requires_grad=True)
    layer(x).sum().backward()
    # A weight of the largest magnitude may be rounded beyond the last step, and then it has no gradient.
    assert (layer[0].weight.grad != 0).sum() >= layer[0].weight.numel() - 1 and x.grad.abs().min() > 0


@pytest.mark.parametrize("name", INT8)
def test_layers_kept_in_floating_point(name):
    kept = static.convert(observed(trained(), name, keep=("mix",)), name).model.get_submodule("mix")
    assert type(kept) is nn.Conv2d
    assert torch.equal(kept.weight, trained().mix.weight)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    converted = dynamic.convert(model, name, keep=("1",)).model
    assert isinstance(converted[0], kernels.DYNAMIC) and type(converted[1]) is nn.Linear


def test_float_model_is_left_as_it_was():
    model = copy.deepcopy(trained())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    static.convert(observed(model, "fbgemm", Recipe(title="", batch_norm="fused")), "fbgemm")
    with pytest.raises(Unsupported, match="eval"):  # PyTorch does not fuse in training mode
        observed(model, "fbgemm", Recipe(title="", training_mode=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_float_weights_are_found_however_batch_norm_was_folded():
    x = batch()
    for kind in ("traced", "fused", "unfused"):
        converted = static.convert(observed(trained(), "fbgemm", Recipe(title="", batch_norm=kind)), "fbgemm").model
        weights = static.float_weights(trained(), converted)
        assert set(weights) == {"stem.0", "depthwise", "mix", "head"}
        for name, (weight, _) in weights.items():
            integer = converted.get_submodule(name).weight()
            step = integer.q_per_channel_scales().max()
            assert (integer.dequantize() - weight).abs().max() <= 0.51 * step + 1e-6
    fused = static.fused(trained())
    assert torch.allclose(fused(x), trained()(x), atol=1e-4)


# --- calibration ----------------------------------------------------------------------------------


def test_calibration_sets_are_nested_training_images_and_draws_differ():
    large, small = (stage.calibration_rows(part(), n, seed=42) for n in (96, 32))
    assert list(large[:32]) == list(small)
    assert len(set(large)) == 96 and set(large) <= set(part().train)
    assert list(stage.calibration_rows(part(), 32, 42, draw=1)) != list(small)
    with pytest.raises(UserError, match="calibration.images: 129 are asked for"):
        stage.calibration_rows(part(), 129, 42)


@pytest.mark.parametrize("name", INT8)
def test_sweep_over_sizes_is_what_each_size_alone_gives(name, monkeypatch):
    params, here = cell(f"ptq-{name}")
    monkeypatch.setattr(calibration_size, "float_model", lambda *_: trained())
    tables, facts = calibration_size.measure(params, here, part())
    table = tables["calibration_size.csv"]
    assert sorted(table["n_calibration"].unique()) == [32, 64, 96, 128]  # 256 is more than the training part has
    assert len(table) == 8 and facts == {}
    row = table[(table["n_calibration"] == 96) & (table["subset"] == 1)].iloc[0]
    batches = stage.calibration_batches(part(), stage.calibration_rows(part(), 96, params.seed, draw=1))
    alone = static.convert(observed(trained(), name, batches=batches), name)
    probability = evaluate.probabilities(alone, part().images[part().held_out])
    assert row["auprc"] == metrics.auprc(part().labels[part().held_out], probability)


def test_sweep_says_so_where_calibration_does_not_matter():
    params, here = cell("ptq-fbgemm", "swin_tiny")
    tables, facts = calibration_size.measure(params, here, part())
    assert tables["calibration_size.csv"].empty and "no calibration images" in facts["reason"]


# --- storage --------------------------------------------------------------------------------------


KINDS = [
    ("static", "resnet18", "fbgemm"),
    ("static-qat", "resnet18", "qnnpack"),
    ("dynamic", "swin_tiny", "fbgemm"),
    ("static", "mobilenetv2", "qnnpack"),  # mended
    ("static", "functional", "fbgemm"),
    ("static", "functional", "qnnpack"),
]


@pytest.mark.parametrize(("method", "backbone", "name"), KINDS)
def test_saved_model_gives_identical_bits(method, backbone, name, tmp_path, monkeypatch):
    torch.manual_seed(3)
    if backbone == "functional":
        monkeypatch.setattr(backbones, "create", lambda *_: Functional())  # with other weights each time
    model, x = backbones.create(backbone, 4, 32).eval(), batch(4)
    if method == "dynamic":
        quantized = dynamic.convert(model, name)
    elif method == "static":
        quantized = static.convert(observed(model, name, QUICK, batches=[x]), name)
        quantized = kernels.mended(quantized) or quantized
    else:
        prepared = static.prepare_training(model, name, 32)
        prepared(x)
        quantized = static.convert(prepared.eval(), name)
    assert quantized.mended == (backbone == "mobilenetv2")
    path = tmp_path / "model.safetensors"
    recipe = QUICK if method == "static" else None
    storage.save(quantized, path, backbone=backbone, n_classes=4, image_size=32, recipe=recipe)
    loaded = storage.load(path)
    with torch.inference_mode():
        assert torch.equal(loaded(x), quantized(x))
    assert (loaded.engine, loaded.mended) == (name, quantized.mended)


def test_files_that_are_not_ours_are_refused_and_nothing_in_them_runs(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"a": Trap()}, tmp_path / "pickled")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "garbage").write_bytes(b"garbage")
    for name in ("pickled", "foreign", "empty", "garbage", "absent"):
        with pytest.raises(UserError, match=f"{name}: is not a {'quantized' if name == 'foreign' else 'readable'}"):
            storage.load(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"engine": "gpu"}, "engine"),
        ({"image_size": 10**9}, "image_size"),
        ({"method": "pickle"}, "method"),
        ({"recipe": None}, "recipe"),
        ({"recipe": {"title": "", "code": "x"}}, "unknown key"),
        ({"backbone": "resnet19"}, "unknown backbone"),
        ({"more": 1}, "more"),
        ({}, "does not fit resnet18"),
    ],
)
def test_a_header_that_was_tampered_with_is_refused(change, said, tmp_path, saved_resnet18):
    with safe_open(saved_resnet18, "pt") as file:
        header = json.loads(file.metadata()["medq"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    path = tmp_path / "model.safetensors"
    if not change:
        del tensors["conv1.bias"]
    save_file(tensors, path, metadata={"medq": json.dumps(header | change)})
    with pytest.raises(UserError, match=said):
        storage.load(path)


@pytest.fixture(scope="module")
def saved_resnet18(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    prepared = observed(backbones.create("resnet18", 4, 32).eval(), "fbgemm", QUICK, batches=[batch(2)])
    quantized = static.convert(prepared, "fbgemm")
    storage.save(quantized, path, backbone="resnet18", n_classes=4, image_size=32, recipe=QUICK)
    return path


# --- sizes ----------------------------------------------------------------------------------------


TABLE_4 = published().ratios.set_index("backbone")["size_ratio"]
LARGE = sorted(set(TABLE_4.index) - {"resnet18", "mobilenetv2"})


@pytest.mark.parametrize(
    "backbone", ["resnet18", "mobilenetv2", *(pytest.param(b, marks=pytest.mark.slow) for b in LARGE)]
)
def test_sizes_on_disk_are_the_paper_s(backbone):
    """Table 4's last column, 4 classes at 224 pixels; what the observers see does not change a size."""
    model = backbones.create(backbone, 4, 224).eval()
    if backbone in ("swin_tiny", "vit_base"):
        quantized = dynamic.convert(model, "fbgemm")
    else:
        prepared = observed(model, "fbgemm", QUICK, size=224, batches=[torch.zeros(1, 3, 64, 64)])
        quantized = static.convert(prepared, "fbgemm")
    ratio = storage.state_dict_bytes(model) / storage.state_dict_bytes(quantized.model)
    assert ratio == pytest.approx(TABLE_4[backbone], abs=0.02)


# --- what an engine cannot do ---------------------------------------------------------------------


def degenerate():
    """A network whose second branch is all zeros, as a residual branch with a zero-initialised scale is."""
    model = copy.deepcopy(trained())
    nn.init.zeros_(model.mix.weight)
    nn.init.zeros_(model.mix.bias)
    return model


class Untraceable(nn.Module):
    """Control flow on values, which torch.fx cannot trace, around two Linear layers of which one is read from outside."""

    def __init__(self):
        super().__init__()
        self.conv, self.read, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        x = nn.functional.linear(x, self.read.weight, self.read.bias)
        return self.head(x if x.sum() > 0 else -x)


@pytest.mark.parametrize("name", INT8)
def test_what_torch_fx_cannot_trace_is_unsupported_with_the_way_out(name):
    for prepare in (lambda m: observed(m, name), lambda m: static.prepare_training(m, name, 32), static.fused):
        with pytest.raises(Unsupported, match="family: transformer.*params/backbones.yaml"):
            prepare(Untraceable().eval())


class Reader(nn.Module):
    """A traceable model whose code reads the weight of a layer, which the integer layer has as a method."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3))) * self.head.weight.new_ones(1)


def test_a_converted_graph_that_does_not_run_is_unsupported_with_the_way_out():
    quantized = static.convert(observed(Reader().eval(), "fbgemm", QUICK), "fbgemm")
    with pytest.raises(Unsupported, match="does not run.*AttributeError.*family: transformer"):
        quantized(batch())


def test_a_traced_model_that_does_not_run_is_unsupported_before_it_is_trained():
    """timm's stochastic depth, asked for whatever the mode is, makes a tensor of a shape that observers take for values."""
    from timm.layers import drop_path

    class Always(nn.Module):
        def forward(self, x):
            return drop_path(x, 0.5, True)

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Always(), nn.Conv2d(8, 4, 3), nn.Flatten())
    for prepare in (lambda: observed(model.eval(), "fbgemm"), lambda: static.prepare_training(model, "fbgemm", 32)):
        with pytest.raises(Unsupported, match="the traced model does not run.*family: transformer"):
            prepare()


@pytest.mark.parametrize("name", INT8)
def test_a_layer_whose_weight_is_read_by_other_code_stays_in_floating_point(name):
    torch.manual_seed(0)
    model, x = Untraceable().eval(), batch(8)
    assert dynamic.unconvertible(model) == {"read"}
    simulation = dynamic.prepare_training(model, name).eval()
    quantized = dynamic.convert(simulation, name)
    assert type(quantized.model.read) is nn.Linear and isinstance(quantized.model.head, kernels.DYNAMIC)
    with torch.inference_mode():
        wanted, simulated, got = model(x), simulation(x), quantized(x)
    assert (got - simulated).abs().max() < 0.02 * wanted.abs().max() and not torch.equal(got, wanted)
    with pytest.raises(Unsupported, match="no Linear layer"):
        dynamic.convert(nn.Sequential(nn.Conv2d(3, 4, 3)), name)


def test_a_dry_conversion_says_what_cannot_be_done_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(backbones, "create", lambda *_: Untraceable())
    found = stage.rehearse("resnet18", 32)
    assert set(found) == set(stage.INT8) and all("family: transformer" in reason for reason in found.values())
    assert stage.rehearse("swin_tiny", 32) == {}  # a Linear layer can be converted
    monkeypatch.setattr(backbones, "create", lambda *_: copy.deepcopy(trained()))
    assert stage.rehearse("resnet18", 32, ["fp32", "ptq-fbgemm", "qat-qnnpack"]) == {}
    monkeypatch.setattr(backbones, "create", lambda *_: degenerate())  # training opens the branch
    assert stage.rehearse("resnet18", 32, ["ptq-qnnpack", "qat-fbgemm"]) == {}


def test_a_dry_conversion_refuses_a_backbone_that_is_built_for_another_size(monkeypatch):
    entry = params.backbones()["swin_tiny"].model_copy(update={"timm": "eva02_tiny_patch14_224", "sized": False})
    monkeypatch.setattr(params, "backbones", lambda: {"eva": entry})
    with pytest.raises(UserError, match="sized: true"):
        stage.rehearse("eva", 56)


@pytest.mark.parametrize("error", [KeyError("no such operator"), Unsupported("the converted model does not run")])
def test_a_check_that_fails_loses_no_cell(error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(kernels, "agreement", fail)
    table, agrees, note = stage.judged(None, None)
    assert table.empty and list(table.columns) == kernels.COLUMNS and agrees is None
    assert "could not be checked" in note and str(error) in note


def test_an_unsupported_cell_ends_with_its_reason(alone, monkeypatch):
    params, here = cell("ptq-qnnpack")
    monkeypatch.setattr(stage, "float_model", lambda *_: degenerate())
    record = artefacts.record(stage.run(params, here))
    assert record["status"] == "unsupported" and re.search("QNNPACK Add.*scale", record["reason"])
    assert not {"predictions.parquet", "quantized.safetensors"} & set(record["files"])
    assert artefacts.is_finished(here.folder)


def test_a_study_is_made_once_and_lies_beside_the_regimes(alone):
    params, here = cell()
    calls = []

    def measure(*given):
        calls.append(given)
        return {"table.csv": pd.DataFrame({"a": [1]})}, {"reason": "because"}

    for _ in range(2):
        folder = stage.study("diagnosis", measure)(params, here.of("ptq-qnnpack"))
    assert len(calls) == 1 and artefacts.is_finished(folder)
    assert folder == alone / "tiny" / "phantom-BrainMRI" / "mobilenetv2" / "diagnosis-qnnpack" / "fold0"
    assert artefacts.record(folder)["reason"] == "because"
    assert stage.study_name("diagnosis", "qat-fbgemm") == "diagnosis-qat-fbgemm"
    for name, regime in (("diagnosis", "fp32"), ("remedies", "qat-fbgemm"), ("calibration_size", "qat-fbgemm")):
        with pytest.raises(UserError, match=f"regime: {name} is for.*not '{regime}'"):
            stage.study_name(name, regime)


# --- quantization-aware training ------------------------------------------------------------------


def scales(model):
    state = model.state_dict()
    return {name: value.clone() for name, value in state.items() if name.endswith((".scale", "zero_point"))}


@pytest.mark.parametrize("name", INT8)
def test_frozen_observers_and_batch_norm_stay_as_they_are(name):
    model = static.prepare_training(copy.deepcopy(trained()), name, 32)
    model(batch())
    static.observe(model, False)
    finetune.freeze_batch_norm(model)
    frozen = scales(model) | {k: v.clone() for k, v in model.state_dict().items() if "running_" in k}
    model(3 * batch() + 1)
    assert len(frozen) > 8
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in frozen.items())


def test_training_freezes_at_the_points_of_the_profile(runs, monkeypatch):
    qat = {"epochs": 5, "freeze_observers": 0.6, "freeze_batch_norm": 0.4}
    params, here = cell("qat-fbgemm", qat=qat)
    seen = []

    def watch(model, partition, schedule, folder):
        for epoch in range(schedule.epochs):
            model.train()
            schedule.before_epoch(model, epoch)
            observing = {bool(m.observer_enabled[0]) for m in model.modules() if hasattr(m, "observer_enabled")}
            norms = {m.training for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
            seen.append((observing, norms))
        return None

    monkeypatch.setattr(fit, "fit", watch)
    stage._train(params, here, part(), trained(), "cnn", "fbgemm", "key")
    assert [observing for observing, _ in seen] == [{True}] * 3 + [{False}] * 2
    assert [norms for _, norms in seen] == [{True}] * 2 + [{False}] * 3


def test_one_epoch_observes_and_no_range_moves_while_held_out_images_are_scored(runs):
    params, here = cell("qat-fbgemm", qat={"epochs": 1, "freeze_observers": 0.0})
    found = []
    for selection in (part().selection, part().train, part().selection[:1]):
        data = dataclasses.replace(part(), selection=selection)
        model, _ = stage._train(params, here, data, copy.deepcopy(trained()), "cnn", "fbgemm", "key")
        before = scales(model)
        model(5 * batch())
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
        found.append(before)
    activations = [value for name, value in found[0].items() if "activation_post" in name and "scale" in name]
    assert len(activations) > 4 and all(float(value) != 1 for value in activations)
    assert all(torch.equal(value, other[name]) for other in found[1:] for name, value in found[0].items())


def test_the_control_has_the_schedule_of_quantization_aware_training():
    params, here = cell()
    qat, control, plain = (
        vars(finetune.schedule_of(params, here.of(regime), "cpu", ""))
        for regime in ("qat-fbgemm", "fp32-continued", "fp32")
    )
    assert qat.pop("before_epoch") and control.pop("before_epoch") and plain.pop("before_epoch") is None
    assert qat == control and qat["epochs"] == params.qat.epochs and qat["learning_rate"] == params.qat.learning_rate
    assert plain["epochs"] == params.train.epochs


@pytest.mark.parametrize("name", INT8)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fake_quantization_trains_to_the_weights_of_pytorchs_own(name, layout):
    ours = static.prepare_training(copy.deepcopy(trained()), name, 32).to(memory_format=layout)
    theirs, labels = copy.deepcopy(ours), torch.from_numpy(part().labels[:64])
    replaced = [module for module in theirs.modules() if type(module) is fake.ObservedFakeQuantize]
    fused = [module for module in theirs.modules() if vars(module).pop("_forward_approximate", None)]
    assert len(replaced) > 8 and len(fused) > 1
    for module in replaced:
        module.__class__ = FusedMovingAvgObsFakeQuantize
    states = []
    for model in (ours, theirs):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(4):
            static.observe(model, step < 3)
            optimizer.zero_grad()
            # The last images are brighter than any that the observers saw, so that values and gradients are cut off.
            nn.functional.cross_entropy(model(batch(64).to(memory_format=layout) * (1 + step)), labels).backward()
            optimizer.step()
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("low, high, zero", [(0, 255, 0), (0, 255, 255), (0, 127, 60), (-128, 127, 0)])
def test_fake_quantization_has_the_values_and_gradients_of_pytorchs_own(low, high, zero):
    scale, zero = torch.tensor(0.25), torch.tensor(zero, dtype=torch.int32)
    ties = torch.arange(-600, 601) * scale / 2  # every other one lies between two steps, many beyond the bounds
    x = torch.cat([ties, torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 100])
    found = []
    for function in (fake.fake_quantize, torch.fake_quantize_per_tensor_affine):
        leaf = x.clone().requires_grad_()
        y = function(leaf, scale, zero, low, high)
        y.backward(torch.arange(len(x), dtype=torch.float32) + 1)
        found.append((y.detach(), leaf.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found))
    assert 0 < (found[0][1] == 0).sum() < len(x)


def test_quantization_aware_training_keeps_what_it_learned():
    torch.manual_seed(0)
    model = static.prepare_training(copy.deepcopy(trained()), "fbgemm", 32)
    optimizer, labels = torch.optim.Adam(model.parameters(), lr=1e-3), torch.from_numpy(part().labels[:128])
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch(128)), labels).backward()
        optimizer.step()
    static.observe(model, False)
    held_out = part().images[part().held_out]
    simulated, integer = (
        evaluate.probabilities(m, held_out) for m in (model.eval(), static.convert(model.eval(), "fbgemm"))
    )
    assert np.abs(simulated - integer).max() < 0.1
    assert metrics.accuracy(part().labels[part().held_out], integer) > 0.8


@pytest.mark.parametrize("name", INT8)
def test_conversion_as_trained_keeps_the_weights_that_were_simulated(name):
    """Also says when a later torch does so by itself: then `as_trained` can go."""
    model = static.prepare_training(copy.deepcopy(trained()), name, 32)
    model(batch(32))
    static.observe(model.eval(), False)
    integers, moved, images = [static.convert(model, name, kept) for kept in (True, False)], [], part().images
    for path, layer in model.named_modules():
        if hasattr(layer, "weight_fake_quant"):
            with torch.no_grad():
                norm = getattr(layer, "bn", None)
                scale = norm.weight / (norm.running_var + norm.eps).sqrt() if norm else torch.ones(len(layer.weight))
                wanted = layer.weight_fake_quant(torch.einsum("o...,o->o...", layer.weight, scale))
            weights = [integer.model.get_submodule(path).weight().dequantize() for integer in integers]
            moved.append([float(((weight - wanted).abs() > 1e-6).double().mean()) for weight in weights])
    kept, anew = zip(*moved)
    assert len(moved) == 4 and max(kept) < 0.02  # folded in another order, batch norm may move a value past a half
    assert min(anew) > 0.5
    simulated, *converted = (evaluate.probabilities(m, images) for m in (model, *integers))
    near, far = (np.abs(probability - simulated).mean() for probability in converted)
    assert near < far
