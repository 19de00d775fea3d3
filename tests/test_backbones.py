"""Backbones at any size, and weights that are refused in one sentence."""

import re

import pytest
import torch
from safetensors.torch import save_file

from medq import backbones, params
from medq.errors import UserError


@pytest.mark.parametrize("name", list(params.backbones()))
@pytest.mark.parametrize("size", [32, 96])
def test_each_backbone_builds_and_runs_at_the_size_asked_for(name, size):
    if name == "vit_base" and size == 96:
        size = 48
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
    if name.endswith(".safetensors"):
        save_file(state, path)
    else:
        torch.save(state, path)
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
    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes((tmp_path / saved(tmp_path, model.state_dict())).read_bytes()[:10_000])
    return {
        "no such": str(tmp_path / "absent.pt"),
        "damaged": str(truncated),
        "pickled code": saved(tmp_path, Evil(), "evil.pt"),
        "state dict": saved(tmp_path, [1, 2], "list.pt"),
        "does not hold the weights of resnet18 with 5 classes": saved(tmp_path, model.state_dict(), "three.pt"),
        "unknown": saved(tmp_path, backbones.create("resnet50", 5, 32).state_dict(), "other.safetensors"),
    }


def test_wrong_weights_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for sentence, path in wrong_weights(tmp_path).items():
        with pytest.raises(UserError) as caught:
            backbones.create("resnet18", 5, 32, path)
        assert sentence in str(caught.value) and path in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_weights_from_a_hub_that_cannot_be_reached(monkeypatch):
    def fail(*_, pretrained, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(backbones._timm(), "create_model", fail)
    with pytest.raises(UserError, match="no route to host.*weights: none"):
        backbones.create("resnet18", 3, 32, "imagenet")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"timm": "resnet81"}, "has no model 'resnet81'; did you mean resnet18"),
        ({"timm": "?"}, "timm.list_models()"),
        ({"options": {"depth_of_everything": 3}}, "mend `options`"),
        ({"sized": True}, "mend `options`, `scratch` or `sized`"),
        ({"timm": "resnet18.nope"}, "has no weights 'nope' for resnet18: known are resnet18."),
        ({"options": {"checkpoint_path": "/nowhere"}}, "mend `options`"),
    ],
)
def test_an_entry_that_timm_cannot_build_is_refused_in_a_sentence(change, said, monkeypatch):
    entry = params.backbones()["resnet18"].model_copy(update=change)
    monkeypatch.setattr(params, "backbones", lambda: {"mine": entry})
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
    entry = params.backbones()["resnet18"].model_copy(update={"scratch": {}} | change)
    monkeypatch.setattr(params, "backbones", lambda: {"mine": entry})
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


def test_weights_that_are_no_numbers_and_text_are_refused(tmp_path):
    (tmp_path / "text.pt").write_text("not a checkpoint")
    save_file({"a": torch.tensor([1.0, float("nan")])}, tmp_path / "nan.safetensors")
    torch.save({"a": torch.tensor([1j])}, tmp_path / "complex.pt")
    for name in ("text.pt", "nan.safetensors", "complex.pt"):
        with pytest.raises(UserError, match=name):
            backbones.read_state(tmp_path / name)
