"""Each switch of a recipe really changes the model, and the ablation says what that does."""

import copy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fixtures.quantize import batch, cell, integer_model, observed, part, trained
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.nn import functional as F

from medq import ablation, params as profiles, results, tables
from medq.augment import normalise, unnormalised
from medq.quantize import stage, static
from medq.quantize.engines import ENGINES, Unsupported, engine

INT8 = ("fbgemm", "qnnpack")


def made(name, **switches):
    """(prepared, integer model) of the trained network for an engine."""
    prepared = observed(trained(), name, **switches)
    return prepared, static.convert(prepared, name)


def activation_observer(prepared):
    """The observer of the stem's output."""
    node = next(n for n in prepared.graph.nodes if n.target == "stem.2")
    return prepared.get_submodule(next(u for u in node.users if "activation_post_process" in str(u.target)).target)


# --- one test for each switch ---------------------------------------------------------------------


@pytest.mark.parametrize("name", INT8)
@pytest.mark.parametrize(
    "switch, value, found",
    [
        ("weights", "per-tensor", {torch.per_tensor_affine}),
        ("weights", "per-channel", {torch.per_channel_affine}),
        ("activations", "minmax", {"MinMaxObserver"}),
        ("activations", "moving-average", {"MovingAverageMinMaxObserver"}),
        ("activations", "histogram", {"HistogramObserver"}),
        ("activations", "percentile", {"PercentileObserver"}),
        ("reduce_range", True, {(0, 127)}),
        ("reduce_range", False, {(0, 255)}),
    ],
)
def test_observers_and_weights(name, switch, value, found):
    prepared, integer = made(name, **{switch: value})
    layers = [integer.model.get_submodule(path) for path in ("stem.0", "depthwise", "mix", "head")]
    observers = [activation_observer(prepared), prepared.get_submodule("activation_post_process_0")]  # and the images'
    assert (
        found
        == {
            "weights": {layer.weight().qscheme() for layer in layers},
            "activations": {type(observer).__name__ for observer in observers},
            "reduce_range": {(observer.quant_min, observer.quant_max) for observer in observers},
        }[switch]
    )


@pytest.mark.parametrize("relu", [False, True])
def test_percentiles_leave_out_the_tails_alone(relu):
    torch.manual_seed(0)
    values = torch.randn(200_000)
    values = values.relu() if relu else values
    values[0] = 100.0  # one outlier, which a min-max range would follow
    observer = static.PercentileObserver(dtype=torch.quint8)
    for chunk in values.split(50_000):
        observer(chunk)
    scale, zero = observer.calculate_qparams()
    low, high = float(-zero * scale), float((255 - zero) * scale)
    expected = np.quantile(values.numpy(), [static.TAIL, 1 - static.TAIL])
    width = 100 / observer.bins * 2  # the outlier stretches the histogram's bins
    assert low == pytest.approx(min(0, expected[0]), abs=2 * width)
    assert high == pytest.approx(expected[1], abs=2 * width) and high < 5


def test_batch_norm():
    def left(kind):
        model = made("fbgemm", batch_norm=kind)[1].model
        return [n for n in model.graph.nodes if n.target is F.batch_norm], model

    (traced, _), (fused, model), (unfused, _) = (left(kind) for kind in ("traced", "fused", "unfused"))
    assert (len(traced), len(fused), len(unfused)) == (1, 0, 2)  # one plain BatchNorm2d, one of timm's BatchNormAct2d
    assert all(node.kwargs.get("training", node.args[5] if len(node.args) > 5 else None) is False for node in unfused)
    assert not any("BatchNorm" in type(module).__name__ for module in model.modules())
    assert not any("running_mean" in key for key in model.state_dict())


@pytest.mark.parametrize("name", INT8)
def test_relu6_in_its_layer_s_range_is_right_in_integers_and_alone(name):
    """Behind a layer it fuses and saturates; behind a sum, or shared with one, it stays an operator of its own."""
    x, recipe, given = batch(), profiles.recipes()["relu6-in-range"], []
    prepared = observed(trained(), name, recipe)
    with torch.inference_mode():
        assert torch.allclose(prepared(x), trained()(x), atol=1e-4)  # calibrated with ReLU6, not with ReLU
        integer, simulated = static.convert(prepared, name), static.simulate(prepared)
        assert not any(isinstance(module, nn.ReLU6) for module in integer.model.modules())
        stem = integer.model.get_submodule("stem.0")
        stem.register_forward_hook(lambda *seen: given.append(seen[-1].dequantize()))
        assert (integer(x).softmax(1) - simulated(x).softmax(1)).abs().max() < 0.02
    assert given[0].max() <= (255 - stem.zero_point) * stem.scale + 1e-6 <= 6 + 1e-5

    behind_a_sum = copy.deepcopy(trained())
    behind_a_sum.relu = nn.ReLU6()
    shared = copy.deepcopy(behind_a_sum)
    shared.stem[2] = shared.relu
    for model, left in ((behind_a_sum, 1), (shared, 2)):
        nodes = observed(model, name, recipe).graph.nodes
        assert sum(str(node.target) in ("relu", "stem.2") for node in nodes) == left


def test_inputs_alone_round_what_layers_read_and_nothing_else():
    """Against the folded network written out by hand, with ranges between the least and greatest value."""
    model, x, ranges = copy.deepcopy(trained()), batch(), {}
    recipe = profiles.recipes()["inputs-alone-best"].model_copy(update={"activations": "minmax"})
    prepared = observed(model, "fbgemm", recipe)
    for module in (model.stem[0], model.depthwise, model.mix, model.head):
        module.register_forward_pre_hook(lambda module, given: ranges.update({module: given[0].aminmax()}))

    def layer(module, norm, value):
        low, high = ranges[module]
        low = low.clamp(max=0)
        scale = (high - low) / 255
        value = ((value / scale).round() - (low / scale).round()).clamp(0, 255) + (low / scale).round()
        weight, bias = module.weight, torch.zeros(len(module.weight)) if module.bias is None else module.bias
        if norm is not None:
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            weight, bias = weight * factor.reshape(-1, 1, 1, 1), norm.bias + (bias - norm.running_mean) * factor
        step, zeros = weight.flatten(1).abs().amax(1) / 127.5, torch.zeros(len(weight), dtype=torch.int32)
        return value * scale, torch.fake_quantize_per_channel_affine(weight, step, zeros, 0, -128, 127), bias

    with torch.inference_mode():
        exact = model(x)
        y = F.relu6(F.conv2d(*layer(model.stem[0], model.stem[1], x), 2, 1))
        z = F.relu(F.conv2d(*layer(model.depthwise, model.norm, y), 1, 1, 1, 16))
        y = F.relu(y + F.conv2d(*layer(model.mix, None, z)))
        expected = F.linear(*layer(model.head, None, y.mean((2, 3))))
        simulated = static.simulate(prepared)(x)
    apart, lost = ((simulated - other).abs().amax(1) for other in (expected, exact))
    # Sums in another order put a value on the other side of a step now and then, in one image.
    assert (apart < 1e-4).float().mean() > 0.5 and apart.mean() < 0.1 * lost.mean() and lost.mean() > 0.01
    with pytest.raises(Unsupported, match="no engine has kernels"):
        static.convert(prepared, "fbgemm")


def test_training_mode_makes_predictions_depend_on_the_batch_s_classes():
    """Held-out images sorted by class give batches of one class, whose own mean takes away what tells it apart."""
    simulation = static.simulate(made("qnnpack", training_mode=True, batch_norm="unfused")[0])
    rows = pd.DataFrame(ablation.batch_composition(simulation, part(), seed=0, batch_sizes=(24,))).set_index("order")
    assert rows.loc["by class", "auprc"] < rows.loc["shuffled", "auprc"] - 0.1
    assert rows.loc["by class", "brier"] > rows.loc["shuffled", "brier"] + 0.3
    sound = ablation.batch_composition(static.simulate(made("qnnpack")[0]), part(), seed=0, batch_sizes=(24, 8))
    for name in ablation.SCORES:
        assert np.ptp([row[name] for row in sound]) < 1e-6


def test_images_that_are_not_normalised():
    rows = np.arange(32)
    right, wrong = (next(stage.calibration_batches(part(), rows, prepare)) for prepare in (normalise, unnormalised))
    assert 0 <= wrong.min() and wrong.max() <= 1 and right.min() < -1


# --- recipes as data ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENGINES)
def test_the_default_recipe_is_what_pytorch_gives(name):
    x = batch()
    with torch.inference_mode(), engine(name):
        prepared = prepare_fx(copy.deepcopy(trained()), get_default_qconfig_mapping(name), (x,))
        prepared(x)
        assert torch.equal(integer_model(trained(), name, batches=[x])(x), convert_fx(prepared)(x))


def test_settings_alone_decide_not_the_engine_that_prepares():
    settings = static.resolved(stage.DEFAULT, "qnnpack")
    with torch.inference_mode():
        a, b = (static.simulate(observed(trained(), name, settings))(batch()) for name in INT8)
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", [name for name in profiles.recipes() if name != "default"])
def test_every_recipe_changes_what_an_engine_gives(name):
    recipes = profiles.recipes()

    def key(recipe, engine):
        return static.resolved(recipe, engine).model_copy(update={"title": ""})

    assert any(key(recipes[name], engine) != key(recipes["default"], engine) for engine in INT8)


def test_each_switch_stands_alone_in_one_recipe():
    default = profiles.recipes()["default"].model_dump(exclude={"title"})
    single = {
        next(iter(changed))
        for recipe in profiles.recipes().values()
        if len(changed := {k for k, v in recipe.model_dump(exclude={"title"}).items() if v != default[k]}) == 1
    }
    assert single == set(default)


# --- the stage ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured():
    names = ["weights-per-tensor", "batch-norm-unfused", "batch-statistics", "training-mode", "other-engine"]
    params, here = cell(study={"recipes": names})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "float_model", lambda *_: trained())
        return ablation.measure(params, here, part())


def test_the_tables_have_every_recipe_engine_form_and_order(measured):
    table, orders = measured[0]["ablation.csv"], measured[0]["composition.csv"]
    assert set(orders["order"]) == {"by class", "shuffled"} and len(orders) == 4
    assert list(table.columns) and set(table.columns) == set(results.SCHEMA["ablation.csv"])
    assert len(table) == 5 * 2 * 2 and not table.duplicated(["recipe", "engine", "form"]).any()
    assert list(table["recipe"].unique())[0] == "default" and list(table["engine"].unique()) == list(INT8)
    other = table[table["recipe"] == "other-engine"]
    assert (other["run_engine"] != other["engine"]).all()
    assert measured[1]["reason"].count("training-mode") == 2 and "training-mode" not in set(table["recipe"])


def test_recipes_that_come_to_the_same_score_the_same(measured):
    table = measured[0]["ablation.csv"].set_index(["engine", "recipe", "form"])[list(ablation.SCORES)]
    for stage_name in ("converted", "fake-quant"):  # qnnpack's weights are per-tensor anyway
        default, same = (table.loc["qnnpack", name, stage_name] for name in ("default", "weights-per-tensor"))
        assert (default == same).all()
    assert (table.loc["fbgemm", "default", "fake-quant"] == table.loc["fbgemm", "other-engine", "fake-quant"]).all()


def test_the_smallest_change_that_collapses_the_model_is_named(measured):
    chosen = "form == 'converted' and engine == 'fbgemm' and run_engine == 'fbgemm'"
    table = measured[0]["ablation.csv"].query(chosen).copy()
    assert (tables.smallest_change(SimpleNamespace(ablation=table))["recipe"] == "none").all()
    fell = table["recipe"].isin(["batch-norm-unfused", "weights-per-tensor"])
    table.loc[fell, "auprc"] -= [tables.COLLAPSE + 0.05, tables.COLLAPSE + 0.2]
    worst = table.loc[fell, ["recipe", "auprc"]].sort_values("auprc").iloc[0]
    answer = tables.smallest_change(SimpleNamespace(ablation=table)).iloc[0]
    assert (answer["recipe"], answer["n_changes"]) == (worst["recipe"], 1)
    assert answer["auprc"] == worst["auprc"] and answer["tried"] == 3


def test_what_an_engine_refuses_is_left_out_with_its_reason(monkeypatch):
    params, here = cell(study={"recipes": []})
    right = ablation.converted

    def refusing(prepared, run_engine):
        if run_engine == "qnnpack":
            raise Unsupported("no such kernel")
        return right(prepared, run_engine)

    monkeypatch.setattr(ablation, "float_model", lambda *_: trained())
    monkeypatch.setattr(ablation, "converted", refusing)
    written, facts = ablation.measure(params, here, part())
    table = written["ablation.csv"]
    assert facts == {"reason": "default for qnnpack: no such kernel"}
    assert list(zip(table["engine"], table["form"])) == [
        ("fbgemm", "fake-quant"),
        ("fbgemm", "converted"),
        ("qnnpack", "fake-quant"),
    ]
