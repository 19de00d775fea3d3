"""Ranges of activations: the percentile observer against NumPy's quantiles."""

import numpy as np
import pytest
import torch

from medq.params import Recipe
from medq.quantize import static
from medq.quantize.observers import TAIL, PercentileObserver


@pytest.mark.parametrize("relu", [False, True])
def test_the_range_leaves_out_the_tails_alone(relu):
    torch.manual_seed(0)
    values = torch.randn(200_000)
    values = values.relu() if relu else values
    values[0] = 100.0  # one outlier, which a min-max range would follow
    observer = PercentileObserver(dtype=torch.quint8)
    for part in values.split(50_000):
        observer(part)
    scale, zero = observer.calculate_qparams()
    low, high = float(-zero * scale), float((255 - zero) * scale)
    expected = np.quantile(values.numpy(), [TAIL, 1 - TAIL])
    width = 100 / observer.bins * 2  # the outlier stretches the histogram's bins
    assert low == pytest.approx(min(0, expected[0]), abs=2 * width)
    assert high == pytest.approx(expected[1], abs=2 * width) and high < 5


def test_a_recipe_uses_it():
    mapping = static.qconfig_mapping("fbgemm", Recipe(title="t", activations="percentile"))
    assert isinstance(mapping.global_qconfig.activation(), PercentileObserver)
