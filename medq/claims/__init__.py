"""Every empirical claim of the paper as data: where it stands, what it says, and the test that decides it.

`evaluate` runs the tests on a result folder. A verdict is never typed: it is computed from the results alone,
and reads `not testable` where their intervals, or gaps, leave the claim open.
"""

from typing import NamedTuple
from collections.abc import Callable

import pandas as pd

from medq.claims import decisions as d
from medq.claims.evidence import CONTRADICTED, OPEN, SUPPORTED
from medq.results import published as paper_results

VERDICTS = (SUPPORTED, CONTRADICTED, OPEN)
COLUMNS = ["id", "claim", "section", "quotation_short", "test", "evidence", "value", "low", "high", "verdict"]


class Claim(NamedTuple):
    """A claim: `says` is our paraphrase, `test` the rule in words, `decide` takes (results, published)."""

    id: str
    claim: str
    section: str
    says: str
    test: str
    decide: Callable


CLAIMS = (
    # --- discrimination ---------------------------------------------------------------------------
    Claim(
        "fp16-auroc",
        "FP16 keeps ROC-AUC",
        "3.1, 4, 6; Figure 1",
        "FP16 follows FP32 closely on every dataset.",
        "Mean ROC-AUC differs from FP32's by at most 1 point on every dataset.",
        lambda r, p: d.close(r, "auroc", kind="fp16"),
    ),
    Claim(
        "fp16-auprc",
        "FP16 keeps AUPRC",
        "4, 6; Figure 5",
        "FP16 follows FP32 closely in AUPRC too.",
        "Mean AUPRC differs from FP32's by at most 2 points on every dataset.",
        lambda r, p: d.close(r, "auprc", kind="fp16"),
    ),
    Claim(
        "saturated",
        "BrainMRI and ChestXray are nearly saturated",
        "3.1",
        "In floating point, ROC-AUC is about 0.99 or more on BrainMRI and ChestXray.",
        "Mean ROC-AUC of FP32 and FP16 is at least 0.99 on both.",
        lambda r, p: d.saturated(r),
    ),
    Claim(
        "skin-harder",
        "SkinCancer is harder",
        "3.1",
        "SkinCancer has a lower ROC-AUC than the other two.",
        "Mean FP32 ROC-AUC on SkinCancer is below that on each of the others.",
        lambda r, p: d.skin_is_harder(r),
    ),
    Claim(
        "skin-variable",
        "Backbones differ most on SkinCancer",
        "3.1",
        "Performance on SkinCancer varies more across backbones.",
        "Standard deviation of FP32 ROC-AUC between backbones is greater on SkinCancer (F interval).",
        lambda r, p: d.skin_is_more_variable(r),
    ),
    Claim(
        "ptq-auroc",
        "PTQ costs much ROC-AUC everywhere",
        "3.1, 6; Figure 1",
        "PTQ degrades discrimination strongly on all datasets.",
        "Mean ROC-AUC falls by more than 5 points under both engines on every dataset.",
        lambda r, p: d.worse(r, "auroc", kind="ptq"),
    ),
    Claim(
        "ptq-auprc",
        "PTQ costs much AUPRC everywhere",
        "4; Figure 5",
        "PTQ can degrade AUPRC strongly.",
        "Mean AUPRC falls by more than 5 points under both engines on every dataset.",
        lambda r, p: d.worse(r, "auprc", kind="ptq"),
    ),
    Claim(
        "ptq-variance",
        "PTQ spreads the backbones",
        "3.1, 4",
        "PTQ increases the variance between backbones.",
        "Standard deviation of ROC-AUC between backbones is greater under PTQ than FP32 (F interval).",
        lambda r, p: d.ptq_spreads_backbones(r),
    ),
    Claim(
        "ptq-architecture",
        "PTQ's harm depends on the backbone",
        "Abstract, 3.1, 4; Figure 1",
        "How much PTQ degrades depends on the architecture.",
        "Within every dataset and engine the backbones' losses of ROC-AUC differ by more than 2 points.",
        lambda r, p: d.ptq_depends_on_backbone(r),
    ),
    Claim(
        "ptq-interaction",
        "PTQ's harm is an interplay of data and backbone",
        "1",
        "Degradation is not uniform: it varies with dataset and architecture together.",
        "Some loss differs by more than 2 points from what its dataset and backbone alone explain.",
        lambda r, p: d.ptq_interacts(r),
    ),
    Claim(
        "qat-auroc",
        "QAT keeps ROC-AUC",
        "Abstract, 3.1, 6; Figure 1",
        "QAT largely keeps FP32's performance.",
        "Mean ROC-AUC differs from FP32's by at most 2 points, both engines, every dataset.",
        lambda r, p: d.close(r, "auroc", kind="qat", margin=0.02),
    ),
    Claim(
        "qat-cluster",
        "QAT has no drop in AUPRC",
        "3.4; Figure 2",
        "QAT models lie close to FP32 in AUPRC, without the drops seen otherwise.",
        "No backbone loses more than 5 points of AUPRC under QAT, on any dataset or engine.",
        lambda r, p: d.every_backbone(r, "auprc", "qat"),
    ),
    Claim(
        "qat-residual",
        "QAT's residual gap is on SkinCancer",
        "4, 6; Figures 1 and 5",
        "What gap remains under QAT is most noticeable on SkinCancer.",
        "QAT loses more ROC-AUC on SkinCancer than on each of the others.",
        lambda r, p: d.residual_is_greatest_on_skin(r),
    ),
    Claim(
        "engines-discrimination",
        "The engines agree in discrimination",
        "3.1, 4, 6",
        "FBGEMM and QNNPACK differ little in discrimination.",
        "Mean ROC-AUC under QNNPACK is within 1 point of that under FBGEMM, PTQ and QAT, every dataset.",
        lambda r, p: d.engines_alike(r),
    ),
    Claim(
        "vulnerable",
        "MobileNetV2 and EfficientNet-B0 are most vulnerable",
        "4; Figure 1",
        "The two suffer most from PTQ.",
        "They lose most ROC-AUC under PTQ, mean over datasets and engines.",
        lambda r, p: d.most_vulnerable(r),
    ),
    # --- calibration ------------------------------------------------------------------------------
    Claim(
        "fp16-calibration",
        "FP16 keeps calibration",
        "3.2, 4, 6; Table 1",
        "FP16's calibration is FP32's.",
        "Mean ECE within ±0.01 and Brier within ±0.02 of FP32's on every dataset.",
        lambda r, p: d.close(r, "ece", "brier", kind="fp16", form="fake-quant"),
    ),
    Claim(
        "ptq-calibration",
        "PTQ worsens calibration everywhere",
        "3.2, 4, 6; Table 1",
        "PTQ worsens calibration substantially across datasets.",
        "Mean ECE rises by more than 0.05 and Brier by more than 0.10, both engines, every dataset "
        "(simulated models, as in Table 1).",
        lambda r, p: d.worse(r, "ece", "brier", kind="ptq", form="fake-quant"),
    ),
    Claim(
        "ptq-calibration-deployed",
        "PTQ worsens calibration as deployed",
        "3.2",
        "The miscalibration is there on the converted models too.",
        "As before, on the converted models.",
        lambda r, p: d.worse(r, "ece", "brier", kind="ptq"),
    ),
    Claim(
        "qat-calibration",
        "QAT recovers calibration",
        "3.2, 4; Table 1",
        "QAT largely recovers FP32's calibration on BrainMRI and ChestXray.",
        "Mean ECE within ±0.01 and Brier within ±0.02 of FP32's on both, both engines.",
        lambda r, p: d.close(r, "ece", "brier", kind="qat", form="fake-quant", datasets=("BrainMRI", "ChestXray")),
    ),
    Claim(
        "qat-mitigates",
        "QAT mends what PTQ breaks",
        "Abstract, 4, 6",
        "QAT substantially mitigates PTQ's calibration failures.",
        "QAT closes at least half of the rise in ECE and Brier, wherever PTQ causes one.",
        lambda r, p: d.recovers(r, "ece", "brier"),
    ),
    Claim(
        "qat-skin",
        "A modest gap remains on SkinCancer",
        "4, 6; Table 1",
        "On dermoscopy QAT leaves a modest residual gap.",
        "On SkinCancer ECE under QAT stays above FP32's, by less than half of PTQ's rise.",
        lambda r, p: d.modest_residual(r),
    ),
    Claim(
        "conversion-keeps",
        "Conversion keeps the trends",
        "3.2",
        "The converted models show what the fake-quantized checkpoints show.",
        "ECE within ±0.02 and Brier within ±0.04 of the simulation's in every INT8 cell.",
        lambda r, p: d.conversion_keeps(r),
    ),
    Claim(
        "best-regimes",
        "The best regime of each row",
        "Table 1 (bold)",
        "FP32, FP16 or QAT with QNNPACK is best, by dataset and metric.",
        "Our best regime is the paper's in all six rows.",
        lambda r, p: d.best_regimes(r, p),
    ),
    Claim(
        "precision-not-hardware",
        "Precision, not the backend, is to blame",
        "4",
        "The regressions under PTQ come from the reduced precision, not from the hardware backend.",
        "At least 80 % of what PTQ costs in Brier appears already in floating-point simulation.",
        lambda r, p: d.simulation_explains(r),
    ),
    Claim(
        "resnet50-ptq",
        "ResNet-50 is miscalibrated by PTQ",
        "3.6, A.4; Figure 7",
        "PTQ shifts ResNet-50's calibration substantially.",
        "Top-label ECE of ResNet-50 rises by more than 0.02 on every dataset (FBGEMM).",
        lambda r, p: d.resnet50_shifts(r, kind="ptq", more_than=0.02),
    ),
    Claim(
        "resnet50-qat",
        "QAT recovers ResNet-50's calibration",
        "A.4; Figure 7",
        "QAT brings ResNet-50 back to near FP32's calibration, without post-hoc correction.",
        "Top-label ECE of ResNet-50 differs by at most 0.02 on every dataset (FBGEMM).",
        lambda r, p: d.resnet50_shifts(r, kind="qat", at_most=0.02),
    ),
    Claim(
        "resnet50-robust",
        "ResNet-50 is among the most robust",
        "Figure 7",
        "ResNet-50 is among the backbones that PTQ harms least.",
        "It is among the three that lose least ROC-AUC, mean over datasets and engines.",
        lambda r, p: d.robust(r),
    ),
    # --- classes and decisions --------------------------------------------------------------------
    Claim(
        "rare-classes",
        "Rare classes suffer more",
        "3.3; Table 3",
        "AKIEC, DF and MEL lose more under PTQ than the other skin classes.",
        "Their mean loss of AUPRC (points, ResNet-50) exceeds that of the other four.",
        lambda r, p: d.rare_classes(r),
    ),
    Claim(
        "hidden",
        "Averages hide failures",
        "3.3",
        "Aggregate metrics can hide failures of a class.",
        "Some INT8 cell loses at most 1 point of macro ROC-AUC and more than 5 of a class's AUPRC.",
        lambda r, p: d.hidden_by_average(r),
    ),
    Claim(
        "silent",
        "Quantized models fail silently",
        "1",
        "A model may keep its accuracy and yet fail on borderline cases.",
        "Some INT8 cell keeps accuracy within 1 point while a class's sensitivity at FP32's threshold "
        "falls by more than 5.",
        lambda r, p: d.silent_failures(r),
    ),
    # --- statistics -------------------------------------------------------------------------------
    Claim(
        "bootstrap-ptq",
        "FP32 beats PTQ significantly",
        "3.5; Figure 3",
        "FP32 outperforms PTQ on all datasets.",
        "Pooled paired bootstrap of AUPRC: FP32 better with p < 0.05, both engines, every dataset.",
        lambda r, p: d.significant(r, "fp32", "ptq", better="first"),
    ),
    Claim(
        "bootstrap-qat",
        "FP32 and QAT are indistinguishable",
        "3.5; Figure 3",
        "FP32 and QAT cannot be told apart statistically.",
        "Pooled paired bootstrap of AUPRC: p of at least 0.05, both engines, every dataset.",
        lambda r, p: d.significant(r, "fp32", "qat", better=None),
    ),
    Claim(
        "bootstrap-ptq-qat",
        "QAT beats PTQ significantly",
        "3.5; Figure 3",
        "QAT outperforms PTQ significantly.",
        "Pooled paired bootstrap of AUPRC: QAT better with p < 0.05, both engines, every dataset.",
        lambda r, p: d.significant(r, "ptq", "qat", better="second"),
    ),
    # --- calibration size -------------------------------------------------------------------------
    Claim(
        "size-insensitive",
        "ResNets do not mind the calibration size",
        "3.5; Figure 4",
        "On BrainMRI and ChestXray the ResNets are near saturation at every size, with tight bands.",
        "AUPRC of ResNet-18 and ResNet-50 stays above 0.95 and moves by at most 2 points over all sizes.",
        lambda r, p: d.insensitive(r),
    ),
    Claim(
        "size-transformers",
        "Transformers do not mind the calibration size",
        "3.5; Figure 4",
        "Swin-T and ViT-B are insensitive to the calibration size.",
        "None: dynamic quantization uses no calibration images.",
        lambda r, p: d.dynamic_has_no_calibration(r),
    ),
    Claim(
        "size-skin-lower",
        "SkinCancer stays lower",
        "3.5; Figure 4",
        "At every calibration size every model does worse on SkinCancer.",
        "AUPRC on SkinCancer lies below that on the others, each backbone and size.",
        lambda r, p: d.sweep_skin_lower(r),
    ),
    Claim(
        "size-skin-wider",
        "SkinCancer varies more",
        "3.5; Figure 4",
        "Its bands are substantially wider.",
        "The mean band on SkinCancer is wider than on the others.",
        lambda r, p: d.skin_bands_wider(r),
    ),
    Claim(
        "size-small-sets",
        "Small calibration sets vary more",
        "3.5; Figure 4",
        "On SkinCancer the bands are widest at small sizes.",
        "The mean band below 128 images is wider than from 128 on.",
        lambda r, p: d.small_sets_vary_more(r),
    ),
    Claim(
        "size-light",
        "Light models vary more",
        "3.5; Figure 4",
        "MobileNetV2, ConvNeXt-T and EfficientNet-B0 have wider bands on ChestXray and SkinCancer.",
        "Their mean band is wider than that of the other CNNs.",
        lambda r, p: d.light_models_vary_more(r),
    ),
    Claim(
        "size-not-monotonic",
        "More images do not always help",
        "3.5; Figure 4",
        "A larger calibration set does not guarantee an improvement.",
        "Some curve of those three backbones falls somewhere.",
        lambda r, p: d.not_monotonic(r),
    ),
    Claim(
        "size-few-hundred",
        "A few hundred images are enough",
        "3.5; Figure 4",
        "Beyond a few hundred images the gain is marginal.",
        "From 256 images to the most, AUPRC on BrainMRI and ChestXray gains at most 1 point.",
        lambda r, p: d.few_hundred_suffice(r),
    ),
    # --- efficiency -------------------------------------------------------------------------------
    Claim(
        "cnn-engines-alike",
        "The engines serve CNNs alike",
        "3.4; Table 2",
        "For CNNs both engines have similar throughput and latency.",
        "Throughput under FBGEMM is between 2/3 and 3/2 of that under QNNPACK (batch 32).",
        lambda r, p: d.engine_throughput(r, "cnn", low=2 / 3, high=1.5),
    ),
    Claim(
        "transformer-qnnpack-slow",
        "QNNPACK is very slow for transformers",
        "3.4, 4, 6; Table 2",
        "For transformers FBGEMM is far faster and QNNPACK extremely slow.",
        "Throughput under FBGEMM is more than 5 times that under QNNPACK (batch 32).",
        lambda r, p: d.engine_throughput(r, "transformer", low=5),
    ),
    Claim(
        "conversion-cnn",
        "Calibration dominates conversion",
        "3.4; Table 2",
        "PTQ's conversion time is that of calibrating CNNs.",
        "Converting a CNN takes at least 10 times as long as converting a transformer.",
        lambda r, p: d.calibration_dominates(r),
    ),
    Claim(
        "conversion-transformer",
        "Transformers convert in under a second",
        "3.4; Table 2",
        "Dynamic quantization of transformers takes less than a second.",
        "No transformer takes more than 1 s.",
        lambda r, p: d.conversion(r, ["ptq-fbgemm", "ptq-qnnpack"], "transformer", high=1),
    ),
    Claim(
        "conversion-qat",
        "QAT converts quickly",
        "3.4",
        "After QAT the conversion takes about a second at most.",
        "No QAT model takes more than 2 s to convert.",
        lambda r, p: d.conversion(r, ["qat-fbgemm", "qat-qnnpack"], high=2),
    ),
    Claim(
        "qat-faster",
        "QAT is faster than FP32",
        "3.4; Figure 2",
        "QAT shifts every model to lower latency.",
        "INT8-QAT (FBGEMM) is faster than eager FP32 at batch 1 on every backbone.",
        lambda r, p: d.faster(r, "qat-fbgemm"),
    ),
    Claim(
        "ptq-faster",
        "INT8 is faster on every backbone",
        "3.4; Figure 6",
        "Integers reduce the latency of all model families.",
        "INT8-PTQ (FBGEMM) is faster than eager FP32 at batch 1 on every backbone.",
        lambda r, p: d.faster(r),
    ),
    Claim(
        "larger-gain",
        "Larger models gain more",
        "3.4; Figure 6",
        "Speed-ups are greatest for the larger architectures.",
        "Rank correlation between FP32 latency and speed-up is above 0.",
        lambda r, p: d.larger_gain_more(r),
    ),
    Claim(
        "tails",
        "Tails stay within 1.02 to 1.15",
        "4, A.3; Table 4",
        "p99 over p50 of INT8 lies between 1.02 and 1.15 on all backbones.",
        "It does, on every backbone, at batch 1.",
        lambda r, p: d.tails(r),
    ),
    Claim(
        "tails-alike",
        "INT8 adds no tail",
        "4; Table 4",
        "The tails are comparable to FP32's.",
        "Mean p99 over p50 differs from FP32's by at most 0.1.",
        lambda r, p: d.tails_alike(r),
    ),
    Claim(
        "speedup-range",
        "EfficientNet-B0 gains least, DenseNet-121 most",
        "4, A.3; Table 4",
        "Speed-ups range from 1.03 (EfficientNet-B0) to 5.62 (DenseNet-121).",
        "The smallest and the greatest speed-up belong to these two.",
        lambda r, p: d.extreme_speedups(r),
    ),
    Claim(
        "speedup-architecture",
        "Speed-up depends on the architecture",
        "4; Table 4",
        "How much INT8 gains depends strongly on the architecture.",
        "The greatest speed-up is at least twice the smallest.",
        lambda r, p: d.speedups_differ(r),
    ),
    Claim(
        "vulnerable-gain-least",
        "The most vulnerable gain least",
        "4",
        "The backbones that PTQ harms most are those with the smallest speed-ups.",
        "MobileNetV2 and EfficientNet-B0 have the two smallest speed-ups.",
        lambda r, p: d.vulnerable_gain_least(r),
    ),
    Claim(
        "neither",
        "For light models PTQ gives neither",
        "4",
        "For MobileNetV2 and EfficientNet-B0 PTQ offers neither speed nor reliability.",
        "Each is less than 1.5 times faster and loses more than 2 points of AUPRC on every dataset.",
        lambda r, p: d.neither_gain_nor_reliability(r),
    ),
    Claim(
        "sizes",
        "INT8 models are 3.1 to 4 times smaller",
        "Table 4",
        "Size compression of 3.13 to 3.96.",
        "FP32 over INT8 size on disk is Table 4's within ±0.05 on every backbone.",
        lambda r, p: d.sizes_shrink(r, p),
    ),
    Claim(
        "fp16-gpu",
        "FP16 is faster on a GPU",
        "4",
        "FP16 is a straightforward gain on a GPU.",
        "FP16 is faster than FP32 at batch 32 on every backbone timed on a GPU.",
        lambda r, p: d.fp16_on_gpu(r),
    ),
    Claim(
        "fp16-memory",
        "FP16 halves memory",
        "1",
        "FP16 halves the memory that a model takes.",
        "FP32 over FP16 size on disk is at least 1.9.",
        lambda r, p: d.fp16_memory(r),
    ),
    # --- beyond PyTorch ---------------------------------------------------------------------------
    Claim(
        "other-frameworks",
        "Other frameworks behave alike",
        "5",
        "The trade-off between PTQ and QAT is likely to persist in other frameworks.",
        "Where PyTorch's PTQ costs more than 0.10 Brier, other INT8 runtimes cost more than 0.05.",
        lambda r, p: d.other_frameworks(r),
    ),
)


def evaluate(results, published=None):
    """Every claim with its verdict: a DataFrame of COLUMNS, in the order of `CLAIMS`.

    `value`, `low`, `high` are the number the verdict hangs on and its 95 % interval (fractions, seconds or
    ratios, as the evidence says; missing where the verdict is no comparison of one number).
    """
    published = published or paper_results()
    rows = []
    for claim in CLAIMS:
        found = claim.decide(results, published)
        rows.append(
            (
                claim.id,
                claim.claim,
                claim.section,
                claim.says,
                claim.test,
                found.evidence,
                found.value,
                found.low,
                found.high,
                found.verdict,
            )
        )
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame.attrs = {"caption": "The paper's claims and what these results say of them", "formats": {None: "{:.3g}"}}
    return frame


def summary(verdicts):
    """How many claims have which verdict: {verdict: count}, of `evaluate`'s table."""
    counts = verdicts["verdict"].value_counts()
    return {v: int(counts.get(v, 0)) for v in VERDICTS}
