"""Observers of activations that torch.ao does not have."""

from torch.ao.quantization import HistogramObserver

TAIL = 0.0005  # share of the values beyond each end of the range


class PercentileObserver(HistogramObserver):
    """Takes the range that holds all values but the outermost `TAIL` on either side.

    `HistogramObserver` chooses the range of the least squared error instead; both see the same histogram.
    """

    def _non_linear_param_search(self):
        mass = self.histogram.cumsum(0) / self.histogram.sum()
        width = (self.max_val - self.min_val) / self.bins
        below, above = (mass <= TAIL).sum(), (mass >= 1 - TAIL).sum() - 1
        return self.min_val + below * width, self.max_val - above * width
