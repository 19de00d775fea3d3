"""Figures beyond the paper: the start page's summary, diagnosis, recipes, remedies, other runtimes, one cell."""

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Patch

from medq.changes import changes
from medq.figures import style
from medq.figures.paper import reliability_panels
from medq.figures.style import GRID, INK, MUTED, backbone_style, described, empty, handle, regime_colour, styled
from medq.regimes import REGIMES
from medq.results import RUNTIMES, class_title, words, scores, title
from medq.tables import of_cell, peers, recipe_means, reliability_bins, remedies, worst_layers

# --- what each regime costs -----------------------------------------------------------------------

COSTS = {"auprc": "Change in AUPRC\n(percentage points)", "brier": "Change in Brier score\n(× 100)"}


@styled
def summary_figure(results):
    """The start page's figure: what each regime costs against FP32, in AUPRC and in the Brier score.

    FP16 is left out: it was trained apart, so that its difference is as much the other training's as the precision's.
    So are regimes that were not run on every dataset of these results.
    """
    data, backbones = changes(results, COSTS), results.backbones
    datasets = data.groupby("regime")["dataset"].nunique()
    apart = {row.name for row in REGIMES.values() if not row.start}
    regimes = [r for r in results.regimes if r not in apart and datasets.get(r) == data["dataset"].nunique()]
    data = data[data["regime"].isin(regimes)]
    if data.empty:
        return empty("What each regime costs against FP32: no cell of these results is done yet.")
    data = data.assign(value=100 * data["value"])
    figure, axes = style.new(2, len(results.datasets), height=1.6 + 2 * 0.3 * len(regimes), sharey=True, sharex="row")
    for line, (metric, label) in zip(axes, COSTS.items()):
        rows = data[data["metric"] == metric]
        for axis, dataset in zip(line, results.datasets):
            _change_panel(axis, rows[rows["dataset"] == dataset], regimes, backbones)
            axis.set_xlabel(label)
        low, high = min(rows["value"].min() * 1.3, -1.5), max(rows["value"].max() * 1.3, 1.5)
        ticks = [t for t in (-50, -10, -1, 0, 1, 10, 50) if low <= t <= high]
        for axis in line:  # one scale for all: linear to ±1, logarithmic beyond
            axis.set_xscale("symlog", linthresh=1)
            axis.set_xlim(low, high)
            axis.set_xticks(ticks, [f"{t:+g}" if t else "0" for t in ticks])
            axis.set_xticks([], minor=True)
        style.name_rows(line, map(title, regimes))
    for axis, dataset in zip(axes[0], results.datasets):
        axis.set_title(title(dataset))
    scale = Patch(facecolor="none", edgecolor="none", label="log beyond ±1")
    bar = Patch(color=MUTED, alpha=0.45, label="mean of backbones")
    style.backbone_legend(figure, backbones, extra=[bar, scale], columns=5)
    mean = data[data["backbone"] == "mean"].groupby(["metric", "regime"], sort=False)["value"].mean()
    known = {f"{title(m)} {title(r)}": value for (m, r), value in mean.items()}
    what = "What each precision regime costs against FP32, per dataset, a marker per backbone."
    over = "Mean change over datasets and backbones, AUPRC in points, Brier score times 100"
    return described(figure, f"{what} {over}", known, "{:+.1f}")


def _change_panel(axis, data, regimes, backbones):
    if data.empty:
        return style.absent(axis)
    axis.axvline(0, color=INK, linewidth=1)
    for y, regime in enumerate(regimes):
        values = data[data["regime"] == regime].dropna(subset=["value"]).set_index("backbone")["value"]
        if values.empty:
            axis.text(0.02, y, "missing", transform=axis.get_yaxis_transform(), va="center", color=MUTED)
            continue
        axis.barh(y, values["mean"], height=0.7, color=regime_colour(regime), alpha=0.45, linewidth=0)
        for b, value in values.drop("mean").items():
            style.point(axis, value, y + style.step(b, backbones), *backbone_style(b))


# --- why a model collapses ------------------------------------------------------------------------


@styled
def sqnr_figure(results, dataset, backbone, regime):
    """Signal-to-quantization-noise ratio of each quantized layer in order; the three worst are named."""
    layers = of_cell(results.layers, dataset, backbone, regime).drop_duplicates("layer").reset_index(drop=True)
    name = f"{title(backbone)}, {title(regime)}, {title(dataset)}"
    if layers.empty:
        return empty(f"Noise per layer of {name}: missing from these results.")
    figure, axes = style.new(height=3.8)
    axis, twin = axes[0, 0], {"color": regime_colour(regime), "marker": "o", "markersize": 4, "linewidth": 1}
    axis.plot(layers.index, layers["sqnr_db"], label="simulated layer against its FP32 twin", **twin)
    if layers["kernel_sqnr_db"].notna().any():
        kernel = {"color": MUTED, "marker": "x", "markersize": 5, "linewidth": 0.8, "linestyle": ":"}
        axis.plot(layers.index, layers["kernel_sqnr_db"], label="engine's kernel against its own simulation", **kernel)
    worst = worst_layers(results, dataset, backbone, regime).to_dict("records")
    for k, row in enumerate(worst, 1):
        place = (int(layers.index[layers["layer"] == row["layer"]][0]), row["sqnr_db"])
        axis.plot(*place, "o", markersize=9, markerfacecolor="none", markeredgecolor=INK)
        side = {"xytext": (-9, -3), "ha": "right"} if place[0] > len(layers) / 2 else {"xytext": (9, -3), "ha": "left"}
        axis.annotate(f"{k}", place, textcoords="offset points", fontweight="bold", **side)
    lines = [f"{k}  {r['layer']} ({r['operator']}), {r['sqnr_db']:.1f} dB" for k, r in enumerate(worst, 1)]
    axis.set(ylabel="Signal to noise (dB)", title=name)
    axis.set_xlabel("\n".join(["Quantized layers, first to last", "", "Worst:", *lines]), ha="left", x=0)
    style.few_ticks(axis.xaxis, 8)
    style.legend(figure, ncols=1)
    what = f"Signal-to-quantization-noise ratio in decibels of the {len(layers)} quantized layers of {name}; the worst"
    return described(figure, what, {r["layer"]: r["sqnr_db"] for r in worst}, "{:.1f}")


@styled
def ablation_figure(results, dataset):
    """Recipe ablation of one dataset under fbgemm: change in AUPRC from the default recipe, by backbone."""
    frame = recipe_means(results, "converted")
    frame = frame[(frame["dataset"] == dataset) & (frame["engine"] == "fbgemm")]
    if frame.empty:
        return empty(f"Recipe ablation on {title(dataset)} (fbgemm): missing from these results.")
    wide = 100 * frame.pivot(index="recipe", columns="backbone", values="auprc")
    known = [b for b in results.backbones if b in wide.columns]
    wide = wide.reindex(index=frame["recipe"].unique(), columns=known)
    base = wide.loc["default"] if "default" in wide.index else wide.max()
    change = wide.drop(index="default", errors="ignore") - base
    figure, axes = style.new(height=1.9 + 0.3 * len(change))
    values = change.to_numpy()
    losses = ("#7a0b10", "#ce0e17", "#f18102", "#f8d9b0", "#fbf3e6")  # light is good, dark is bad
    columns, rows = [f"{title(b)}\n{base[b]:.1f}" for b in known], list(map(words, change.index))
    _heat(axes[0, 0], (values.clip(-60, 0) + 60) / 60, values, "+.1f", losses, columns, rows)
    axes[0, 0].set_title(f"{title(dataset)}, fbgemm")
    axes[0, 0].set_xlabel("Change in AUPRC (points);\nbelow each backbone its\nAUPRC by default (%)")
    lowest = {f"{title(b)} under {r}": v for (r, b), v in change.stack().nsmallest(3).items()}
    what = f"Change in AUPRC, in points, that each recipe makes on {title(dataset)} under fbgemm, for each backbone."
    return described(figure, f"{what} The greatest losses", lowest, "{:+.1f}")


MARKERS = {"fbgemm": "o", "qnnpack": "s"}


@styled
def recipe_figure(results, dataset):
    """Brier score of every recipe, simulated, under both engines, best under fbgemm first; a panel per backbone, FP32 dashed."""
    frame = results.ablation[(results.ablation["form"] == "fake-quant") & (results.ablation["dataset"] == dataset)]
    if frame.empty:
        return empty(f"Recipes on {title(dataset)}: missing from these results.")
    before = scores(results.first_seed, "brier").query("regime == 'fp32' and dataset == @dataset")
    before = before.set_index("backbone")["value"]
    wide = {b: part.pivot(index="recipe", columns="engine", values="brier") for b, part in frame.groupby("backbone")}
    order = next(iter(wide.values())).sort_values("fbgemm").index
    figure, axes = style.new(1, len(wide), height=1.3 + 0.22 * len(order), sharey=True)
    for axis, (backbone, part) in zip(axes[0], wide.items()):
        axis.axvline(before[backbone], color=INK, linestyle="--", linewidth=1)
        for engine, marker in MARKERS.items():
            style.point(axis, part[engine].reindex(order), range(len(order)), regime_colour(f"ptq-{engine}"), marker, 6)
        axis.set(title=title(backbone), xlabel=title("brier"))
        axis.set_xlim(left=0)
        style.few_ticks(axis.xaxis, 5)
    axes[0, 0].set_yticks(range(len(order)), list(map(words, order)))
    axes[0, 0].set_ylim(len(order) - 0.5, -0.5)
    marks = [handle(title(f"ptq-{e}"), regime_colour(f"ptq-{e}"), marker) for e, marker in MARKERS.items()]
    style.legend(figure, handles=[*marks, handle("FP32", INK, "", linestyle="--")], ncols=3)
    backbone, part = next(iter(wide.items()))
    model = f"{title(backbone)} on {title(dataset)}"
    what = f"{title('brier')} of {model} per recipe for fbgemm, FP32 {before[backbone]:.2f}"
    return described(figure, what, part["fbgemm"].sort_values(), "{:.2f}")


def _heat(axis, shares, numbers, form, colours, columns, rows):
    """A heat map of values from 0 to 1 with numbers written in; missing values stay blank."""
    import seaborn  # takes a second, which few figures need

    ramp = LinearSegmentedColormap.from_list("ramp", colours)
    bare = {"cbar": False, "xticklabels": False, "yticklabels": False}  # seaborn draws labels at once, in any font
    seaborn.heatmap(shares, vmin=0, vmax=1, cmap=ramp, annot=numbers, fmt=form, ax=axis, **bare)
    for text, colour in zip(axis.texts, ramp(shares[~np.isnan(shares)])):  # shades that a dark page keeps
        dark = seaborn.utils.relative_luminance(colour) < 0.18
        text.set_color(style.ON_DARK if dark else style.ON_COLOUR)
    axis.grid(visible=False)
    axis.tick_params(length=0)
    axis.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=35, ha="right", rotation_mode="anchor")
    axis.set_yticks(np.arange(len(rows)) + 0.5, rows)


# --- what helps, and what else runs ---------------------------------------------------------------


@styled
def remedies_figure(results, dataset):
    """Share of the PTQ to FP32 gap that each remedy closes, in ECE, Brier and AUPRC, by backbone."""
    frame = remedies(results)
    frame = frame[(frame["dataset"] == dataset) & (frame["regime"] == "ptq-fbgemm")]
    if frame.empty:
        return empty(f"Remedies on {title(dataset)} ({title('ptq-fbgemm')}): missing from these results.")
    names, shown = list(frame["remedy"].unique()), {m: f"{m}_closed" for m in ("ece", "brier", "auprc")}
    frame = frame.assign(**{column: 100 * frame[column] for column in shown.values()})
    figure, axes = style.new(1, len(shown), height=1.5 + 0.42 * len(names), sharey=True)
    for axis, (metric, column) in zip(axes[0], shown.items()):
        closed = frame.dropna(subset=[column])
        axis.axvline(0, color=INK, linewidth=1)
        axis.axvline(100, color=INK, linewidth=1, linestyle="--")
        for backbone, remedy, value in zip(closed["backbone"], closed["remedy"], closed[column].clip(-100, 200)):
            y = names.index(remedy) + style.step(backbone, results.backbones)
            style.point(axis, value, y, *backbone_style(backbone), 5.5)
        axis.set(title=title(metric), xlabel="Gap closed (%)")
        far = closed[column].min() < -20 or closed[column].max() > 120
        axis.set_xticks([-100, 0, 100, 200] if far else [0, 50, 100])
        axis.margins(x=0.08)
        if closed.empty:
            axis.text(0.5, 0.5, "no gap to close", transform=axis.transAxes, ha="center", color=MUTED)
    style.name_rows(axes[0], list(map(words, names)))
    style.backbone_legend(figure, [b for b in results.backbones if b in set(frame["backbone"])])
    medians = frame.groupby("remedy", sort=False)[list(shown.values())].median()
    known = {f"{title(m)} {r}": v for m, column in shown.items() for r, v in medians[column].dropna().items()}
    what = f"Share of the gap between {title('ptq-fbgemm')} and FP32 on {title(dataset)} that each remedy closes; 100 % is FP32."
    return described(figure, f"{what} Medians over backbones", known, "{:.0f} %")


RUNTIME_COLOURS = dict(zip(RUNTIMES, map(regime_colour, ("fp32", "fp16", "ptq-qnnpack", "qat-fbgemm"))))


@styled
def peers_figure(results, dataset):
    """Every runtime of every model at batch 1: speed-up over eager FP32 against the change in Brier; right and low is better."""
    frame = peers(results)
    frame = frame[(frame["dataset"] == dataset) & (frame["batch_size"] == 1) & frame["p50_ms"].notna()]
    eager = frame[(frame["runtime"] == "pytorch") & (frame["precision"] == "fp32")].set_index("backbone")
    backbones = [b for b in results.backbones if b in eager.index]
    if not backbones:
        return empty(f"Other runtimes on {title(dataset)}, batch 1: missing from these results.")
    columns = min(4, len(backbones))
    rows = -(-len(backbones) // columns)
    figure, axes = style.new(rows, columns, sharex=True, sharey=True, height=1.1 + 1.7 * rows, abreast=2)
    fastest = {}
    for axis, backbone in zip(axes.flat, backbones):
        own = frame[frame["backbone"] == backbone]
        ratio, rise = eager.loc[backbone, "p50_ms"] / own["p50_ms"], own["brier"] - eager.loc[backbone, "brier"]
        own = own.assign(speedup=ratio, rise=rise)
        front = own[own["pareto"]].sort_values("speedup")
        axis.plot(front["speedup"], front["rise"], color=MUTED, linewidth=1, zorder=1)
        axis.axhline(0, color=GRID, linewidth=1, zorder=0)
        for row in own.to_dict("records"):
            colour = RUNTIME_COLOURS.get(row["runtime"].split("-")[0], MUTED)
            shape = "s" if row["precision"] == "int8" else "o"
            style.point(axis, row["speedup"], row["rise"], colour, shape, 6, alpha=0.9)
        axis.set_title(title(backbone))
        best = own.loc[own["speedup"].idxmax()]
        fastest[f"{title(backbone)} {best['name']}"] = best["speedup"]
    for axis in axes.flat[len(backbones) :]:
        axis.set_axis_off()
    axes[0, 0].set_xscale("log", base=2)
    axes[0, 0].xaxis.set_major_formatter("{x:g}")
    for axis in axes.flat[max(0, len(backbones) - columns) : len(backbones)]:  # the lowest panel of each column
        axis.set_xlabel("Speed-up (×)")
        axis.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("Change in Brier")
    handles = [handle(name, RUNTIME_COLOURS[r], "s") for r, name in RUNTIMES.items()]
    handles += [handle("FP32"), handle("INT8", marker="s"), handle("front", marker=None, linestyle="-", linewidth=1)]
    style.legend(figure, handles=handles, ncols=4, handletextpad=0.4, columnspacing=1.4)
    what = f"Runtimes on {title(dataset)} at batch 1, a panel per backbone: speed-up over eager FP32 and change in Brier score."
    return described(figure, f"{what} Fastest, in times", fastest, "{:.1f}")


# --- one cell -------------------------------------------------------------------------------------


@styled
def reliability(*predictions, regime="fp32", label="", labels=None):
    """Reliability diagrams (top label) of stored predictions side by side, with histograms of confidence below.

    `label` is the title, `labels` the titles of several.
    """
    if any(p.empty for p in predictions):
        return empty("Reliability diagram: no predictions are stored for this cell.")
    names = labels or [label or title(regime)]
    columns = {name: reliability_bins(frame, regime) for name, frame in zip(names, predictions)}
    figure, errors = reliability_panels(columns, [regime], height=4.2, width=3.7 if len(columns) == 1 else 6.4)
    known = {f"{n} ({len(frame)} images)": errors[n, regime] for n, frame in zip(names, predictions)}
    return described(figure, "Reliability diagram with a histogram of confidence. Top-label calibration error", known)


@styled
def training_curve(history, *, regime="fp32", label=""):
    """Training loss and accuracy per epoch (columns of history.csv of one cell); the kept epoch is ringed."""
    if history.empty:
        return empty("Training curve: this regime trains nothing, or its history is missing.")
    history, colour, label = history.sort_values("epoch"), regime_colour(regime), label or title(regime)
    figure, axes = style.new(1, 2, height=2.7)
    left, right = axes[0]
    line = {"color": colour, "marker": "o", "markersize": 4}
    left.plot(history["epoch"], history["train_loss"], **line)
    left.set(xlabel="Epoch", ylabel="Cross-entropy (nats)", title="Training loss", ylim=(0, None))
    right.plot(history["epoch"], 100 * history["train_accuracy"], color=MUTED, linestyle=":", label="training images")
    right.plot(history["epoch"], 100 * history["accuracy"], label="images that choose the epoch", **line)
    best = history.loc[history["accuracy"].idxmax()]
    ring = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": INK, "label": "best"}
    right.plot(best["epoch"], 100 * best["accuracy"], "o", **ring)
    right.set(xlabel="Epoch", ylabel="Accuracy (%)", title=label)
    right.legend(loc="lower right")
    for axis in axes[0]:
        style.few_ticks(axis.xaxis, 6, whole=True)
    accuracy = f"best accuracy {100 * best['accuracy']:.1f} % at epoch {best['epoch']:.0f}"
    return described(figure, f"Training loss and accuracy of {label} by epoch: {len(history)} epochs, {accuracy}.")


@styled
def confusion_matrix(predictions, *, dataset="", label=""):
    """Confusion matrix of stored predictions: counts, shaded by the share of the true class."""
    if predictions.empty:
        return empty("Confusion matrix: no predictions are stored for this cell.")
    probabilities = predictions.filter(regex="^p_")
    names = [class_title(dataset, c[2:]) for c in probabilities]
    counts = pd.crosstab(predictions["label"].to_numpy(), probabilities.to_numpy().argmax(1))
    counts = counts.reindex(index=range(len(names)), columns=range(len(names)), fill_value=0).to_numpy()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = style.new(height=1.4 + 0.42 * len(names), width=2.0 + 0.62 * len(names))
    _heat(axes[0, 0], share, counts, "d", ("#f2f6fb", "#7fa3d1", "#1f3f77"), names, names)
    axes[0, 0].set(xlabel="Predicted", ylabel="True", title=label)
    right = f"{100 * np.trace(counts) / counts.sum():.1f} % right"
    what = f"Confusion matrix of {counts.sum()} images, {right}. Percentage found of each class"
    return described(figure, what, {n: 100 * s for n, s in zip(names, np.diag(share))}, "{:.0f}")
