"""Per-layer diagnosis against what a few lines of torch say about the same layers."""

import numpy as np
import pytest
import torch
from fixtures.quantize import BatchNormAct2d, batch, cell, defective, integer_model, part, trained
from torch import nn

from medq import artefacts, diagnosis, finetune, results
from medq.quantize import dynamic, kernels, stage

INT8 = ("fbgemm", "qnnpack")


def outputs(model, paths, x):
    """{path: output} of modules during one forward pass."""
    found = {}
    with torch.inference_mode():
        kernels.run_watched(model, paths, x, lambda path, _, output: found.setdefault(path, output))
    return found


@pytest.mark.parametrize("name", INT8)
@pytest.mark.parametrize("kind", ["traced", "fused", "unfused"])
def test_signal_to_noise_of_each_layer(name, kind):
    """The float outputs come from the network as it was trained, batch norm and all."""
    quantized, x = integer_model(trained(), name, batch_norm=kind), batch()
    table = diagnosis.layers(trained(), quantized, x).set_index("layer")
    twins = {"stem.0": "stem.0" if kind == "unfused" else "stem.1", "mix": "mix", "pool": "pool", "head": "head"}
    with kernels.engine(name):
        integer = outputs(quantized.model, twins, x)
    exact = outputs(trained(), twins.values(), x)
    for path, twin in twins.items():
        signal, got = exact[twin], integer[path].dequantize()
        wanted = 10 * np.log10(float((signal**2).sum() / ((got - signal) ** 2).sum()))
        assert table.loc[path, "sqnr_db"] == pytest.approx(wanted, abs=0.02)
    assert "depthwise" in table.index
    assert {"add_relu"} <= set(table["operator"]) and not {"Identity"} & set(table["operator"])


def test_saturation_is_the_share_of_values_off_the_grid():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1)).eval()
    quantized = integer_model(model, "qnnpack", batches=[batch(8)], activations="minmax")
    conv = quantized.model.get_submodule("0")
    x = 3 * batch(8)  # wider than what the observers saw
    with torch.inference_mode():
        exact = model(x)
    low, high = (conv.scale * (end - conv.zero_point) for end in (0, 255))
    wanted = float(((exact < low - conv.scale / 2) | (exact > high + conv.scale / 2)).float().mean())
    row = diagnosis.layers(model, quantized, x).iloc[0]
    assert row["saturation"] == pytest.approx(wanted, abs=1e-6) and wanted > 0.05
    assert diagnosis.layers(model, quantized, batch(8)).iloc[0]["saturation"] < 0.01


def test_channel_range_ratio():
    values = torch.zeros(2, 3, 2, 2)
    values[0, 0, 0, 0], values[1, 0, 1, 1], values[0, 1] = 8.0, -2.0, 0.5  # ranges 10, 0.5 (with zero in it), 0
    assert diagnosis.channel_range_ratio(values) == pytest.approx(10 / 0.5)
    assert np.isnan(diagnosis.channel_range_ratio(torch.zeros(2, 3, 2)))


def test_weight_range_ratio():
    weight = torch.tensor([[1.0, -1.0], [0.5, 0.25], [0.0, 0.0]])
    assert diagnosis.weight_range_ratio(weight) == pytest.approx(2.0 / 0.5)  # ranges 2, 0.5 (with zero in it), none
    assert np.isnan(diagnosis.weight_range_ratio(torch.zeros(2, 2)))
    table = diagnosis.layers(trained(), integer_model(trained(), "fbgemm"), batch(4)).set_index("layer")
    flat = trained().mix.weight.detach().flatten(1)
    ranges = flat.amax(1).clamp_min(0) - flat.amin(1).clamp_max(0)
    assert table.loc["mix", "weight_range_ratio"] == pytest.approx(float(ranges.max() / ranges.min()))
    assert np.isnan(table.loc["pool", "weight_range_ratio"])


def test_channels_before_and_after_a_batch_norm_that_is_not_folded():
    """Batch norm gives all channels, of which one is far wider than the others, about the same range."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), BatchNormAct2d(8), nn.Conv2d(8, 4, 1)).eval()
    model[0].weight.data[3] *= 100
    with torch.inference_mode():
        out = model[0](batch(8)).transpose(0, 1).flatten(1)
        model[1].running_mean.copy_(out.mean(1)), model[1].running_var.copy_(out.var(1))
        normed = ((out - out.mean(1, keepdim=True)) / out.std(1, keepdim=True)).clone()
    table = diagnosis.layers(model, integer_model(model, "fbgemm", batch_norm="traced"), batch(8)).set_index("layer")
    for column, values in (("channel_range_ratio", out), ("normed_range_ratio", normed)):
        ranges = values.amax(1).clamp_min(0) - values.amin(1).clamp_max(0)
        assert table.loc["0", column] == pytest.approx(float(ranges.max() / ranges.median()), rel=0.02)
    assert table.loc["0", "channel_range_ratio"] > 2 * table.loc["0", "normed_range_ratio"]
    folded = diagnosis.layers(model, integer_model(model, "fbgemm", batch_norm="fused"), batch(8))
    assert folded["normed_range_ratio"].isna().all()


def test_kernels_are_joined_and_the_worst_layers_named():
    table = diagnosis.layers(trained(), integer_model(trained(), "qnnpack"), batch())
    relu6 = table[table["operator"] == "ReLU6"].iloc[0]
    assert (relu6["kernel_max_steps"] > 10) == defective()
    assert table["kernel_max_steps"].notna().all()
    worst = diagnosis.worst(table)
    assert len(worst) == 3 and worst["sqnr_db"].is_monotonic_increasing
    assert worst["sqnr_db"].max() <= table.drop(table["sqnr_db"].nsmallest(3).index)["sqnr_db"].min()
    assert set(diagnosis.worst(table, 9, ("Conv2d", "Linear"))["layer"]) == {"stem.0", "depthwise", "mix", "head"}


def test_without_a_float_model_the_twin_has_the_integer_weights():
    quantized = integer_model(trained(), "fbgemm")
    with_weights = diagnosis.layers(trained(), quantized, batch()).set_index("layer")["sqnr_db"]
    without = diagnosis.layers(None, quantized, batch()).set_index("layer")["sqnr_db"]
    assert list(with_weights.index) == list(without.index)
    assert without["stem.0"] > with_weights["stem.0"]  # the weights' share of the noise is gone


def test_a_module_that_is_called_twice_has_two_rows():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x))

    torch.manual_seed(0)
    model = Twice().eval()
    table = diagnosis.layers(model, integer_model(model, "fbgemm"), batch(4))
    assert list(table["layer"]) == ["conv", "conv"] and table["kernel_sqnr_db"].notna().all()


@pytest.mark.parametrize("name", INT8)
def test_dynamic_layers(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.GELU(), nn.Linear(32, 4)).eval()
    x = torch.randn(8, 3, 8, 8)
    quantized = dynamic.convert(model, name)
    table = diagnosis.layers(model, quantized, x).set_index("layer")
    with torch.inference_mode():
        exact, got = model(x), quantized(x)
    assert table.loc["3", "sqnr_db"] == pytest.approx(kernels.sqnr_db(exact, got - exact), abs=0.02)
    assert table["saturation"].isna().all() and table["kernel_sqnr_db"].notna().all()
    assert diagnosis.layers(None, quantized, x)["sqnr_db"].isna().all()


def test_the_stage_writes_the_tidy_table(alone, monkeypatch):
    params, here = cell("ptq-qnnpack")
    monkeypatch.setattr(diagnosis, "float_model", lambda *_: trained())
    folder = diagnosis.run(params, here)
    table = diagnosis.pd.read_csv(folder / "layers.csv")
    assert list(table.columns) == results.SCHEMA["layers.csv"]
    assert set(table["regime"]) == {"ptq-qnnpack"} and artefacts.is_finished(folder)
