"""Drawings that explain: what each regime does to a layer, and each metric on a small worked example."""

import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from medq import params
from medq.datasets import phantoms
from medq.figures import style
from medq.figures.style import FONT, INK, MUTED, ON_COLOUR, described, empty, regime_colour, styled
from medq.metrics import brier_score, expected_calibration_error, per_class, reliability_curve
from medq.results import class_title, title
from medq.tables import balance, channels

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
    ("FP16", (FLOAT16,) * 4, (FLOAT16,) * 4, "weights kept in 32 bits, loss scaled", ""),
    ("INT8-PTQ, static (CNNs)", None, (INT8,) * 4)
    + ("no training: ranges observed on\na few calibration images", "scales fixed"),
    ("INT8-PTQ, dynamic (transformers)", None, (FLOAT32, INT8, INT8, FLOAT32))
    + ("no training, no calibration", "input rounded image by image"),
    ("INT8-QAT", (FAKE, FAKE, FLOAT32, FAKE), (INT8,) * 4, "rounding simulated, gradients pass through", "as PTQ"),
)
BOXES = (  # place and width of what one layer is drawn as
    (0.0, 0.0, 0.85, "input"),
    (1.35, -0.24, 1.3, "weights"),
    (1.35, 0.12, 1.3, "multiply, add"),
    (3.0, 0.0, 0.85, "output"),
)


@styled
def regime_figure():
    """What each regime does to one layer, while training and as deployed, coloured by number format."""
    figure, axes = style.new(1, 2, height=5.6)
    for side, (axis, heading) in enumerate(zip(axes[0], ("While training", "As deployed"))):
        axis.set(xlim=(-0.1, 4.0), ylim=(len(REGIME_DRAWINGS) - 0.35, -0.75), title=heading)
        axis.axis("off")
        for y, (name, *colours, note, later) in enumerate(REGIME_DRAWINGS):
            axis.text(0, y - 0.41, name, va="center", fontweight="bold")
            if colours[side] is None:
                axis.text(0, y, note, va="center", color=MUTED)
                continue
            for (x, dy, width, text), colour in zip(BOXES, colours[side]):
                _box(axis, x, y + dy - 0.14, width, 0.28, colour)
                axis.text(x + width / 2, y + dy, text, ha="center", va="center", color=ON_COLOUR)
            _arrow(axis, (0.85, y + 0.05), (1.35, y + 0.1))
            _arrow(axis, (2.65, y + 0.1), (3.0, y + 0.05))
            axis.text(1.95, y + 0.29, (note, later)[side], ha="center", va="top", color=MUTED)
    handles = [Patch(facecolor=c, edgecolor=INK, linewidth=0.5, label=t) for c, t in TYPES.items()]
    style.legend(figure, handles=handles, ncols=2, handlelength=1.2)
    return described(
        figure,
        "One layer in each regime, its input, weights, arithmetic and output coloured by number format. FP32: 32-bit floats. "
        "FP16: 16-bit floats, master weights in 32 bits. Static PTQ: no training, ranges from calibration images, then 8-bit "
        "integers. Dynamic PTQ: 8-bit weights and arithmetic, input rounded image by image, 32-bit float in between. QAT: "
        "rounding simulated in 32-bit floats while training, 8-bit integers as deployed.",
    )


def _box(axis, x, y, width, height, colour):
    shape = {"boxstyle": "round,pad=0,rounding_size=0.06", "linewidth": 0.6}
    axis.add_patch(FancyBboxPatch((x, y), width, height, facecolor=colour, edgecolor=INK, **shape))


def _arrow(axis, start, end):
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color=INK, linewidth=0.8))


PATH = (  # what is there, and the files that hold it
    ("Profile", "params/<profile>.yaml"),
    ("Images, folds, audit", "folds.csv, audit.csv"),
    ("Pixels, decoded once", "pixels of the profile's size"),
    ("FP32 and FP16 models", "checkpoint, history.csv"),
    ("INT8 models (PTQ, QAT)", "quantized state, kernels.csv"),
    ("Predictions and timings", "predictions.parquet, latency.csv"),
    ("Metrics, intervals, studies", "results/<profile>/*.csv"),
    ("Tables, figures, claims", "this book"),
)


@styled
def path_figure():
    """The path of the data, from a profile to a page, with the files on the way."""
    figure, axes = style.new(height=4.6, width=4.1)
    axis = axes[0, 0]
    axis.set(xlim=(0, 4.1), ylim=(len(PATH), 0))
    axis.axis("off")
    for y, (what, files) in enumerate(PATH):
        needs = y < 5
        _box(axis, 0.05, y + 0.08, 4.0, 0.68, FLOAT32 if needs else FAKE)
        axis.text(2.05, y + 0.28, what, ha="center", va="center", color=ON_COLOUR, fontweight="bold")
        axis.text(2.05, y + 0.57, files, ha="center", va="center", color=ON_COLOUR)
        if y:
            _arrow(axis, (2.05, y - 0.24), (2.05, y + 0.08))
    steps = "; ".join(f"{what} ({files})" for what, files in PATH)
    return described(
        figure, f"The path of the data, one step after the other: {steps}. Grey steps need images or checkpoints."
    )


@styled
def range_figure():
    """Why one range for all channels fails, measured: widths of channels, noise after batch norm (`tables.channels`)."""
    table = channels()
    channel, width, step = table["channel"], table["width"], table["step"][0]
    figure, axes = style.new(1, 2, height=3.2)
    left, right = axes[0]
    lost = width < step
    left.bar(channel, width, color=np.where(lost, regime_colour("ptq-fbgemm"), FLOAT32), edgecolor=INK, linewidth=0.4)
    left.axhline(step, color=INK, linestyle="--", linewidth=1)
    left.text(0.5, step * 2.2, "one step of\nthe shared range", va="bottom")
    left.set(yscale="log", xlabel="Channel, narrow to wide", ylabel="Standard deviation", title="Before batch norm")
    left.yaxis.set_major_formatter("{x:g}")
    for name, regime, marker in (("unfused", "ptq-fbgemm", "s"), ("fused", "qat-fbgemm", "o")):
        values, colour = table[f"{name}_db"], regime_colour(regime)
        right.plot(channel, values, color=colour, marker=marker, markersize=4, label=f"batch norm {name}")
    right.axhline(0, color=INK, linestyle="--", linewidth=1)
    right.set(xlabel="Channel, narrow to wide", ylabel="Signal to noise (dB)", title="After batch norm")
    right.legend(loc="lower right")
    noise = [f"{(table[f'{name}_db'] < 10).sum()}" for name in ("unfused", "fused")]
    return described(
        figure,
        f"The {len(table)} living channels of a MobileNetV2's first convolution, whose widths differ by a factor of "
        f"{width.max() / width.min():.0f}, share one range of 127 steps. {lost.sum()} of them are narrower than a step. After batch "
        f"norm, {noise[0]} channels have less than 10 dB if it was left unfused, {noise[1]} if it was fused.",
    )


# --- images ---------------------------------------------------------------------------------------


@styled
def balance_figure(results):
    """Bars of the classes' shares, a panel per dataset."""
    frame = balance(results)
    if frame.empty:
        return empty("Class balance: these results name no dataset.")
    figure, axes = style.new(1, len(results.datasets), height=0.9 + 0.28 * frame.groupby("dataset").size().max())
    for axis, name in zip(axes[0], results.datasets):
        part = frame[frame["dataset"] == name].iloc[::-1]
        axis.barh([class_title(name, c) for c in part["class"]], 100 * part["share"], color="#4e8886")
        axis.set(title=title(name), xlabel="Share of images (%)")
        axis.grid(axis="y", visible=False)
    rare = frame.loc[frame.groupby("dataset", sort=False)["share"].idxmin()]
    known = {f"{title(r.dataset)} {class_title(r.dataset, r[1])}": 100 * r.share for r in rare.itertuples(index=False)}
    return described(figure, "Share of each class, by dataset. The rarest, in percent", known, "{:.1f}")


@styled
def phantom_figure():
    """One generated image of each class, a row per phantom dataset."""
    specs = [s for s in params.datasets().values() if s.layout == "phantom"]
    columns = max(len(s.classes) for s in specs)
    figure, axes = style.new(len(specs), columns, height=1.35 * len(specs), abreast=4)
    for line, spec in zip(axes, specs):
        index = phantoms.index(spec)
        for axis in line:
            axis.axis("off")
        for label, (axis, klass) in enumerate(zip(line, spec.class_titles())):
            axis.imshow(phantoms.draw(index.loc[index["label"] == label, "path"].iloc[0]))
            axis.set_title(klass, fontsize=FONT, fontweight="normal", loc="center")
    what = "drawings that stand in for brain MRI slices, chest X-rays and skin lesions"
    return described(figure, f"Generated images, one of each class: {what}.")


# --- metrics, each on a worked example ------------------------------------------------------------

SCORE = np.array([0.95, 0.88, 0.81, 0.78, 0.72, 0.61, 0.55, 0.47, 0.42, 0.34, 0.30, 0.24, 0.17, 0.12, 0.06])
TRUTH = np.array([1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0])
COLOUR, OTHER = regime_colour("fp32-continued"), regime_colour("ptq-qnnpack")


def _two_column(score):
    return np.stack([1 - score, score], axis=1)


@styled
def auroc_explained():
    """AUROC on fifteen images: the share of pairs in the right order, and the curve with the same area."""
    value = per_class(TRUTH, _two_column(SCORE), "auroc")[1]
    pairs = SCORE[TRUTH == 1][:, None] > SCORE[TRUTH == 0]
    figure, (left, right) = _two_panels()
    for truth, colour, marker in ((1, COLOUR, "o"), (0, OTHER, "s")):
        style.point(left, SCORE[TRUTH == truth], TRUTH[TRUTH == truth], colour, marker, 7)
    left.set_yticks([0, 1], ["another class", "the class"])
    left.set(ylim=(-0.7, 1.7), xlim=(0, 1), xlabel="Predicted probability of the class")
    left.set_title(f"{pairs.sum()} of {pairs.size} pairs are in the right order")
    left.grid(axis="y", visible=False)
    x, y = (np.r_[0, np.cumsum(TRUTH == truth)] / (TRUTH == truth).sum() for truth in (0, 1))
    right.fill_between(x, y, color=COLOUR, alpha=0.25, linewidth=0)
    right.plot(x, y, color=COLOUR, clip_on=False)
    right.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1)
    right.set(xlim=(0, 1), ylim=(0, 1.02), title=f"ROC-AUC = {value:.3f}")
    right.set(xlabel="False alarms among the others", ylabel="Found of the class")
    right.text(0.55, 0.12, "chance", color=MUTED)
    return described(
        figure,
        f"Fifteen images by predicted probability, six of the class: {pairs.sum()} of {pairs.size} pairs of one of the class "
        f"and one other are in the right order. Beside it the ROC curve, whose area is {value:.3f}, the same share.",
    )


def _two_panels(height=2.8, ratio=1.35):
    figure, axes = style.new(1, 2, height=height, width_ratios=[ratio, 1])
    return figure, axes[0]


@styled
def auprc_explained():
    """AUPRC on the same images: precision each time an image of the class is found, averaged."""
    value = per_class(TRUTH, _two_column(SCORE), "auprc")[1]
    place, hit = np.arange(1, len(TRUTH) + 1), TRUTH == 1
    precision, recall = np.cumsum(TRUTH) / place, np.cumsum(TRUTH) / TRUTH.sum()
    figure, (left, right) = _two_panels()
    left.bar(place, precision, color=np.where(hit, COLOUR, OTHER), alpha=0.85, edgecolor=INK, linewidth=0.4)
    left.set(xlabel="Images by predicted probability, most probable first", ylabel="Precision so far")
    left.set(ylim=(0, 1.05), title="Purple: images of the class")
    left.set_xticks([1, 5, 10, 15])
    left.grid(axis="x", visible=False)
    curve = np.r_[0, recall[hit]], np.r_[precision[hit][0], precision[hit]]
    right.step(*curve, where="pre", color=COLOUR)
    right.fill_between(*curve, step="pre", color=COLOUR, alpha=0.25, linewidth=0)
    right.axhline(TRUTH.mean(), color=INK, linestyle="--", linewidth=1)
    right.text(0.03, TRUTH.mean() - 0.03, "chance: the class's share", color=MUTED, va="top")
    right.set(
        xlabel="Found of the class", ylabel="Precision", xlim=(0, 1.01), ylim=(0, 1.05), title=f"AUPRC = {value:.3f}"
    )
    return described(
        figure,
        "The same fifteen images in order of predicted probability with the precision so far, and the precision-recall curve. "
        f"The mean precision at the six images of the class is {value:.3f}.",
    )


@styled
def ece_explained():
    """ECE on 200 simulated images in five bins: gaps between confidence and frequency, weighted."""
    rng = np.random.default_rng(7)
    confidence = rng.beta(4, 2, 200)
    truth = (rng.random(200) < confidence**1.7).astype(int)
    both = _two_column(confidence)
    curve = reliability_curve(truth, both, n_bins=5, kind="one-vs-rest")
    f, c, n = curve.frequency[1], curve.confidence[1], curve.count[1]
    parts, middles, shown = np.nan_to_num(n * np.abs(f - c) / n.sum()), np.arange(5) / 5 + 0.1, n > 0
    figure, (left, right) = _two_panels(2.9, 1.2)
    left.bar(middles[shown], f[shown], width=0.19, color=COLOUR, alpha=0.75, label="observed frequency")
    gap = {"width": 0.19, "facecolor": "none", "edgecolor": OTHER, "hatch": "///"}
    left.bar(middles[shown], (c - f)[shown], bottom=f[shown], label="gap to mean confidence", **gap)
    left.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1)
    left.set(xlabel="Predicted probability, in bins", ylabel="Frequency of the class", xlim=(0, 1), ylim=(0, 1))
    left.legend(loc="upper left")
    right.bar(middles, parts, width=0.19, color=OTHER, edgecolor=INK, linewidth=0.4)
    for x, part, images in zip(middles, parts, n):
        right.text(x, part + 0.002, f"{images}", ha="center", va="bottom")
    right.set(
        xlabel="Predicted probability, in bins", ylabel="Gap × share of images", title=f"Sum: ECE = {parts.sum():.3f}"
    )
    right.set(xlim=(0, 1), ylim=(0, parts.max() * 1.2))
    style.few_ticks(right.yaxis, 4)
    return described(
        figure,
        "Two hundred simulated images in five bins of predicted probability. In each bin the observed frequency falls short of "
        f"the mean confidence; the gaps, weighted by the bins' images, add up to an ECE of {parts.sum():.3f} (averaged over "
        f"both classes {expected_calibration_error(truth, both, n_bins=5):.3f}).",
    )


@styled
def brier_explained():
    """Brier score of three images with three classes: squared distance from the truth, summed."""
    probability = np.array([[0.85, 0.10, 0.05], [0.40, 0.35, 0.25], [0.05, 0.15, 0.80]])
    truth = np.array([0, 0, 1])
    value = brier_score(truth, probability)
    figure, axes = style.new(1, 3, height=2.6, sharey=True)
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
    axes[0, 1].set_xlabel(f"Bars: predicted; diamonds: truth. Mean of the three: Brier score = {value:.3f}")
    return described(
        figure,
        "Three images with three classes, predicted probabilities as bars and the truth "
        "as diamonds. The squared distances, summed over classes, average to a Brier "
        f"score of {value:.3f}; 0 is perfect, 2 the worst.",
    )


@styled
def decisions_explained():
    """A threshold fixed on one model, and twelve made-up images that cross it under another."""
    before = np.array([0.95, 0.86, 0.79, 0.71, 0.62, 0.55, 0.47, 0.41, 0.33, 0.24, 0.15, 0.08])
    after = np.array([0.90, 0.62, 0.81, 0.43, 0.66, 0.35, 0.52, 0.58, 0.20, 0.30, 0.09, 0.12])
    figure, axes = style.new(height=3.2, width=4.1)
    axis, up, down = axes[0, 0], (before < 0.5) & (after >= 0.5), (before >= 0.5) & (after < 0.5)
    groups = ((~up & ~down, "#8a8f99", "o", "same side"), (down, "#c74953", "v", "no longer flagged"))
    for mask, colour, marker, name in (*groups, (up, "#3f7fbf", "^", "newly flagged")):
        axis.plot(before[mask], after[mask], marker, color=colour, label=f"{name} ({mask.sum()})", markersize=8)
    axis.axvline(0.5, color=MUTED, linestyle=":")
    axis.axhline(0.5, color=MUTED, linestyle=":")
    axis.set(xlabel="Probability under FP32", ylabel="Probability under INT8", xlim=(0, 1), ylim=(0, 1.02))
    axis.legend(loc="upper left")
    crossed = f"{up.sum()} cross the threshold upwards, {down.sum()} downwards"
    return described(figure, f"Twelve example images by their probability under two models: {crossed}.")
