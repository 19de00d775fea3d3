"""The one visual language: colours of regimes, colours and markers of backbones, sizes, alternative text.

Colours were searched for the largest smallest CIEDE2000 difference between any two, seen with normal vision
and with each of the three dichromacies (Machado et al., 2009), at a lightness that stands out from a white
and from a dark page. Ink and grid are greys, everything else is a hue, so that a dark page can exchange greys
and leave the hues alone.
"""

import contextlib
import textwrap
import warnings
from contextvars import ContextVar
from functools import cache, wraps

import matplotlib.style
import numpy as np
from matplotlib import font_manager
from matplotlib.category import StrCategoryLocator
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, MaxNLocator

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
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # a title may hold dollar signs
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "figure.constrained_layout.use": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 6,
    "svg.fonttype": "path",
    "svg.hashsalt": "medq",
    **dict.fromkeys(("figure.facecolor", "savefig.facecolor", "axes.facecolor"), PAPER),
    **dict.fromkeys(("axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), FONT),
}


def backbone_style(name):
    """Colour and marker of a backbone; one that is not among the paper's eight gets a spare by its name."""
    return BACKBONE_STYLES.get(name) or SPARE[sum(name.encode()) % len(SPARE)]


def regime_colour(name):
    """Colour of a regime or of the control; muted grey for a name that is neither."""
    return REGIME_COLOURS.get(name, MUTED)


class FontWarning(UserWarning):
    """Signs of a label for which no font is installed."""


def styled(function):
    """Draw in the project's style; the figure belongs to nobody's pyplot state.

    Signs that DejaVu Sans lacks, as those of Chinese or Hindi, are drawn in an installed font that has them. Without
    one they are written as code points, with a warning.
    """

    @wraps(function)
    def draw(*args, **options):
        with matplotlib.style.context(["default", RC]):
            figure = function(*args, **options)
            missing = _signs(figure) - _covered(RC["font.family"]) if isinstance(figure, Figure) else set()
            if not missing:
                return figure
            families = _families(frozenset(missing))
            with matplotlib.rc_context({"font.family": [RC["font.family"], *families]}):
                figure = function(*args, **options)
        undrawn = missing.difference(*map(_covered, families))
        if undrawn:
            signs = "".join(sorted(undrawn))
            warnings.warn(f"no installed font has {signs!r}: install one, such as Noto Sans CJK", FontWarning, 2)
            _signs(figure, {ord(sign): sign.encode("ascii", "backslashreplace").decode() for sign in undrawn})
        return figure

    return draw


NARROW = 3.75  # inches: the width of a phone
_narrow = ContextVar("narrow", default=False)


@contextlib.contextmanager
def narrow():
    """Draw figures for a phone: panels below each other, legends in two columns, long lines broken."""
    token = _narrow.set(True)
    try:
        yield
    finally:
        _narrow.reset(token)


def new(n_rows=1, n_columns=1, *, height, width=WIDTH, abreast=1, **options):
    """A figure of `width` by `height` inches and its axes [n_rows, n_columns].

    For a phone (`narrow`) at most `abreast` columns stand side by side; the others follow below.
    """
    if not _narrow.get():
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(n_rows, n_columns, squeeze=False, **options)
    groups = -(-n_columns // abreast)
    figure = Figure(figsize=(min(width, NARROW), 1 + (height - 0.6) * groups), layout="constrained")
    ratios = list(options.get("height_ratios", [1] * n_rows)) * groups
    grid = figure.add_gridspec(n_rows * groups, min(abreast, n_columns), height_ratios=ratios)
    axes = np.empty((n_rows, n_columns), dtype=object)
    for c in range(n_columns):
        for r in range(n_rows):
            axes[r, c] = figure.add_subplot(grid[c // abreast * n_rows + r, c % abreast])
    for (r, c), axis in np.ndenumerate(axes):
        for side in ("x", "y"):
            first = {True: (0, 0), "row": (r, 0), "col": (0, c)}.get(options.get(f"share{side}"), (r, c))
            if first != (r, c):
                getattr(axis, f"share{side}")(axes[first])
    figure.medq_rows = axes
    return figure, axes


def _signs(figure, instead=None):
    """All signs in a figure's texts, which are replaced as the mapping `instead` says (see `str.translate`)."""
    found = set()
    for text in figure.findobj(Text):
        found |= set(text.get_text())
        text.set_text(text.get_text().translate(instead or {}))
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        # Labels of our own are made anew whenever the figure is drawn.
        if isinstance(axis.get_major_locator(), (FixedLocator, StrCategoryLocator)):
            labels = [label.get_text() for label in axis.get_ticklabels()]
            found |= set("".join(labels))
            if instead:
                axis.set_ticks(axis.get_majorticklocs(), [label.translate(instead) for label in labels])
    return {sign for sign in found if sign.isprintable() and not sign.isspace()}


@cache
def _covered(family):
    """The signs for which a font family has glyphs; none if its font cannot be opened."""
    fonts = [font for font in font_manager.fontManager.ttflist if font.name == family]
    try:
        upright = min(fonts, key=lambda font: (font.style != "normal", abs(font.weight - 400)))
        return frozenset(map(chr, FT2Font(upright.fname).get_charmap()))
    except (RuntimeError, OSError, ValueError):
        return frozenset()


@cache
def _families(missing):
    """Installed font families that together have most of the signs `missing`, the fewest possible first."""
    names = sorted({font.name for font in font_manager.fontManager.ttflist if "Last Resort" not in font.name})
    chosen = []
    while names and missing:
        best = max(names, key=lambda name: len(missing & _covered(name)))
        if not missing & _covered(best):
            break
        chosen.append(best)
        missing -= _covered(best)
    return chosen


def described(figure, text, values=None, form="{:.3f}"):
    """Give a figure its alternative text and return it; for a phone, break what is too long for the page.

    `values` are numbers by name that follow the text, each in the format `form`.
    """
    figure.set_label(text if values is None else listing(text, values, form))
    if _narrow.get():
        for row in getattr(figure, "medq_rows", ()):
            label = row[0].yaxis.label
            for axis in row[1:]:
                axis.set_ylabel(axis.get_ylabel() or label.get_text(), fontweight=label.get_fontweight())
        for axis in figure.axes:
            for text in (axis.title, axis._left_title, axis.xaxis.label, *axis.texts):
                text.set_text("\n".join(textwrap.fill(line, 30) for line in text.get_text().split("\n")))
    return figure


def listing(text, values, form="{:.3f}"):
    """`<text>: a 0.123, b 0.456.` of {name: number}."""
    return f"{text}: {', '.join(f'{name} {form.format(value)}' for name, value in values.items()) or 'missing'}."


def alt_text(figure):
    """Alternative text of a figure of this package, matplotlib's or plotly's."""
    return figure.get_label() if isinstance(figure, Figure) else figure.layout.meta["alt"]


def save(figure, path):
    """Write a figure as SVG, the same bytes each time, with its alternative text as description."""
    with matplotlib.rc_context({"svg.hashsalt": "medq", "svg.fonttype": "path"}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Description": alt_text(figure)})


def empty(message):
    """A figure that only says what is missing."""
    figure = Figure(figsize=(WIDTH, 1.2), layout="constrained")
    figure.text(0.5, 0.5, message, ha="center", va="center", color=MUTED, wrap=True)
    return described(figure, message)


def backbone_legend(figure, backbones, *, columns=4, extra=()):
    """One legend for the whole figure, below it: the backbones' colours and markers, then `extra` handles."""
    edge = {"markeredgecolor": INK, "markeredgewidth": 0.5}
    handles = [handle(title(name), *backbone_style(name), **edge) for name in backbones]
    legend(figure, handles=[*handles, *extra], ncols=columns, handletextpad=0.4, columnspacing=1.4)


def legend(figure, *, ncols, title="", **options):
    """The legend of a whole figure, below it: in `ncols` columns, in two at most on a phone."""
    if _narrow.get():
        ncols, title = min(2, ncols), textwrap.fill(title, 46)
    figure.legend(loc="outside lower center", ncols=ncols, title=title or None, **options)


def few_ticks(axis, n=4, *, whole=False):
    """At most `n` ticks (at whole numbers), so that labels never touch."""
    axis.set_major_locator(MaxNLocator(n, steps=[1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10], integer=whole))


def name_rows(axes, names):
    """Give panels that share their y axis a row for each name, the first on top."""
    names = list(names)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    for axis in axes:
        axis.grid(axis="y", visible=False)


def step(backbone, backbones):
    """How far below the middle of a row the marker of a backbone is drawn, so that markers do not hide each other."""
    return 0.5 * (backbones.index(backbone) / max(1, len(backbones) - 1) - 0.5)


def absent(axis):
    """Say in an empty panel that its data is missing, and take its scale away."""
    axis.text(0.5, 0.5, "missing", transform=axis.transAxes, ha="center", va="center", color=MUTED)
    axis.tick_params(axis="x", bottom=False, labelbottom=False)  # ticks may be shared with the panels beside
    axis.grid(visible=False)


def joined(words):
    """'a, b and c'."""
    words = list(words)
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def point(axis, x, y, colour, marker, size=5, **options):
    """One marker with a thin dark edge."""
    edge = {"markeredgecolor": INK, "markeredgewidth": 0.5, "linestyle": "none"} | options
    axis.plot(x, y, marker, color=colour, markersize=size, **edge)


def handle(label, colour=MUTED, marker="o", **options):
    """An entry of a legend that stands for a marker."""
    look = {"color": colour, "marker": marker, "linestyle": "none", "markersize": 7} | options
    return Line2D([], [], **look, label=label)
