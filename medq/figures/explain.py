"""Drawings that explain: what each regime does to a layer, and each metric on a small worked example."""

import numpy as np

from medq.figures.style import FONT, INK, MUTED, ON_COLOUR, described, few_ticks, new, regime_colour, styled

FLOAT32, FLOAT16, INT8, FAKE = "#8d94a8", "#34bcf6", "#f18102", "#a0b88d"
TYPES = {
    FLOAT32: "32-bit float",
    FLOAT16: "16-bit float",
    INT8: "8-bit integer",
    FAKE: "32-bit float, rounded to 256 levels",
}


# --- regimes --------------------------------------------------------------------------------------

REGIME_DRAWINGS = (  # name; colours of input, weights, arithmetic, output in training and deployed; two notes
    ("FP32", (FLOAT32,) * 4, (FLOAT32,) * 4, "", ""),
    ("FP16", (FLOAT16, FLOAT16, FLOAT16, FLOAT16), (FLOAT16,) * 4, "weights kept in 32 bits, loss scaled", ""),
    (
        "INT8-PTQ, static\n(CNNs)",
        None,
        (INT8,) * 4,
        "no training: ranges observed on\na few calibration images",
        "scales fixed",
    ),
    (
        "INT8-PTQ, dynamic\n(transformers)",
        None,
        (FLOAT32, INT8, INT8, FLOAT32),
        "no training, no calibration",
        "input rounded image by image",
    ),
    ("INT8-QAT", (FAKE, FAKE, FLOAT32, FAKE), (INT8,) * 4, "rounding simulated, gradients pass through", "as PTQ"),
)


@styled
def regime_figure():
    """What each regime does to one layer, while training and as deployed, coloured by number format."""
    from matplotlib.patches import Patch

    figure, axes = new(height=5.6)
    axis = axes[0, 0]
    axis.set(xlim=(0, 10.4), ylim=(len(REGIME_DRAWINGS) - 0.35, -0.75))
    axis.axis("off")
    for x, text in ((4.0, "while training"), (8.3, "as deployed")):
        axis.text(x, -0.6, text, ha="center", va="center", fontweight="bold")
    for y, (name, training, deployed, note, later) in enumerate(REGIME_DRAWINGS):
        axis.text(0, y, name, va="center", fontweight="bold")
        _layer(axis, 2.1, y, training, note)
        _layer(axis, 6.4, y, deployed, later)
        axis.axhline(y + 0.53, color=MUTED, linewidth=0.4)
    figure.legend(
        handles=[Patch(facecolor=c, edgecolor=INK, linewidth=0.5, label=t) for c, t in TYPES.items()],
        loc="outside lower center",
        ncols=2,
        handlelength=1.2,
    )
    return described(
        figure,
        "Drawing of one layer in each regime, its input, weights, arithmetic and output "
        "coloured by number format. FP32: all 32-bit floats. FP16: 16-bit floats, "
        "master weights in 32 bits. Static PTQ: no training, ranges from calibration "
        "images, then all 8-bit integers. Dynamic PTQ: 8-bit weights and arithmetic, "
        "input rounded image by image, 32-bit float in between. QAT: rounding simulated "
        "in 32-bit floats while training, 8-bit integers as deployed.",
    )


def _layer(axis, x, y, colours, note):
    """Input, weights above arithmetic, output, with arrows; `colours` None draws only the note."""
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

    if colours is None:
        axis.text(x + 1.9, y, note, ha="center", va="center", color=MUTED)
        return
    boxes = ((0.0, 0.0, "input"), (1.35, -0.24, "weights"), (1.35, 0.12, "multiply, add"), (3.0, 0.0, "output"))
    widths = (0.85, 1.3, 1.3, 0.85)
    for (dx, dy, text), width, colour in zip(boxes, widths, colours):
        axis.add_patch(
            FancyBboxPatch(
                (x + dx, y + dy - 0.14),
                width,
                0.28,
                facecolor=colour,
                edgecolor=INK,
                linewidth=0.6,
                boxstyle="round,pad=0,rounding_size=0.06",
            )
        )
        axis.text(x + dx + width / 2, y + dy, text, ha="center", va="center", color=ON_COLOUR)
    for start, end in (((0.85, 0.05), (1.35, 0.1)), ((2.65, 0.1), (3.0, 0.05))):
        axis.add_patch(
            FancyArrowPatch(
                (x + start[0], y + start[1]),
                (x + end[0], y + end[1]),
                arrowstyle="-|>",
                mutation_scale=8,
                color=INK,
                linewidth=0.8,
            )
        )
    axis.text(x + 1.95, y + 0.31, note, ha="center", va="top", color=MUTED)


# --- metrics, each on a worked example ------------------------------------------------------------

POSITIVE = np.array([0.95, 0.88, 0.81, 0.72, 0.55, 0.34])
NEGATIVE = np.array([0.78, 0.61, 0.47, 0.42, 0.30, 0.24, 0.17, 0.12, 0.06])
COLOUR, OTHER = regime_colour("fp32-continued"), regime_colour("ptq-qnnpack")


def _example():
    score = np.concatenate([POSITIVE, NEGATIVE])
    truth = np.r_[np.ones(len(POSITIVE), int), np.zeros(len(NEGATIVE), int)]
    order = np.argsort(-score)
    return score[order], truth[order]


def _two_column(score):
    return np.stack([1 - score, score], axis=1)


def _strip(axis, score, truth):
    """The example's images on the axis of predicted probability, the two truths on two lines."""
    for value, y, colour, marker in ((1, 1, COLOUR, "o"), (0, 0, OTHER, "s")):
        axis.plot(
            score[truth == value],
            np.full((truth == value).sum(), y),
            marker,
            color=colour,
            markersize=7,
            markeredgecolor=INK,
            markeredgewidth=0.5,
        )
    axis.set_yticks([0, 1], ["another class", "the class"])
    axis.set(ylim=(-0.7, 1.7), xlim=(0, 1), xlabel="Predicted probability of the class")
    axis.grid(axis="y", visible=False)


@styled
def auroc_explained():
    """AUROC on fifteen images: the share of pairs in the right order, and the curve with the same area."""
    from medq.metrics import per_class

    score, truth = _example()
    value = per_class(truth, _two_column(score), "auroc")[1]
    right, pairs = int((POSITIVE[:, None] > NEGATIVE[None]).sum()), POSITIVE.size * NEGATIVE.size
    figure, axes = new(1, 2, height=2.8, width_ratios=[1.35, 1])
    _strip(axes[0, 0], score, truth)
    axes[0, 0].set_title(f"{right} of {pairs} pairs stand in the right order")
    x, y = np.r_[0, np.cumsum(truth == 0)] / NEGATIVE.size, np.r_[0, np.cumsum(truth == 1)] / POSITIVE.size
    axis = axes[0, 1]
    axis.fill_between(x, y, color=COLOUR, alpha=0.25, linewidth=0)
    axis.plot(x, y, color=COLOUR, clip_on=False)
    axis.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1)
    axis.set(
        xlabel="False alarms among the others",
        ylabel="Found of the class",
        title=f"ROC-AUC = {value:.3f}",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    axis.text(0.55, 0.12, "chance", color=MUTED)
    return described(
        figure,
        f"Fifteen images by predicted probability, six of the class: {right} of {pairs} "
        "pairs of one of the class and one other stand in the right order. Beside it "
        f"the ROC curve, whose area is {value:.3f}, the same share.",
    )


@styled
def auprc_explained():
    """AUPRC on the same images: precision each time an image of the class is found, averaged."""
    from medq.metrics import per_class

    score, truth = _example()
    value = per_class(truth, _two_column(score), "auprc")[1]
    precision = np.cumsum(truth) / np.arange(1, len(truth) + 1)
    figure, axes = new(1, 2, height=2.8, width_ratios=[1.35, 1])
    axis = axes[0, 0]
    axis.bar(
        range(1, len(truth) + 1),
        precision,
        color=[COLOUR if t else OTHER for t in truth],
        alpha=0.85,
        edgecolor=INK,
        linewidth=0.4,
    )
    axis.set(
        xlabel="Images by predicted probability, most probable first",
        ylabel="Precision so far",
        ylim=(0, 1.05),
        title="Purple: images of the class",
    )
    axis.set_xticks([1, 5, 10, 15])
    axis.grid(axis="x", visible=False)
    axis = axes[0, 1]
    recall = np.cumsum(truth) / truth.sum()
    hit = truth == 1
    axis.step(np.r_[0, recall[hit]], np.r_[precision[hit][0], precision[hit]], where="pre", color=COLOUR)
    axis.fill_between(
        np.r_[0, recall[hit]],
        np.r_[precision[hit][0], precision[hit]],
        step="pre",
        color=COLOUR,
        alpha=0.25,
        linewidth=0,
    )
    axis.axhline(truth.mean(), color=INK, linestyle="--", linewidth=1)
    axis.text(0.03, truth.mean() - 0.03, "chance: the class's share", color=MUTED, va="top")
    axis.set(
        xlabel="Found of the class", ylabel="Precision", title=f"AUPRC = {value:.3f}", xlim=(0, 1.01), ylim=(0, 1.05)
    )
    return described(
        figure,
        "The same fifteen images in order of predicted probability with the precision "
        "so far, and the precision-recall curve. The mean precision at the six images "
        f"of the class is {value:.3f}.",
    )


@styled
def ece_explained():
    """ECE on 200 simulated images in five bins: gaps between confidence and frequency, weighted."""
    from medq.metrics import expected_calibration_error, reliability_curve

    rng = np.random.default_rng(7)
    confidence = rng.beta(4, 2, 200)
    truth = (rng.random(200) < confidence**1.7).astype(int)
    both = _two_column(confidence)
    curve = reliability_curve(truth, both, n_bins=5, kind="one-vs-rest")
    f, c, n = curve.frequency[1], curve.confidence[1], curve.count[1]
    value = float(np.nansum(n * np.abs(f - c)) / n.sum())
    figure, axes = new(1, 2, height=2.9, width_ratios=[1.2, 1])
    axis, middles = axes[0, 0], np.arange(5) / 5 + 0.1
    shown = n > 0
    axis.bar(middles[shown], f[shown], width=0.19, color=COLOUR, alpha=0.75, label="observed frequency")
    axis.bar(
        middles[shown],
        (c - f)[shown],
        bottom=f[shown],
        width=0.19,
        facecolor="none",
        edgecolor=OTHER,
        hatch="///",
        label="gap to mean confidence",
    )
    axis.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1)
    axis.set(xlabel="Predicted probability, in bins", ylabel="Frequency of the class", xlim=(0, 1), ylim=(0, 1))
    axis.legend(loc="upper left")
    axis = axes[0, 1]
    parts = np.nan_to_num(n * np.abs(f - c) / n.sum())
    axis.bar(middles, parts, width=0.19, color=OTHER, edgecolor=INK, linewidth=0.4)
    for x, part, images in zip(middles, parts, n):
        axis.text(x, part + 0.002, f"{images}", ha="center", va="bottom")
    axis.set(
        xlabel="Predicted probability, in bins",
        ylabel="Gap × share of images",
        xlim=(0, 1),
        ylim=(0, parts.max() * 1.2),
        title=f"Sum: ECE = {value:.3f}",
    )
    few_ticks(axis.yaxis, 4)
    both_sides = expected_calibration_error(truth, both, n_bins=5)
    return described(
        figure,
        "Two hundred simulated images in five bins of predicted probability. In each "
        "bin the observed frequency falls short of the mean confidence; the gaps, "
        f"weighted by the bins' images, add up to an ECE of {value:.3f} (averaged over "
        f"both classes {both_sides:.3f}).",
    )


@styled
def brier_explained():
    """Brier score of three images with three classes: squared distance from the truth, summed."""
    from medq.metrics import brier_score

    probability = np.array([[0.85, 0.10, 0.05], [0.40, 0.35, 0.25], [0.05, 0.15, 0.80]])
    truth = np.array([0, 0, 1])
    value = brier_score(truth, probability)
    figure, axes = new(1, 3, height=2.6, sharey=True)
    for k, axis in enumerate(axes[0]):
        goal = np.eye(3)[truth[k]]
        axis.bar(range(3), probability[k], color=COLOUR, alpha=0.75, width=0.6)
        axis.plot(range(3), goal, "D", color=OTHER, markeredgecolor=INK, markersize=8, clip_on=False)
        for c in range(3):
            axis.plot([c, c], [probability[k, c], goal[c]], color=INK, linewidth=1)
        part = ((probability[k] - goal) ** 2).sum()
        kind = ("right and sure", "right, unsure", "wrong and sure")[k]
        axis.set(title=f"{kind}: {part:.3f}", ylim=(0, 1.05))
        axis.set_xticks(range(3), ["A", "B", "C"])
        axis.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel("Probability")
    axes[0, 1].set_xlabel(
        f"Bars: predicted; diamonds: truth. Mean of the three: Brier score = {value:.3f}", fontsize=FONT
    )
    return described(
        figure,
        "Three images with three classes, predicted probabilities as bars and the truth "
        "as diamonds. The squared distances, summed over classes, average to a Brier "
        f"score of {value:.3f}; 0 is perfect, 2 the worst.",
    )
