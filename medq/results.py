"""Result folders: what their files hold (`SCHEMA`), and one lazy, read-only view of a folder (`Results`).

Everything in the book is a function of such a folder. A file that is not there reads as an empty table with the right
columns, so that a half-finished batch can be shown, and says what it lacks.
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from medq.errors import UserError, one_of

BACKBONES = {  # name: (label as in the paper's tables, family), in the paper's order
    "resnet18": ("ResNet-18", "cnn"), "resnet50": ("ResNet-50", "cnn"), "densenet121": ("DenseNet-121", "cnn"),
    "efficientnet_b0": ("EfficientNet-B0", "cnn"), "mobilenetv2": ("MobileNetV2", "cnn"),
    "convnext_tiny": ("ConvNeXt-T", "cnn"), "swin_tiny": ("Swin-T", "transformer"),
    "vit_base": ("ViT-B", "transformer")}
REGIMES = {  # name: label as in the paper's tables; the last is our control, not one of the paper's six
    "fp32": "FP32", "fp16": "FP16", "ptq-fbgemm": "INT8-PTQ (FBGEMM)", "ptq-qnnpack": "INT8-PTQ (QNNPACK)",
    "qat-fbgemm": "INT8-QAT (FBGEMM)", "qat-qnnpack": "INT8-QAT (QNNPACK)", "fp32-continued": "FP32 continued"}
CONTROL = "fp32-continued"
DATASETS = ("BrainMRI", "ChestXray", "SkinCancer")
PHANTOM = "phantom-"

# File -> columns. This is the one place that defines the tidy files; key columns are text and must be there,
# the others are numbers (or text where named in TEXT) and read as missing where a file lacks them.
SCHEMA = {
    "cells.csv": ["dataset", "backbone", "regime", "fold", "status", "reason", "train_seconds", "epochs",
                  "engine_agrees", "engine_note"],
    "metrics.csv": ["dataset", "backbone", "regime", "recipe", "stage", "fold", "metric", "class", "value"],
    "intervals.csv": ["dataset", "backbone", "regime", "stage", "metric", "class", "value", "low", "high",
                      "between_std"],
    "latency.csv": ["dataset", "backbone", "regime", "baseline", "engine", "device", "batch_size", "threads",
                    "n_batches", "mean_ms", "p50_ms", "p50_low", "p50_high", "p90_ms", "p99_ms", "p99_low",
                    "p99_high", "throughput", "convert_seconds", "size_mb"],
    "latency_raw.parquet": ["dataset", "backbone", "regime", "baseline", "batch_size", "batch", "ms"],
    "bootstrap.csv": ["dataset", "backbone", "method_a", "method_b", "metric", "n_resamples", "delta_pp", "low_pp",
                      "high_pp", "p_value", "p_holm"],
    "calibration_size.csv": ["dataset", "backbone", "regime", "fold", "n_calibration", "subset", "auprc"],
    "ablation.csv": ["dataset", "backbone", "recipe", "engine", "run_engine", "fold", "stage", "weights",
                     "activations", "reduce_range", "fused", "training_mode", "normalised", "auprc", "auroc", "ece",
                     "ece_top_label", "brier"],
    "layers.csv": ["dataset", "backbone", "regime", "fold", "layer", "operator", "sqnr_db", "saturation",
                   "weight_range_ratio", "kernel_sqnr_db", "kernel_max_steps"],
    "remedies.csv": ["dataset", "backbone", "regime", "fold", "remedy", "auprc", "ece", "ece_top_label", "brier",
                     "p50_ms"],
    "silent.csv": ["dataset", "backbone", "regime", "stage", "fold", "class", "threshold", "sensitivity_reference",
                   "sensitivity", "specificity_reference", "specificity", "prevalence_reference", "prevalence",
                   "crossed_up", "crossed_down", "n"],
    "flips.csv": ["dataset", "backbone", "regime_a", "regime_b", "fold", "flipped", "flipped_to_right",
                  "flipped_to_wrong", "n"],
    "leak.csv": ["dataset", "backbone", "regime", "stage", "metric", "subset", "n", "value"],
    "peers.csv": ["dataset", "backbone", "runtime", "precision", "batch_size", "auroc", "auprc", "ece",
                  "ece_top_label", "brier", "p50_ms", "p99_ms", "p50_low", "p50_high", "p99_low", "p99_high",
                  "size_mb", "convert_seconds", "note"],
    "history.csv": ["dataset", "backbone", "regime", "fold", "epoch", "train_loss", "train_accuracy", "accuracy"],
    # Table 4's two ratios, which the paper prints beside the milliseconds; only results/published has this file.
    "ratios.csv": ["dataset", "backbone", "regime", "batch_size", "speedup", "size_ratio"],
}
KEYS = {"dataset", "backbone", "regime", "regime_a", "regime_b", "method_a", "method_b", "fold", "recipe", "stage",
        "metric", "class", "subset", "remedy", "layer", "runtime", "precision"}
TEXT = {"status", "reason", "engine_agrees", "engine_note", "baseline", "engine", "run_engine", "device", "operator",
        "note", "weights", "activations", "reduce_range", "fused", "training_mode", "normalised", "source"}
FOLD_COLUMNS = ["image_id", "label", "group", "fold"]

# What provenance.json holds. Every key may be missing: the banner says what it knows.
PROVENANCE = {
    "profile": "name of the profile",
    "created": "date and time of the collection, ISO 8601, UTC",
    "commit": "git commit of the code",
    "params": "the profile's parameters, whole: image_size, weights, selection, epochs, folds, seed, ...",
    "versions": "{package: version}",
    "hardware": "{cpu, cores, threads, instruction_set, memory_gb, gpu}",
    "data": "{dataset: {fingerprint, n_images, n_expected, folds_done, n_folds, fixed_split}}",
    "seeds": "{what: seed}",
}
