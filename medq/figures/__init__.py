"""Every figure of the book: functions of a result folder that return a figure with its alternative text.

`figure1` to `figure7` are the paper's, the others go beyond it or explain. `save` writes SVG.
"""

from medq.figures.attention import attention_figure, attention_gallery
from medq.figures.beyond import (
    ablation_figure,
    before_after,
    confusion_matrix,
    matrix_figure,
    peers_figure,
    reliability,
    remedies_figure,
    sqnr_figure,
    summary_figure,
    training_curve,
)
from medq.figures.explain import auprc_explained, auroc_explained, brier_explained, ece_explained, regime_figure
from medq.figures.paper import (
    figure1,
    figure2,
    figure2_interactive,
    figure3,
    figure4,
    figure4_interactive,
    figure5,
    figure6,
    figure7,
)
from medq.figures.style import BACKBONE_STYLES, REGIME_COLOURS, alt_text, backbone_style, regime_colour, save

__all__ = [
    "BACKBONE_STYLES",
    "REGIME_COLOURS",
    "ablation_figure",
    "alt_text",
    "attention_figure",
    "attention_gallery",
    "auprc_explained",
    "auroc_explained",
    "backbone_style",
    "before_after",
    "brier_explained",
    "confusion_matrix",
    "ece_explained",
    "figure1",
    "figure2",
    "figure2_interactive",
    "figure3",
    "figure4",
    "figure4_interactive",
    "figure5",
    "figure6",
    "figure7",
    "matrix_figure",
    "peers_figure",
    "regime_colour",
    "regime_figure",
    "reliability",
    "remedies_figure",
    "save",
    "sqnr_figure",
    "summary_figure",
    "training_curve",
]
