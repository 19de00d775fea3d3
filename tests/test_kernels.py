"""Do the engines' integer kernels compute what floating point says? Reproductions, a sweep, and the check itself."""

import numpy as np
import pytest
import torch
from fixtures.quantize import Functional, batch, defective, integer_model, observed, relu6, trained
from torch import nn
from torch.ao.nn import quantized as nnq
from torch.nn import functional as F

from medq import backbones, diagnosis
from medq.quantize import agreement, dynamic, kernels, mended, static, sweep
from medq.quantize.engines import Quantized
from medq.quantize.stage import DEFAULT

ENGINES = [name for name in torch.backends.quantized.supported_engines if name != "none"]
CLAMPS = {"relu6", "hardtanh", "clamp"}
# What is known to disagree with floating point: (engine, layout or None, range or None) -> operators.
KNOWN = {
    ("qnnpack", "channels-last", None): CLAMPS,
    ("qnnpack", None, None): {"average pool 3x3, edges without padding"},
    ("fbgemm", None, "full"): set(sweep.WEIGHTED),
    ("x86", None, "full"): set(sweep.WEIGHTED),
    ("onednn", None, "full"): set(sweep.WEIGHTED),
}


def known(row):
    return any(
        row.engine == name and layout in (None, row.layout) and used in (None, row.range) and row.operator in operators
        for (name, layout, used), operators in KNOWN.items()
    )


def test_nothing_but_what_is_known_disagrees():
    table = sweep.sweep()
    assert [row for row in sweep.disagreements(table).itertuples() if not known(row)] == []
    assert len(table) == len(ENGINES) * len(sweep.CASES) * len(sweep.LAYOUTS) * len(sweep.RANGES)
    sound = table[table["agrees"].eq(True)]
    assert len(sound) > 0.7 * len(table) and (sound["kernel_sqnr_db"] > 25).all()


# --- qnnpack's ReLU6 ------------------------------------------------------------------------------


def test_relu6_of_qnnpack_scrambles_channels_last():
    """Passes while the defect is there; when a later torch mends it, it is skipped with a sentence that says so."""
    assert not any(defective(name) for name in ENGINES if name != "qnnpack")
    if not defective():
        pytest.skip(f"mended upstream: torch {torch.__version__} computes qnnpack's ReLU6 right, in either layout")
    result, exact = relu6(torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(result.flatten().sort()[0], exact.flatten().sort()[0], atol=0.051)  # only moved


@pytest.fixture(scope="module")
def mobilenet():
    """(prepared, images) of a MobileNetV2 for qnnpack whose batch norm has seen the images."""
    torch.manual_seed(0)
    model, x = backbones.create("mobilenetv2", 4, 32).train(), batch(16)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the statistics of exactly what it sees
    with torch.no_grad():
        model(x)
    prepared = observed(model.eval(), "qnnpack", batches=[x], activations="minmax")
    return prepared, x


def test_the_check_names_relu6_in_mobilenetv2_and_mended_cures_it(mobilenet):
    prepared, x = mobilenet
    quantized = static.convert(prepared, "qnnpack")
    cured = mended(quantized)
    found = agreement(quantized, x)
    assert set(found.loc[found["agrees"].eq(False), "operator"]) == ({"ReLU6"} if defective() else set())
    agrees, note = kernels.verdict(found)
    assert agrees != defective() and ("ReLU6 (" in note) == defective()
    assert kernels.verdict(agreement(cured, x)) == (True, "")
    with torch.inference_mode():
        wanted, got, broken = (torch.softmax(m(x), 1) for m in (static.simulate(prepared), cured, quantized))
    assert (got - wanted).abs().mean() < 0.01  # a step of rounding in an early layer may grow
    assert not defective() or (broken - wanted).abs().mean() > 0.04


def test_mended_changes_no_weight_and_only_what_needs_it(mobilenet):
    quantized = static.convert(mobilenet[0], "qnnpack")
    cured = mended(quantized)
    assert cured.mended and not quantized.mended
    for (name, a), (other, b) in zip(quantized.model.state_dict().items(), cured.model.state_dict().items()):
        assert name == other
        if isinstance(a, torch.Tensor):
            assert torch.equal(kernels.as_float(a), kernels.as_float(b))
    assert mended(Quantized(quantized.model, "fbgemm")) is None
    assert mended(dynamic.convert(nn.Sequential(nn.Linear(4, 4)), "qnnpack")) is None
    plain = observed(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "qnnpack", batches=[batch(2)])
    assert mended(static.convert(plain, "qnnpack")) is None


@pytest.mark.parametrize(
    "activation",
    [
        lambda x, _: torch.clamp(x, -1, 1),
        lambda x, _: x.clamp(-1, 1),
        lambda x, _: F.relu6(x),
        lambda x, _: F.hardtanh(x, -2.0, 2.0),
        nn.Hardtanh(),
        nn.ReLU6(),
    ],
)
def test_every_way_to_write_a_clamp_is_mended(activation):
    torch.manual_seed(0)
    prepared = observed(Operators(activation), "qnnpack", batches=[batch(4)])
    cured = mended(static.convert(prepared, "qnnpack"))
    assert cured is not None
    with torch.inference_mode():
        assert (cured(batch(4)) - static.simulate(prepared)(batch(4))).abs().max() < 0.06


# --- the check ------------------------------------------------------------------------------------


def test_the_check_finds_a_kernel_that_is_wrong(monkeypatch):
    """A convolution whose result is off by five steps in one channel, as nothing else in the model is."""
    prepared = observed(trained(), "fbgemm", batches=[batch()])
    quantized = static.convert(prepared, "fbgemm")
    assert kernels.verdict(agreement(quantized, batch())) == (True, "")
    right = nnq.Conv2d.forward

    def wrong(self, x):
        y = right(self, x)
        if self.groups == 1:
            return y
        shift = torch.zeros(1, y.shape[1], 1, 1)
        shift[:, 3] = 5 * y.q_scale()
        return torch.quantize_per_tensor(y.dequantize() + shift, y.q_scale(), y.q_zero_point(), y.dtype)

    monkeypatch.setattr(nnq.Conv2d, "forward", wrong)
    table = agreement(quantized, batch())
    assert list(table.loc[table["agrees"].eq(False), "layer"]) == ["depthwise"]
    row = table.set_index("layer").loc["depthwise"]
    assert row["kernel_max_steps"] in (5, 6) and row["wrong"] == pytest.approx(1 / 16, abs=0.005)
    assert kernels.verdict(table) == (False, "integer kernels differ from their simulation: Conv2d (1 of 3)")


@pytest.mark.parametrize("name", ["fbgemm", "qnnpack"])
def test_functional_operators_are_checked_too(name):
    torch.manual_seed(0)
    prepared = observed(Functional().eval(), name, batches=[batch(8)])
    table = agreement(static.convert(prepared, name), batch(8))
    assert table["agrees"].notna().all() and table["agrees"].all()
    assert {"conv2d", "linear", "Hardswish"} <= set(table["operator"])


class Operators(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, between):
        super().__init__()
        self.first, self.between, self.second = nn.Conv2d(3, 4, 3), between, nn.Conv2d(4, 4, 3)
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)

    def forward(self, x):
        x = self.first(x)
        x = self.between(x) if isinstance(self.between, nn.Module) else self.between(x, self.scale)
        return self.second(x).mean((2, 3))


BETWEEN = {
    "x + 1": lambda x, scale: x + 1.0,
    "1 + x": lambda x, scale: 1.0 + x,
    "0.2 * x": lambda x, scale: 0.2 * x,
    "relu(x + 1)": lambda x, scale: F.relu(x + 1.0),
    "relu(2 * x)": lambda x, scale: torch.relu(2.0 * x),
    "x - 1, x / 2": lambda x, scale: (x - 1.0) / 2.0,
    "1 - x": lambda x, scale: 1.0 - x,
    "x * scale": lambda x, scale: x * scale,
    "x + x.mean": lambda x, scale: x + x.mean((2, 3), keepdim=True),
    "hardswish": lambda x, scale: F.hardswish(x),
    "elu": lambda x, scale: F.elu(x, 0.7),
    "leaky_relu": lambda x, scale: F.leaky_relu(x, 0.2),
    "softmax": lambda x, scale: torch.softmax(x, 1),
    "cat": lambda x, scale: torch.cat([x, F.relu(x)], 1)[:, :4],
    "transposed": nn.ConvTranspose2d(4, 4, 2, 2),
    "batch norm": nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)),
    "batch norm without weights": nn.BatchNorm2d(4, affine=False),
    "padded to the same size": nn.Conv2d(4, 4, (3, 5), padding="same", dilation=(2, 1)),
    "padded by name to none": nn.Conv2d(4, 4, 3, padding="valid"),
    "cut by the size": lambda x, scale: torch.cat([x[:, x.shape[1] // 2 :], x[:, : x.shape[1] // 2]], 1),
    "reflected": nn.Conv2d(4, 4, 3, padding=2, padding_mode="reflect"),
}
MODES = {  # what differs between training and evaluation
    "dropout": nn.Dropout(0.5),
    "dropout2d": nn.Dropout2d(0.5),
    "alpha dropout": nn.AlphaDropout(0.5),
    "rrelu": nn.RReLU(0.1, 0.9),
    "F.dropout": lambda x, scale: F.dropout(x, 0.5),
    "F.dropout, by name": lambda x, scale: F.dropout(x, p=0.5, training=True),
    "F.dropout2d": lambda x, scale: F.dropout2d(x, 0.5, True),
    "torch.dropout": lambda x, scale: torch.dropout(x, 0.5, True),
    "torch.dropout_": lambda x, scale: torch.dropout_(x.clone(), 0.5, True),
    "torch.feature_alpha_dropout": lambda x, scale: torch.feature_alpha_dropout(x, 0.5, True),
    "F.rrelu": lambda x, scale: F.rrelu(x, 0.1, 0.9, True),
}


@pytest.mark.parametrize("name", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize("between", [*BETWEEN, *MODES])
def test_scalars_broadcasts_and_what_differs_in_training(between, name):
    """The engine's own result says what is right: it must repeat itself and lie near the simulation and the twin."""
    torch.manual_seed(0)
    model, x = Operators((BETWEEN | MODES)[between]).eval(), batch(4)
    prepared = observed(model, name, batches=[x])
    quantized = static.convert(prepared, name)
    with torch.inference_mode():
        once, simulated = quantized(x), static.simulate(prepared)(x)
        assert torch.equal(once, quantized(x)) and (once - simulated).abs().max() < 0.1
    assert kernels.verdict(agreement(quantized, x)) == (True, "")
    table = diagnosis.layers(model, quantized, x)
    assert table["sqnr_db"].iloc[-1] > 20


def test_the_check_finds_that_prelu_misreads_weights_above_half_of_their_grid():
    """`quantized::prelu` takes a weight's integer above 127 for a negative one, and PyTorch puts the widest at 255."""
    torch.manual_seed(0)
    x = batch(4)
    quantized = integer_model(Operators(nn.PReLU(4)).eval(), "fbgemm", batches=[x])
    table = agreement(quantized, x).set_index("operator")
    if table.loc["PReLU", "agrees"]:
        pytest.skip(f"torch {torch.__version__} computes the quantized PReLU right")
    assert table.loc["PReLU", "wrong"] > 0.2 and table.drop("PReLU")["agrees"].all()


def test_an_operator_that_is_not_known_is_named_and_not_judged(monkeypatch):
    monkeypatch.delitem(kernels.FUNCTIONS, "hardswish")
    torch.manual_seed(0)
    model, x = Operators(BETWEEN["hardswish"]).eval(), batch(4)
    quantized = integer_model(model, "fbgemm", batches=[x])
    table = agreement(quantized, x)
    assert table.loc[table["agrees"].isna(), "operator"].tolist() == ["hardswish"]
    agrees, note = kernels.verdict(table)
    assert agrees is None and "hardswish (1 of 1)" in note
    layers = diagnosis.layers(model, quantized, x).set_index("operator")
    assert np.isnan(layers.loc["hardswish", "sqnr_db"]) and layers.drop("hardswish")["sqnr_db"].notna().all()


class Depth(nn.Module):
    """Functional dropout and stochastic depth read `self.training`, which a trace in training mode writes into the graph."""

    def forward(self, x):
        keep = x.new_empty((len(x), 1, 1, 1)).bernoulli_(0.5) if self.training else 1.0
        return F.dropout(x * keep, 0.5, self.training)


@pytest.mark.parametrize("name", ["fbgemm", "qnnpack"])
def test_a_trace_in_training_mode_keeps_statistics_of_the_batch_and_nothing_random(name):
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    model, x = Operators(nn.Sequential(BatchNormAct2d(4), Depth())).eval(), batch(4)
    prepared = static.prepare(model, name, DEFAULT.model_copy(update={"training_mode": True}), 8)
    static.calibrate(prepared, [x])
    quantized = static.convert(prepared, name)
    with torch.inference_mode():
        assert torch.equal(quantized(x), quantized(x))
        alone = torch.cat([quantized(x[k : k + 1]) for k in range(len(x))])
        assert (alone - quantized(x)).abs().max() > 0.1  # each image has statistics of its own


@pytest.mark.parametrize("name", ["fbgemm", "qnnpack"])
def test_training_for_quantization_leaves_nothing_random_in_evaluation(name):
    torch.manual_seed(0)
    prepared, x = static.prepare_training(Operators(Depth()), name, 32), batch(4)
    assert prepared.training
    prepared(x)
    static.observe(prepared.eval(), False)
    quantized = static.convert(prepared, name)
    with torch.inference_mode():
        assert torch.equal(prepared(x), prepared(x)) and torch.equal(quantized(x), quantized(x))
    assert kernels.verdict(agreement(quantized, x)) == (True, "")


@pytest.mark.parametrize("name", ["fbgemm", "qnnpack"])
def test_dynamic_layers_are_checked(name, monkeypatch):
    torch.manual_seed(0)
    quantized = dynamic.convert(nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 4)), name)
    table = agreement(quantized, torch.randn(8, 3, 8, 8))
    assert list(table["layer"]) == ["1", "3"] and table["agrees"].all()
    right = kernels.DYNAMIC.forward
    monkeypatch.setattr(kernels.DYNAMIC, "forward", lambda self, x: right(self, x) + 0.5)
    assert not agreement(quantized, torch.randn(8, 3, 8, 8))["agrees"].any()


def test_sqnr_and_the_count_of_wrong_outputs():
    signal = torch.tensor([3.0, 4.0])
    assert kernels.sqnr_db(signal, torch.tensor([0.5, 0.0])) == pytest.approx(20.0)
    assert kernels.sqnr_db(signal, torch.zeros(2)) == np.inf and kernels.sqnr_db(torch.zeros(2), signal) == -np.inf
    exact = torch.arange(100) * 0.1
    got = exact.clone()
    got[7] += 1.0
    row = kernels.compared(exact, torch.quantize_per_tensor(got, 0.1, 0, torch.quint8))
    assert (row["kernel_max_steps"], row["wrong"], row["agrees"]) == (10, pytest.approx(0.01), True)
    got[8] += 0.4
    assert not kernels.compared(exact, torch.quantize_per_tensor(got, 0.1, 0, torch.quint8))["agrees"]
