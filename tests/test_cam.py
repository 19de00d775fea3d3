"""Class activation maps against what hooks on the same models and a few lines of torch give."""

import pytest
import torch
from fixtures.quantize import batch, integer_model, observed, trained
from torch import nn

from medq import backbones
from medq.quantize import cam, static
from medq.quantize.engines import Unsupported, engine

INT8 = ("fbgemm", "qnnpack")


def seen(model, path, x):
    """(input of the module at `path`, output of `model`) on `x`."""
    found = []
    hook = model.get_submodule(path).register_forward_hook(lambda module, given, output: found.append(given[0]))
    with torch.no_grad():
        logits = model(x)
    hook.remove()
    return found[0], logits


def test_float_map_is_the_exact_one_and_sums_to_the_logit():
    model, x = trained(), batch()
    found = cam.maps(static.fused(model, "traced"), [x[:20], x[20:]])
    features, logits = seen(model, "pool", x)
    assert torch.equal(found.classes, logits.argmax(1))
    assert torch.allclose(found.logits, logits, atol=1e-4)
    wanted = torch.einsum("nk,nkij->nij", model.head.weight[found.classes], features) / features[0, 0].numel()
    assert torch.allclose(found.values, wanted, atol=1e-4)
    score = logits.gather(1, found.classes[:, None])[:, 0]
    assert torch.allclose(found.values.sum((1, 2)) + model.head.bias[found.classes], score, atol=1e-4)
    assert found.exact()


@pytest.mark.parametrize("name", INT8)
def test_integer_map_is_the_exact_one_of_dequantized_features(name):
    """It sums to the integer model's logit but for the rounding of the pooled features and of the logit itself."""
    quantized, x = integer_model(trained(), name), batch()
    classes = torch.arange(len(x)) % 4
    found = cam.maps(quantized, [x], classes)
    with engine(name):
        features, logits = seen(quantized.model, "pool", x)
    head = quantized.model.head
    weight, bias = head.weight().dequantize()[classes], head.bias()[classes]
    wanted = torch.einsum("nk,nkij->nij", weight, features.dequantize()) / features[0, 0].numel()
    assert torch.equal(found.logits, logits) and torch.allclose(found.values, wanted, atol=1e-4)
    rounding = head.scale / 2 + features.q_scale() * weight.abs().sum(1)
    error = found.values.sum((1, 2)) + bias - logits.gather(1, classes[:, None])[:, 0]
    inside = logits.abs().max(1).values < logits.abs().max()  # not at the end of the grid, where logits are clipped
    assert inside.sum() > 20 and (error.abs() <= rounding)[inside].all()


@pytest.mark.parametrize("name", INT8)
def test_simulated_map_has_the_simulations_numbers(name):
    simulation, x = static.simulate(observed(trained(), name)), batch()
    found = cam.maps(simulation, [x])
    features, logits = seen(simulation, "pool", x)
    assert torch.equal(found.logits, logits)
    weight = simulation.head.get_weight()[found.classes]  # after quantization
    wanted = torch.einsum("nk,nkij->nij", weight, features) / features[0, 0].numel()
    assert torch.allclose(found.values, wanted, atol=1e-4)
    assert not torch.allclose(weight, trained().head.weight[found.classes], atol=1e-5)


@torch.enable_grad()
def gradient_map(model, path, x, classes):
    """Grad-CAM by a hook on the plain model, without its final ReLU."""
    found = []
    hook = model.get_submodule(path).register_forward_hook(
        lambda module, given, output: found.append(output + 0) or found[0]
    )
    (gradient,) = torch.autograd.grad(model(x).gather(1, classes[:, None]).sum(), found)
    hook.remove()
    return (gradient.mean((2, 3), keepdim=True) * found[0]).sum(1).detach()


@pytest.mark.parametrize(("size", "path"), [(32, "layer2"), (64, "layer3"), (128, "layer4")])
def test_grad_cam_of_the_last_map_that_is_large_enough(size, path):
    torch.manual_seed(0)
    model, x = backbones.create("resnet18", 3, size).eval(), torch.randn(6, 3, size, size)
    classes = torch.tensor([0, 1, 2, 0, 1, 2])
    found = cam.maps(static.fused(model, "traced"), [x], classes)
    wanted = gradient_map(model, path, x, classes)
    assert found.values.shape == (6, 4, 4)
    assert torch.allclose(found.values, wanted, atol=1e-3 * float(wanted.abs().max()))
    assert found.exact() == (path == "layer4")


class Normed(nn.Module):
    """A head with a norm between pooling and its linear layer, as ConvNeXt's, which makes the exact map impossible."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 8, 3, 4, 1), nn.AdaptiveAvgPool2d(1)
        self.flatten, self.norm, self.head = nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.norm(self.flatten(self.pool(self.conv(x)))))


@pytest.mark.parametrize("name", INT8)
def test_grad_cam_goes_through_integer_kernels(name):
    torch.manual_seed(0)
    model, x = Normed().eval(), batch()
    reference = cam.maps(static.fused(model), [x])
    assert torch.allclose(reference.values, gradient_map(model, "conv", x, reference.classes), atol=1e-4)
    assert not reference.exact()
    prepared = observed(model, name, batches=[x])
    for quantized in (static.simulate(prepared), static.convert(prepared, name)):
        found = cam.maps(quantized, [x], reference.classes)
        assert 0 < (found.values - reference.values).abs().max() < 0.1 * reference.values.abs().max()


def test_what_has_no_map_is_unsupported():
    flat = nn.Sequential(nn.Conv2d(3, 4, 16, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(Unsupported, match="4 × 4"):
        cam.maps(static.fused(flat.eval()), [batch(2)])


def test_logits_that_are_not_finite_are_an_error():
    model = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[0].bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        cam.maps(static.fused(model), [batch(2)])
