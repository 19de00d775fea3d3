"""Every figure of the book: functions of a result folder that return a figure with its alternative text.

`figure1` to `figure7` are the paper's, the others go beyond it. `save` writes SVG.
"""

from medq.figures.attention import attention_figure, attention_gallery
from medq.figures.beyond import ablation_figure, confusion_matrix, peers_figure, recipe_figure, reliability
from medq.figures.beyond import remedies_figure, sqnr_figure, summary_figure, training_curve
from medq.figures.paper import figure1, figure2, figure2_interactive, figure3, figure4, figure4_interactive, figure5
from medq.figures.paper import figure6, figure7
from medq.figures.style import BACKBONE_STYLES, REGIME_COLOURS, FontWarning, alt_text, backbone_style, narrow
from medq.figures.style import regime_colour, save

__all__ = [name for name in dir() if not name.startswith("_")]
