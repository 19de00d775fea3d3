"""Remedies without retraining: each does what it says, and the table holds what was measured."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from fixtures.quantize import batch, cell, defective, integer_model, part, trained
from torch import nn

from medq import remedies, results
from medq.params import Recipe
from medq.quantize import kernels
from medq.quantize.engines import Unsupported

INT8 = ("fbgemm", "qnnpack")


# --- temperature ----------------------------------------------------------------------------------


def test_temperature_is_the_minimum_on_a_fine_grid():
    torch.manual_seed(0)
    logits, labels = 4 * torch.randn(200, 3), torch.randint(0, 3, (200,))
    grid = np.geomspace(0.05, 20, 4001)
    losses = [float(nn.functional.cross_entropy(logits.double() / t, labels)) for t in grid]
    fitted = remedies.fit_temperature(logits, labels)
    assert float(nn.functional.cross_entropy(logits.double() / fitted, labels)) <= min(losses) + 1e-7


def test_temperature_stays_within_bounds_and_refuses_what_is_not_finite():
    logits, labels = torch.eye(3) / 2, torch.arange(3)
    assert remedies.fit_temperature(logits, labels) == pytest.approx(1 / 20, rel=0.01)  # all right: ever surer
    assert remedies.fit_temperature(logits, labels.flip(0).roll(1)) == pytest.approx(20, rel=0.01)
    with pytest.raises(ValueError, match="not finite"):
        remedies.fit_temperature(torch.tensor([[np.nan, 0.0]]), torch.tensor([0]))


def test_each_half_of_the_held_out_images_has_the_temperature_of_the_other():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 2, (400, 3)), rng.integers(0, 3, 400)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    parts = np.arange(400) % 2 == 0, np.arange(400) % 2 == 1
    scaled, temperatures = remedies.tempered(p, labels, parts)
    assert (scaled.argsort(1) == p.argsort(1)).all() and scaled.sum(1) == pytest.approx(np.ones(400), abs=1e-5)
    for half, temperature in zip(parts, temperatures):
        assert temperature == pytest.approx(remedies.fit_temperature(logits[~half], labels[~half]), rel=1e-3)
        wanted = np.exp(logits[half] / temperature)
        np.testing.assert_allclose(scaled[half], wanted / wanted.sum(1, keepdims=True), atol=1e-4)
    changed = labels.copy()
    changed[parts[0]] = rng.integers(0, 3, 200)
    assert (remedies.tempered(p, changed, parts)[0][parts[0]] == scaled[parts[0]]).all()  # own labels play no part


def test_halves_hold_every_class_and_whole_groups_and_no_training_image():
    whole = part()
    group = np.array([f"g{i // 8}" for i in range(len(whole.labels))])
    for given in (whole, dataclasses.replace(whole, group=group)):
        one, other = remedies.halves(given, 42)
        assert (one ^ other).all() and 0.3 < one.mean() < 0.7
        assert set(whole.labels[whole.held_out][one]) == set(whole.labels[whole.held_out][other]) == {0, 1, 2, 3}
    groups = group[whole.held_out]
    assert not set(groups[one]) & set(groups[other])
    with pytest.raises(ValueError, match="cannot be divided"):
        remedies.halves(dataclasses.replace(whole, group=np.full(len(group), "one")), 42)


# --- bias correction ------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [2, 4])
@pytest.mark.parametrize("name", INT8)
def test_bias_correction_takes_the_mean_error_away(name, layers):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *(nn.Conv2d(8, 8, 3, bias=False) for _ in range(layers - 1))).eval()
    model[0].weight.data[0] *= 40  # one wide channel makes a single scale too coarse for the others
    recipe = Recipe(title="", weights="per-tensor")
    before = integer_model(model, name, recipe)
    after = remedies.bias_corrected(model, integer_model(model, name, recipe), [batch(16), batch(16)])
    with torch.inference_mode():
        exact = model(batch(16))
        errors = [(q(batch(16)) - exact).mean((0, 2, 3)).abs() for q in (before, after)]
    step = after.model.get_submodule(str(layers - 1)).scale
    assert errors[1].max() < errors[0].max() / 3 and errors[1].max() < step
    integers = [q.model.get_submodule("1").weight().int_repr() for q in (before, after)]
    assert torch.equal(*integers)


@pytest.mark.parametrize("name", INT8)
def test_bias_correction_aims_at_the_means_of_relu6_where_integers_saturate_in_its_place(name):
    """The second layer's mean error against the float network, whose ReLU6 clips most of its inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3)).eval()
    model[1].weight.data.fill_(30)
    before = integer_model(model, name, remedies.IN_RANGE)
    after = remedies.bias_corrected(model, integer_model(model, name, remedies.IN_RANGE), [batch(16)], "fused")
    with torch.inference_mode():
        exact = model(batch(16))
        errors = [(q(batch(16)) - exact).mean((0, 2, 3)).abs().max() for q in (before, after)]
        assert (model[:3](batch(16)) == 6).double().mean() > 0.2
    assert errors[1] < errors[0] and errors[1] < after.model.get_submodule("3").scale


# --- cross-layer equalization ---------------------------------------------------------------------


class Unbalanced(nn.Module):
    """Convolution, depthwise convolution and convolution whose channels differ a thousandfold in range."""

    def __init__(self, activation):
        super().__init__()
        self.a, self.norm, self.act = nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16), activation
        self.b, self.c = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 8, 1)
        with torch.no_grad():
            spread = torch.logspace(-1.5, 1.5, 16)
            self.norm.weight.mul_(spread)
            self.b.weight.div_(spread.view(-1, 1, 1, 1))

    def forward(self, x):
        return self.c(self.b(self.act(self.norm(self.a(x)))))


def test_equalization_keeps_the_function_and_balances_the_ranges():
    torch.manual_seed(0)
    model = Unbalanced(nn.ReLU()).eval()
    balanced = remedies.equalized(model)
    with torch.inference_mode():
        assert torch.allclose(balanced(batch(4)), model(batch(4)), atol=1e-4, rtol=1e-3)

    def spread(weight):
        ranges = weight.detach().abs().flatten(1).amax(1)
        return float(ranges.max() / ranges.min())

    assert spread(model.b.weight) > 100
    assert spread(balanced.get_submodule("b").weight) < 30
    assert spread(balanced.get_submodule("a")[0].weight) < 30


def test_equalization_rescues_one_scale_for_all_channels():
    torch.manual_seed(0)
    model, recipe = Unbalanced(nn.ReLU()).eval(), Recipe(title="", weights="per-tensor", batch_norm="fused")
    with torch.inference_mode():
        exact = model(batch())
        plain, balanced = (
            kernels.sqnr_db(exact, integer_model(m, "qnnpack", recipe)(batch()) - exact)
            for m in (model, remedies.equalized(model))
        )
    assert balanced > plain + 6


def test_equalization_replaces_relu6_only_between_the_layers_it_balances():
    balanced = remedies.equalized(Unbalanced(nn.ReLU6()).eval())
    assert not any(isinstance(module, nn.ReLU6) for module in balanced.modules())
    assert any(isinstance(module, nn.ReLU6) for module in trained().modules())  # the model itself stays as it was


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Conv2d(4, 4, 1)),
        nn.Sequential(nn.Conv2d(3, 4, 1)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2)),
    ],
)
def test_equalization_says_where_it_does_not_apply(net):
    with pytest.raises(ValueError, match="no two weighted layers"):
        remedies.equalized(net.eval())


# --- the stage ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=INT8)
def measured(request):
    params, here = cell(f"ptq-{request.param}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remedies, "float_model", lambda *_: copy.deepcopy(trained()))
        return request.param, *remedies.measure(params, here, part())


def test_the_table_has_every_remedy_and_both_references(measured):
    name, written, facts = measured
    table = written["remedies.csv"].set_index("remedy")
    assert set(written["remedies.csv"].columns) == set(results.SCHEMA["remedies.csv"])
    wanted = {*"fp32 fp32-temperature none temperature bias-correction better-recipe combined".split()}
    wanted |= {"relu6-in-range", "relu6-in-range-corrected"}  # the network has a ReLU6
    wanted |= {f"worst-{k}-in-fp32" for k in remedies.KEPT} | ({"mended"} if name == "qnnpack" else set())
    assert wanted <= set(table.index) <= wanted | {"cross-layer-equalization"}
    assert table[[*remedies.SCORES, "p50_ms"]].notna().all().all() and (table["p50_ms"] > 0).all()
    assert table.loc["temperature", "auprc"] == pytest.approx(table.loc["none", "auprc"], abs=0.02)
    assert "reason" not in facts or "cross-layer-equalization" in facts["reason"]
    if name == "qnnpack" and defective():  # the remedy for a defect is to mend it
        fp32, none, mended = table.loc[["fp32", "none", "mended"], "brier"]
        assert none - fp32 > 0.1 and none - mended > 0.9 * (none - fp32)


def test_what_is_refused_has_no_row(monkeypatch):
    params, here = cell()

    def makers(*_):
        def refused(made):
            raise Unsupported("no such kernel")

        return {"none": lambda made: integer_model(trained(), "fbgemm"), "better-recipe": refused}

    monkeypatch.setattr(remedies, "float_model", lambda *_: copy.deepcopy(trained()))
    monkeypatch.setattr(remedies, "_cnn", makers)
    written, facts = remedies.measure(params, here, part())
    assert list(written["remedies.csv"]["remedy"]) == ["fp32", "fp32-temperature", "none", "temperature"]
    assert facts["reason"] == "better-recipe: no such kernel"
    assert facts["temperatures"].keys() == {"fp32-temperature", "temperature"}
