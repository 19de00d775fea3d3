"""medq: what INT8 quantization does to discrimination, calibration and latency of medical image classifiers."""

__version__ = "0.1.0"
