"""Backbones at any size, and weights that are refused in one sentence."""

import hashlib
import math
import re

import pytest
import torch
from safetensors.torch import save_file

from medq import backbones, params
from medq.errors import UserError


@pytest.mark.parametrize(
    "name, size", [*((name, 32) for name in params.backbones()), ("swin_tiny", 96), ("vit_base", 48)]
)
def test_each_backbone_builds_and_runs_at_the_size_asked_for(name, size):
    """Convolutional ones take any size; the transformers are built for theirs."""
    model = backbones.create(name, 3, size).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 3)


@pytest.mark.parametrize("name", ["mobilenetv2", "resnet18"])
def test_a_fresh_head_starts_near_chance(name):
    torch.manual_seed(0)
    model = backbones.create(name, 4, 32).train()
    loss = torch.nn.functional.cross_entropy(model(torch.randn(16, 3, 32, 32)), torch.randint(0, 4, (16,)))
    assert loss < 2.5  # log 4 is 1.39; timm's own head gives about 19


def saved(tmp_path, state, name="weights.pt"):
    path = tmp_path / name
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return str(path)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_state_dict_is_loaded(tmp_path, name):
    model = backbones.create("resnet18", 3, 32)
    again = backbones.create("resnet18", 3, 32, saved(tmp_path, model.state_dict(), name))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


class Evil:
    """Runs code when unpickled."""

    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('executed').touch()",))


def wrong_weights(tmp_path):
    model = backbones.create("resnet18", 3, 32)
    state, weight, bn = model.state_dict(), model.conv1.weight.detach(), model.bn1.weight.detach()
    without = {key: value for key, value in state.items() if key != "layer1.0.bn1.bias"}
    quantized = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)

    def with_bn1(value, name):
        return saved(tmp_path, state | {"bn1.weight": value}, name)

    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes((tmp_path / saved(tmp_path, model.state_dict())).read_bytes()[:10_000])
    (tmp_path / "text.pt").write_text("not a checkpoint")
    return {
        "save `model.state_dict()` alone": str(tmp_path / "text.pt"),
        "no such": str(tmp_path / "absent.pt"),
        "damaged": str(truncated),
        "pickled code": saved(tmp_path, Evil(), "evil.pt"),
        "state dict": saved(tmp_path, [1, 2], "list.pt"),
        "'fc.weight' is of shape (3, 64)": saved(tmp_path, state | {"fc.weight": torch.zeros(3, 64)}, "head.pt"),
        "'layer1.0.bn1.bias' is absent": saved(tmp_path, without, "part.safetensors"),
        "'conv1.weight' is quantized": saved(tmp_path, state | {"conv1.weight": quantized}, "int8.pt"),
        "'conv1.weight' is a meta tensor": saved(tmp_path, state | {"conv1.weight": weight.to("meta")}, "meta.pt"),
        "'conv1.weight' is sparse": saved(tmp_path, state | {"conv1.weight": weight.to_sparse()}, "sparse.pt"),
        "'bn1.weight' is quantized": with_bn1(bn.to(torch.float8_e4m3fn), "fp8.safetensors"),
        "'bn1.weight' holds whole numbers": with_bn1(bn.to(torch.int8), "int.pt"),
        "'bn1.weight' is nested": with_bn1(torch.nested.nested_tensor([bn]), "nested.pt"),
        "'bn1.weight' holds numbers": with_bn1(bn * math.nan, "nan.safetensors"),
        "'bn1.weight' holds numbers that": with_bn1(bn * 1j, "complex.pt"),
        "unknown": saved(tmp_path, backbones.create("resnet50", 5, 32).state_dict(), "other.safetensors"),
    }


def test_wrong_weights_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for sentence, path in wrong_weights(tmp_path).items():
        with pytest.raises(UserError) as caught:
            backbones.create("resnet18", 5, 32, path)
        assert sentence in str(caught.value) and path in str(caught.value)
    assert not (tmp_path / "executed").exists()


def folder_of(tmp_path, *names, n_classes=7, size=32):
    """A folder of weights under timm's names, and what was put there."""
    models = {name: backbones.create(name, n_classes, size) for name in names}
    for name, model in models.items():
        save_file(model.state_dict(), tmp_path / f"{params.backbones()[name].timm}.safetensors")
    return str(tmp_path), models


def test_a_folder_gives_each_backbone_its_own_file_and_a_fresh_head(tmp_path):
    folder, models = folder_of(tmp_path, "resnet18", "mobilenetv2")
    for name, head in (("resnet18", "fc"), ("mobilenetv2", "classifier")):
        given, model = models[name].state_dict(), backbones.create(name, 5, 32, folder)
        other = [key for key, value in model.state_dict().items() if not torch.equal(value, given.get(key, value + 1))]
        assert other == [f"{head}.weight", f"{head}.bias"] == model.loaded["replaced"]
        file = tmp_path / model.loaded["file"]
        assert model.loaded["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        same = backbones.create(name, 7, 32, folder)
        assert same.loaded["replaced"] == [] and torch.equal(same.state_dict()[f"{head}.bias"], given[f"{head}.bias"])
        with pytest.raises(UserError, match=f"{file.name}.*{head}.weight"):
            backbones.create(name, 5, 32, folder, trained=True)
    with pytest.raises(UserError, match="resnet50.*resnet50.safetensors"):
        backbones.create("resnet50", 5, 32, folder)


@pytest.mark.parametrize(
    "name, entry",
    [
        pytest.param("vit_base", "pos_embed", marks=pytest.mark.slow),
        ("swin_tiny", "layers.2.blocks.0.attn.relative_position_bias_table"),
    ],
)
def test_positions_are_resampled_as_timm_does_it(tmp_path, name, entry):
    folder, models = folder_of(tmp_path, name, n_classes=3, size=64)
    model = backbones.create(name, 3, 96, folder)
    spec, file = params.backbones()[name], str(tmp_path / model.loaded["file"])
    expected = backbones._timm().create_model(
        spec.timm, pretrained=True, pretrained_cfg_overlay={"file": file, "num_classes": 3}, num_classes=3, img_size=96
    )
    for key, value in expected.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    assert entry in model.loaded["resampled"] and model.loaded["replaced"] == []
    assert model.state_dict()[entry].shape != models[name].state_dict()[entry].shape


def test_weights_from_a_hub_that_cannot_be_reached(monkeypatch):
    def fail(*_, pretrained, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(backbones._timm(), "create_model", fail)
    with pytest.raises(UserError, match="no route to host.*weights: none"):
        backbones.create("resnet18", 3, 32, "imagenet")


def mine(monkeypatch, **changes):
    """A catalogue whose one backbone, `mine`, is a changed ResNet-18."""
    entry = params.backbones()["resnet18"].model_copy(update=changes)
    monkeypatch.setattr(params, "backbones", lambda: {"mine": entry})


@pytest.mark.parametrize(
    "change, said",
    [
        ({"timm": "resnet81"}, "has no model 'resnet81'; did you mean resnet18"),
        ({"timm": "?"}, "timm.list_models()"),
        ({"options": {"depth_of_everything": 3}}, "correct `options`"),
        ({"sized": True}, "correct `options`, `scratch` or `sized`"),
        ({"timm": "resnet18.nope"}, "has no weights 'nope' for resnet18: known are resnet18."),
        ({"options": {"checkpoint_path": "/nowhere"}}, "correct `options`"),
    ],
)
def test_an_entry_that_timm_cannot_build_is_refused_in_a_sentence(change, said, monkeypatch):
    mine(monkeypatch, **change)
    with pytest.raises(UserError, match=re.escape(said)) as error:
        backbones.create("mine", 3, 32)
    assert str(error.value).startswith("backbones.yaml: mine") and "\n" not in str(error.value)


def test_models_are_known_without_importing_timm():
    assert backbones.registered() == {*backbones._timm().list_models()}
    assert {spec.timm for spec in params.backbones().values()} <= backbones.registered()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"timm": "vit_tiny_patch16_224"}, "doesn't match model (224)); set `sized: true`"),
        ({"options": {"in_chans": 1}}, "RuntimeError"),
        ({"options": {"features_only": True}}, "gives a list"),
        ({"options": {"global_pool": ""}}, "mat1 and mat2"),
    ],
)
def test_a_model_that_does_not_take_the_images_is_refused_in_a_sentence(change, said, monkeypatch):
    mine(monkeypatch, **{"scratch": {}} | change)
    model = backbones.create("mine", 3, 32).train()
    with pytest.raises(UserError, match=re.escape(said)) as error:
        backbones.check_images(model, "mine", 3, 32)
    assert str(error.value).startswith("backbones.yaml: mine") and "\n" not in str(error.value) and model.training


def test_looking_at_a_model_changes_nothing():
    torch.manual_seed(0)
    model = backbones.create("mobilenetv2", 3, 32)
    before, drawn = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    backbones.check_images(model, "mobilenetv2", 3, 32)
    with pytest.raises(UserError, match=re.escape("gives (2, 3))")):
        backbones.check_images(model, "mobilenetv2", 4, 32)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state()) and model.training
