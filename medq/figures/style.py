"""The one visual language: colours of regimes, colours and markers of backbones, sizes, alternative text.

Colours were searched for the largest smallest CIEDE2000 difference between any two, seen with normal vision
and with each of the three dichromacies (Machado et al., 2009), at a lightness that stands out from a white
and from a dark page. Ink and grid are greys, everything else is a hue, so that a dark page can exchange greys
and leave the hues alone.
"""

from matplotlib.figure import Figure

from medq.regimes import REGIMES
from medq.results import title

REGIME_COLOURS = {name: row.colour for name, row in REGIMES.items()}
BACKBONE_STYLES = {  # colour, marker
    "resnet18": ("#f08d33", "o"),
    "resnet50": ("#c74953", "s"),
    "densenet121": ("#56b7d9", "^"),
    "efficientnet_b0": ("#98b290", "D"),
    "mobilenetv2": ("#8c2496", "v"),
    "convnext_tiny": ("#635505", "P"),
    "swin_tiny": ("#4e8886", "X"),
    "vit_base": ("#8666fe", "*"),
}
SPARE = (("#b06a9a", "<"), ("#3f7fbf", ">"), ("#a38a3c", "h"), ("#7a4a2b", "d"))  # backbones of a user's own
INK, MUTED, GRID, PAPER = "#222222", "#666666", "#d4d4d4", "#ffffff"
ON_COLOUR, ON_DARK = "#0a1420", "#fff5ea"  # text on a coloured tile keeps its shade on a dark page
WIDTH = 7.6  # inches: the width of a page of the book, so that points are points when shown
FONT = 9.0  # points, the smallest that is used

RC = {
    "figure.dpi": 96,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "font.family": "DejaVu Sans",
    "font.size": FONT,
    "axes.titlesize": 10,
    "axes.labelsize": FONT,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "legend.fontsize": FONT,
    "figure.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 6,
    "svg.fonttype": "path",
    "svg.hashsalt": "medq",
    "figure.constrained_layout.use": True,
    "axes.formatter.useoffset": False,
}


def backbone_style(name):
    """Colour and marker of a backbone; one that is not among the paper's eight gets a spare by its name."""
    return BACKBONE_STYLES.get(name) or SPARE[sum(name.encode()) % len(SPARE)]


def regime_colour(name):
    """Colour of a regime or of the control; muted grey for a name that is neither."""
    return REGIME_COLOURS.get(name, MUTED)


def styled(function):
    """Draw in the project's style; the figure belongs to nobody's pyplot state."""
    from functools import wraps

    @wraps(function)
    def draw(*args, **options):
        import matplotlib.style

        with matplotlib.style.context(["default", RC]):
            return function(*args, **options)

    return draw


def new(n_rows=1, n_columns=1, *, height, width=WIDTH, **options):
    """A figure of `width` by `height` inches and its axes [n_rows, n_columns]."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False, **options)
    return figure, axes


def described(figure, alt):
    """Give a figure its alternative text and return it."""
    figure.set_label(" ".join(alt.split()))
    return figure


def alt_text(figure):
    """Alternative text of a figure of this package, matplotlib's or plotly's."""
    return figure.get_label() if isinstance(figure, Figure) else figure.layout.meta["alt"]


def save(figure, path):
    """Write a figure as SVG, the same bytes each time, with its alternative text as description."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "medq", "svg.fonttype": "path"}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Description": alt_text(figure)})


def empty(message, *, height=1.2):
    """A figure that only says what is missing."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.text(0.5, 0.5, message, ha="center", va="center", color=MUTED, wrap=True)
    return described(figure, message)


def backbone_legend(figure, backbones, *, columns=4, extra=(), line=False):
    """One legend for the whole figure, below it: the backbones' colours and markers, then `extra` handles."""
    from matplotlib.lines import Line2D

    handles = []
    for name in backbones:
        colour, marker = backbone_style(name)
        handles.append(
            Line2D(
                [],
                [],
                color=colour,
                marker=marker,
                linestyle="-" if line else "none",
                markeredgecolor=INK,
                markeredgewidth=0.5,
                label=title(name),
            )
        )
    handles += list(extra)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handletextpad=0.4, columnspacing=1.4)


def few_ticks(axis, n=4, *, whole=False):
    """At most `n` ticks (at whole numbers), so that labels never touch."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(n, steps=[1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10], integer=whole))


def absent(axis):
    """Say in an empty panel that its data is missing, and take its scale away."""
    axis.text(0.5, 0.5, "missing", transform=axis.transAxes, ha="center", va="center", color=MUTED)
    axis.tick_params(axis="x", bottom=False, labelbottom=False)  # ticks may be shared with the panels beside
    axis.grid(visible=False)


def joined(words):
    """'a, b and c'."""
    words = list(words)
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
