"""Drawings that explain: what each regime does to a layer, and each metric on a small worked example."""

import numpy as np

from medq.figures.style import (
    FONT,
    INK,
    MUTED,
    ON_COLOUR,
    described,
    empty,
    few_ticks,
    legend,
    listed,
    new,
    point,
    regime_colour,
    styled,
)
from medq.results import class_title, title
from medq.tables import balance

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
    (
        "INT8-PTQ, static (CNNs)",
        None,
        (INT8,) * 4,
        "no training: ranges observed on\na few calibration images",
        "scales fixed",
    ),
    (
        "INT8-PTQ, dynamic (transformers)",
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

    figure, axes = new(1, 2, height=5.6)
    for side, (axis, heading) in enumerate(zip(axes[0], ("While training", "As deployed"))):
        axis.set(xlim=(-0.1, 4.0), ylim=(len(REGIME_DRAWINGS) - 0.35, -0.75), title=heading)
        axis.axis("off")
        for y, (name, *colours, note, later) in enumerate(REGIME_DRAWINGS):
            axis.text(0, y - 0.41, name, va="center", fontweight="bold")
            _layer(axis, 0, y, colours[side], (note, later)[side])
    handles = [Patch(facecolor=c, edgecolor=INK, linewidth=0.5, label=t) for c, t in TYPES.items()]
    legend(figure, handles=handles, ncols=2, handlelength=1.2)
    return described(
        figure,
        "One layer in each regime, its input, weights, arithmetic and output coloured by number format. FP32: 32-bit floats. "
        "FP16: 16-bit floats, master weights in 32 bits. Static PTQ: no training, ranges from calibration images, then 8-bit "
        "integers. Dynamic PTQ: 8-bit weights and arithmetic, input rounded image by image, 32-bit float in between. QAT: "
        "rounding simulated in 32-bit floats while training, 8-bit integers as deployed.",
    )


def _layer(axis, x, y, colours, note):
    """Input, weights above arithmetic, output, with arrows; `colours` None draws only the note."""
    if colours is None:
        axis.text(x, y, note, va="center", color=MUTED)
        return
    boxes = ((0.0, 0.0, "input"), (1.35, -0.24, "weights"), (1.35, 0.12, "multiply, add"), (3.0, 0.0, "output"))
    for (dx, dy, text), width, colour in zip(boxes, (0.85, 1.3, 1.3, 0.85), colours):
        _box(axis, x + dx, y + dy - 0.14, width, 0.28, colour)
        axis.text(x + dx + width / 2, y + dy, text, ha="center", va="center", color=ON_COLOUR)
    _arrow(axis, (x + 0.85, y + 0.05), (x + 1.35, y + 0.1))
    _arrow(axis, (x + 2.65, y + 0.1), (x + 3.0, y + 0.05))
    axis.text(x + 1.95, y + 0.29, note, ha="center", va="top", color=MUTED)


def _box(axis, x, y, width, height, colour):
    from matplotlib.patches import FancyBboxPatch

    shape = {"boxstyle": "round,pad=0,rounding_size=0.06", "linewidth": 0.6}
    axis.add_patch(FancyBboxPatch((x, y), width, height, facecolor=colour, edgecolor=INK, **shape))


def _arrow(axis, start, end):
    from matplotlib.patches import FancyArrowPatch

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
    figure, axes = new(height=4.6, width=4.1)
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
    """Why one range for all channels fails: step and widths of channels, and the noise left after batch norm."""
    rng, widths = np.random.default_rng(3), np.geomspace(0.02, 8, 16)
    signal = rng.normal(size=(4000, 16))

    def decibels(values):
        step = 2 * np.abs(values).max() / 127  # one step of the 7 bits that fbgemm uses
        error = np.round(values / step) * step - values
        return step, 10 * np.log10((values**2).mean(0) / (error**2).mean(0))

    (step, unfused), (_, fused) = decibels(signal * widths), decibels(signal)
    figure, axes = new(1, 2, height=3.2)
    left, right = axes[0]
    lost = widths < step
    left.bar(
        range(1, 17), widths, color=np.where(lost, regime_colour("ptq-fbgemm"), FLOAT32), edgecolor=INK, linewidth=0.4
    )
    left.axhline(step, color=INK, linestyle="--", linewidth=1)
    left.text(1, step * 1.25, "one step of\nthe shared range", va="bottom")
    left.set(yscale="log", xlabel="Channel, narrow to wide", ylabel="Standard deviation", title="Before batch norm")
    left.yaxis.set_major_formatter("{x:g}")
    for values, name, regime, marker in ((unfused, "unfused", "ptq-fbgemm", "s"), (fused, "fused", "qat-fbgemm", "o")):
        right.plot(range(1, 17), values, color=regime_colour(regime), marker=marker, label=f"batch norm {name}")
    right.axhline(0, color=INK, linestyle="--", linewidth=1)
    right.set(xlabel="Channel, narrow to wide", ylabel="Signal to noise (dB)", title="After batch norm")
    right.legend(loc="lower right")
    return described(
        figure,
        f"Sixteen channels whose widths differ by a factor of {widths[-1] / widths[0]:.0f} share one range of 127 steps. "
        f"{lost.sum()} of them are narrower than a step. Unfused, their signal-to-noise ratio is down to {unfused.min():.0f} dB; "
        f"with batch normalisation fused first it is {fused.min():.0f} dB or more in every channel.",
    )


# --- images ---------------------------------------------------------------------------------------


@styled
def balance_figure(results):
    """Bars of the classes' shares, a panel per dataset."""
    frame = balance(results)
    if frame.empty:
        return empty("Class balance: these results name no dataset.")
    figure, axes = new(1, len(results.datasets), height=0.9 + 0.28 * frame.groupby("dataset").size().max())
    for axis, name in zip(axes[0], results.datasets):
        part = frame[frame["dataset"] == name].iloc[::-1]
        axis.barh([class_title(name, c) for c in part["class"]], 100 * part["share"], color="#4e8886")
        axis.set(title=title(name), xlabel="Share of images (%)")
        axis.grid(axis="y", visible=False)
    rare = frame.loc[frame.groupby("dataset", sort=False)["share"].idxmin()]
    known = {
        f"{title(d)} {class_title(d, c)}": 100 * s for d, c, s in zip(rare["dataset"], rare["class"], rare["share"])
    }
    return described(figure, f"Share of each class, by dataset. The rarest, in percent: {listed(known, '{:.1f}')}.")


@styled
def phantom_figure():
    """One generated image of each class, a row per phantom dataset."""
    from medq import params
    from medq.datasets import phantoms

    specs = [s for s in params.datasets().values() if s.layout == "phantom"]
    columns = max(len(s.classes) for s in specs)
    figure, axes = new(len(specs), columns, height=1.35 * len(specs), abreast=4)
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
        point(axis, score[truth == value], np.full((truth == value).sum(), y), colour, marker, 7)
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
    axes[0, 0].set_title(f"{right} of {pairs} pairs are in the right order")
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
        "pairs of one of the class and one other are in the right order. Beside it "
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


@styled
def decisions_explained():
    """A threshold fixed on one model, and twelve made-up images that cross it under another."""
    before = np.array([0.95, 0.86, 0.79, 0.71, 0.62, 0.55, 0.47, 0.41, 0.33, 0.24, 0.15, 0.08])
    after = np.array([0.90, 0.62, 0.81, 0.43, 0.66, 0.35, 0.52, 0.58, 0.20, 0.30, 0.09, 0.12])
    figure, axes = new(height=3.2, width=4.1)
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
