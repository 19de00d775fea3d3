"""Figures beyond the paper: the start page's summary, the map of cells, diagnosis, remedies, one cell."""

import numpy as np
import pandas as pd

from medq.figures.paper import reliability_panels
from medq.figures.style import (
    GRID,
    INK,
    MUTED,
    ON_COLOUR,
    ON_DARK,
    WIDTH,
    absent,
    backbone_legend,
    backbone_style,
    described,
    empty,
    few_ticks,
    new,
    regime_colour,
    styled,
)
from medq.results import CELL, RUNTIMES, class_title, scores, title
from medq.tables import STATUS, peers, recipe_means, remedies, worst_layers

STATUS_COLOURS = {"done": "#428364", "unsupported": "#f18102", "failed": "#ce0e17", "missing": "#d4d4d4"}


# --- the whole grid -------------------------------------------------------------------------------


@styled
def summary_figure(results, published=None, *, form="converted"):
    """The start page's figure: what each regime costs against FP32, in AUPRC and in ECE."""
    metrics = {"auprc": ("Change in AUPRC\n(percentage points)", 100), "ece": ("Change in ECE\n(× 100)", 100)}
    changes = {m: _against_fp32(results, m, form) * scale for m, (_, scale) in metrics.items()}
    regimes = [r for r in results.regimes if r != "fp32"]
    if all(c.empty for c in changes.values()) or not regimes:
        return empty("What each regime costs against FP32: no cell of these results is done yet.")
    figure, axes = new(2, len(results.datasets), height=1.6 + 2 * 0.3 * len(regimes), sharey=True, sharex="row")
    for line, (metric, (label, _)) in zip(axes, metrics.items()):
        for axis, dataset in zip(line, results.datasets):
            _change_panel(axis, changes[metric], dataset, regimes, results.backbones)
            axis.set_xlabel(label)
        line[0].set_yticks(range(len(regimes)), [title(r) for r in regimes])
    for axis, dataset in zip(axes[0], results.datasets):
        axis.set_title(title(dataset))
    axes[0, 0].set_ylim(len(regimes) - 0.5, -0.5)
    backbone_legend(figure, results.backbones, extra=_bar_handle(), columns=5)
    means = {m: c.groupby(level="regime").mean() for m, c in changes.items()}
    said = [
        f"{title(r)}: AUPRC {means['auprc'].get(r, np.nan):+.1f} points, ECE {means['ece'].get(r, np.nan):+.1f}"
        for r in regimes
    ]
    return described(
        figure,
        "What each precision regime costs against FP32, per dataset, a marker per "
        f"backbone. Mean change over datasets and backbones: {'; '.join(said)}.",
    )


def _bar_handle():
    from matplotlib.patches import Patch

    return [
        Patch(color=MUTED, alpha=0.45, label="mean of backbones"),
        Patch(facecolor="none", edgecolor="none", label="logarithmic beyond ±1"),
    ]


def _against_fp32(results, metric, form):
    value = scores(results, metric, form=form).set_index(CELL)["value"]
    if value.empty:
        return value
    regime = value.index.get_level_values("regime")
    base = value[regime == "fp32"].droplevel("regime")
    change = value - base.reindex(value.index.droplevel("regime")).to_numpy()
    return change[regime != "fp32"]


def _change_panel(axis, change, dataset, regimes, backbones):
    if change.empty or dataset not in change.index.get_level_values("dataset"):
        return absent(axis)
    axis.axvline(0, color=INK, linewidth=1)
    for y, regime in enumerate(regimes):
        found = [(b, change[dataset, b, regime]) for b in backbones if (dataset, b, regime) in change.index]
        found = [(b, v) for b, v in found if np.isfinite(v)]
        if not found:
            axis.text(0.02, y, "missing", transform=axis.get_yaxis_transform(), va="center", color=MUTED)
            continue
        axis.barh(y, np.mean([v for _, v in found]), height=0.7, color=regime_colour(regime), alpha=0.45, linewidth=0)
        for b, v in found:
            colour, marker = backbone_style(b)
            step = 0.5 * (backbones.index(b) / max(1, len(backbones) - 1) - 0.5)
            axis.plot(v, y + step, marker, color=colour, markersize=5, markeredgecolor=INK, markeredgewidth=0.5)
    axis.set_xscale("symlog", linthresh=1)
    values = change[np.isfinite(change)].to_numpy()
    low, high = min(values.min(initial=-1) * 1.3, -1.5), max(values.max(initial=1) * 1.3, 1.5)
    ticks = [t for t in (-50, -10, -1, 0, 1, 10, 50) if low <= t <= high]
    axis.set_xlim(low, high)
    axis.set_xticks(ticks, [f"{t:+g}" if t else "0" for t in ticks])
    axis.set_xticks([], minor=True)
    axis.grid(axis="y", visible=False)


@styled
def matrix_figure(results):
    """What became of every cell, a panel per dataset; `!` where an engine is wrong."""
    from matplotlib.patches import Patch

    if results.status.empty:
        return empty("What became of every cell: these results name no cell.")
    regimes, n = results.regimes, len(results.backbones)
    figure, axes = new(1, len(results.datasets), height=1.9 + 0.26 * n, sharey=True)
    state = results.status.set_index(CELL)
    for axis, dataset in zip(axes[0], results.datasets):
        for y, backbone in enumerate(results.backbones):
            for x, regime in enumerate(regimes):
                row = state.loc[(dataset, backbone, regime)]
                axis.add_patch(_tile(x, y, STATUS_COLOURS[row["status"]]))
                mark = STATUS[row["status"]].split()[0]
                mark = "!" if row["status"] == "done" and row["engine_agrees"] is False else mark
                shade = {"missing": INK, "unsupported": ON_COLOUR}.get(row["status"], ON_DARK)
                axis.text(x, y, mark, ha="center", va="center", fontweight="bold", color=shade)
        axis.set(xlim=(-0.5, len(regimes) - 0.5), ylim=(n - 0.5, -0.5), title=title(dataset))
        axis.set_xticks(range(len(regimes)), [title(r).replace("INT8-", "") for r in regimes], rotation=90)
        axis.tick_params(length=0)
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
    axes[0, 0].set_yticks(range(n), [title(b) for b in results.backbones])
    figure.legend(
        handles=[Patch(color=c, label=STATUS[s]) for s, c in STATUS_COLOURS.items()]
        + [Patch(facecolor="none", edgecolor="none", label="! done, kernels disagree")],
        loc="outside lower center",
        ncols=5,
        handlelength=1,
        columnspacing=1.2,
    )
    counts = state["status"].value_counts()
    said = ", ".join(f"{counts[s]} {s}" for s in STATUS if s in counts)
    return described(figure, f"Matrix of backbones and regimes, one panel per dataset, coloured by outcome: {said}.")


def _tile(x, y, colour):
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, facecolor=colour, linewidth=0)


# --- why a model collapses ------------------------------------------------------------------------


@styled
def sqnr_figure(results, dataset, backbone, regime):
    """Signal-to-quantization-noise ratio of each quantized layer in order; the three worst are named."""
    layers = results.layers
    layers = layers[(layers["dataset"] == dataset) & (layers["backbone"] == backbone) & (layers["regime"] == regime)]
    layers = layers.drop_duplicates("layer").reset_index(drop=True)
    name = f"{title(backbone)}, {title(regime)}, {title(dataset)}"
    if layers.empty:
        return empty(f"Noise per layer of {name}: missing from these results.")
    figure, axes = new(height=3.8)
    axis, colour = axes[0, 0], regime_colour(regime)
    axis.plot(
        layers.index,
        layers["sqnr_db"],
        color=colour,
        marker="o",
        markersize=4,
        linewidth=1,
        label="simulated layer against its FP32 twin",
    )
    if layers["kernel_sqnr_db"].notna().any():
        axis.plot(
            layers.index,
            layers["kernel_sqnr_db"],
            color=MUTED,
            marker="x",
            markersize=5,
            linewidth=0.8,
            linestyle=":",
            label="engine's kernel against its own simulation",
        )
    worst = worst_layers(results, dataset, backbone, regime)
    for k, row in enumerate(worst.to_dict("records")):
        x = int(layers.index[layers["layer"] == row["layer"]][0])
        left = x > len(layers) / 2
        axis.plot(x, row["sqnr_db"], "o", markersize=9, markerfacecolor="none", markeredgecolor=INK)
        axis.annotate(
            f"{k + 1}",
            (x, row["sqnr_db"]),
            xytext=(-9 if left else 9, -3),
            textcoords="offset points",
            ha="right" if left else "left",
            fontweight="bold",
        )
    listed = "\n".join(
        f"{k}  {r['layer']} ({r['operator']}), {r['sqnr_db']:.1f} dB" for k, r in enumerate(worst.to_dict("records"), 1)
    )
    axis.set(xlabel=f"Quantized layers, first to last\n\nWorst:\n{listed}", ylabel="Signal to noise (dB)", title=name)
    axis.xaxis.label.set_ha("left")
    axis.xaxis.label.set_x(0)
    few_ticks(axis.xaxis, 8)
    figure.legend(loc="outside lower center", ncols=2)
    return described(
        figure,
        f"Signal-to-quantization-noise ratio of the {len(layers)} quantized layers of "
        f"{name}; the worst: "
        + "; ".join(f"{r['layer']} {r['sqnr_db']:.1f} dB" for r in worst.to_dict("records"))
        + ".",
    )


@styled
def ablation_figure(results, dataset, *, engine="fbgemm", form="converted"):
    """Recipe ablation of one dataset: change in AUPRC from the default recipe, by backbone."""
    frame = recipe_means(results, form)
    frame = frame[(frame["dataset"] == dataset) & (frame["engine"] == engine)]
    if frame.empty:
        return empty(f"Recipe ablation on {title(dataset)} ({engine}): missing from these results.")
    wide = 100 * frame.pivot(index="recipe", columns="backbone", values="auprc")
    known = [b for b in results.backbones if b in wide.columns]
    wide = wide.reindex(index=frame["recipe"].unique(), columns=known)
    base = wide.loc["default"] if "default" in wide.index else wide.max()
    change = wide.drop(index="default", errors="ignore") - base
    figure, axes = new(height=1.9 + 0.3 * len(change))
    axis = axes[0, 0]
    _heat(axis, change.to_numpy(), [[_signed(v) for v in row] for row in change.to_numpy()], -60, 0)
    axis.set_xticks(
        range(len(change.columns)),
        [f"{title(b)}\n{base[b]:.1f}" for b in change.columns],
        rotation=35,
        ha="right",
        rotation_mode="anchor",
    )
    axis.set_yticks(range(len(change)), [r.replace("-", " ") for r in change.index])
    axis.set_title(f"{title(dataset)}, {engine}: AUPRC in points against the default recipe", loc="left")
    axis.set_xlabel("Backbone and its AUPRC (%) under the default recipe")
    lowest = change.stack().nsmallest(3)
    said = "; ".join(f"{title(b)} under {r} {v:+.1f}" for (r, b), v in lowest.items())
    return described(
        figure,
        "Heat map of the change in AUPRC, in percentage points, that each recipe makes "
        f"on {title(dataset)} for each backbone under {engine}. The greatest losses: "
        f"{said}.",
    )


def _signed(value):
    return "–" if np.isnan(value) else f"{value:+.1f}"


def _heat(axis, values, texts, low, high):
    """A heat map with its numbers written in; light is good, dark is bad; missing values stay blank."""
    from matplotlib.colors import LinearSegmentedColormap

    ramp = LinearSegmentedColormap.from_list("loss", ["#7a0b10", "#ce0e17", "#f18102", "#f8d9b0", "#fbf3e6"])
    axis.imshow(np.clip(values, low, high), cmap=ramp, vmin=low, vmax=high, aspect="auto")
    for y, row in enumerate(texts):
        for x, text in enumerate(row):
            dark = (values[y, x] - low) / (high - low) < 0.45
            axis.text(x, y, text, ha="center", va="center", color=ON_DARK if dark else ON_COLOUR)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


@styled
def remedies_figure(results, dataset, *, regime="ptq-fbgemm"):
    """Share of the PTQ to FP32 gap that each remedy closes, in ECE, Brier and AUPRC, by backbone."""
    frame = remedies(results)
    frame = frame[(frame["dataset"] == dataset) & (frame["regime"] == regime)]
    if frame.empty:
        return empty(f"Remedies on {title(dataset)} ({title(regime)}): missing from these results.")
    names = list(frame["remedy"].unique())
    figure, axes = new(1, 3, height=1.5 + 0.42 * len(names), sharey=True)
    for axis, metric in zip(axes[0], ("ece", "brier", "auprc")):
        for mark in (0, 100):
            axis.axvline(mark, color=INK, linewidth=1, linestyle="-" if mark == 0 else "--")
        closed = 100 * frame[f"{metric}_closed"]
        for row, value in zip(frame.to_dict("records"), closed.clip(-100, 200)):
            if np.isfinite(value):
                colour, marker = backbone_style(row["backbone"])
                place = results.backbones.index(row["backbone"]) / max(1, len(results.backbones) - 1)
                axis.plot(
                    value,
                    names.index(row["remedy"]) + 0.6 * (place - 0.5),
                    marker,
                    color=colour,
                    markersize=5.5,
                    markeredgecolor=INK,
                    markeredgewidth=0.5,
                )
        axis.set(title=title(metric), xlabel="Gap closed (%)")
        axis.set_xticks([-100, 0, 100, 200] if closed.min() < -20 or closed.max() > 120 else [0, 50, 100])
        axis.margins(x=0.08)
        axis.grid(axis="y", visible=False)
        if not np.isfinite(closed).any():
            axis.text(0.5, 0.5, "no gap to close", transform=axis.transAxes, ha="center", color=MUTED)
    axes[0, 0].set_yticks(range(len(names)), [n.replace("-", " ") for n in names])
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    backbone_legend(figure, [b for b in results.backbones if b in set(frame["backbone"])])
    medians = frame.groupby("remedy", sort=False)[["ece_closed", "auprc_closed"]].median()
    said = "; ".join(
        f"{r.replace('-', ' ')} {100 * m['ece_closed']:.0f} % of ECE, {100 * m['auprc_closed']:.0f} % of AUPRC"
        for r, m in medians.iterrows()
    )
    return described(
        figure,
        f"Share of the gap between {title(regime)} and FP32 on {title(dataset)} that "
        f"each remedy closes, a marker per backbone; 100 % is FP32. Medians: {said}.",
    )


RUNTIME_COLOURS = dict(zip(RUNTIMES, map(regime_colour, ("fp32", "fp16", "ptq-qnnpack", "qat-fbgemm"))))


@styled
def peers_figure(results, dataset, *, batch_size=1):
    """Every runtime of every model: speed-up over eager FP32 against the change in ECE; right and low is better."""
    from matplotlib.lines import Line2D

    frame = peers(results)
    frame = frame[(frame["dataset"] == dataset) & (frame["batch_size"] == batch_size) & frame["p50_ms"].notna()]
    eager = frame[(frame["runtime"] == "pytorch") & (frame["precision"] == "fp32")].set_index("backbone")
    backbones = [b for b in results.backbones if b in eager.index]
    if not backbones:
        return empty(f"Other runtimes on {title(dataset)}, batch {batch_size}: missing from these results.")
    rows = -(-len(backbones) // 4)
    figure, axes = new(rows, min(4, len(backbones)), height=1.1 + 1.7 * rows, sharex=True, sharey=True)
    fastest = []
    for axis, backbone in zip(axes.flat, backbones):
        own = frame[frame["backbone"] == backbone]
        own = own.assign(
            speedup=eager.loc[backbone, "p50_ms"] / own["p50_ms"], rise=own["ece"] - eager.loc[backbone, "ece"]
        )
        front = own[own["pareto"]].sort_values("speedup")
        axis.plot(front["speedup"], front["rise"], color=MUTED, linewidth=1, zorder=1)
        axis.axhline(0, color=GRID, linewidth=1, zorder=0)
        for row in own.to_dict("records"):
            axis.plot(
                row["speedup"],
                row["rise"],
                "s" if row["precision"] == "int8" else "o",
                markersize=6,
                alpha=0.9,
                color=RUNTIME_COLOURS.get(row["runtime"].split("-")[0], MUTED),
                markeredgecolor=INK,
                markeredgewidth=0.5,
            )
        axis.set_title(title(backbone))
        best = own.loc[own["speedup"].idxmax()]
        fastest.append(
            f"{title(backbone)} {title(best['runtime'] + ' ' + best['precision'])} {best['speedup']:.1f} times"
        )
    for axis in axes.flat[len(backbones) :]:
        axis.set_axis_off()
    axes[0, 0].set_xscale("log", base=2)
    axes[0, 0].xaxis.set_major_formatter("{x:g}")
    for axis in axes.flat[max(0, len(backbones) - axes.shape[1]) : len(backbones)]:  # the lowest panel of each column
        axis.set_xlabel("Speed-up (×)")
        axis.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("Change in ECE")
    shapes = [
        Line2D([], [], color=MUTED, marker=m, linestyle="none", label=name)
        for m, name in (("o", "FP32"), ("s", "INT8"))
    ]
    colours = [
        Line2D([], [], color=RUNTIME_COLOURS[r], marker="s", linestyle="none", label=name)
        for r, name in RUNTIMES.items()
    ]
    front = [Line2D([], [], color=MUTED, linewidth=1, label="front")]
    figure.legend(
        handles=[*colours, *shapes, *front], loc="outside lower center", ncols=4, handletextpad=0.4, columnspacing=1.4
    )
    return described(
        figure,
        f"Runtimes on {title(dataset)} at batch {batch_size}, a panel per backbone: speed-up over eager FP32 "
        f"across, change in ECE down the side. Fastest: {'; '.join(fastest)}.",
    )


# --- one cell -------------------------------------------------------------------------------------


def _bins(predictions, regime):
    from medq.metrics import reliability_curve

    curve = reliability_curve(
        predictions["label"].to_numpy(), predictions.filter(regex="^p_").to_numpy(), kind="top-label"
    )
    return pd.DataFrame(curve._asdict()).assign(regime=regime)


@styled
def reliability(predictions, *, regime="fp32", label=""):
    """Reliability diagram (top label) of stored predictions with the histogram of confidence below."""
    if predictions.empty:
        return empty("Reliability diagram: no predictions are stored for this cell.")
    figure, axes = new(2, 1, height=4.2, width=3.7, sharex=True, height_ratios=[3, 1.2])
    errors = reliability_panels(axes[:, 0], _bins(predictions, regime), [regime])
    axes[0, 0].set(title=label or title(regime), ylabel="Fraction correct")
    axes[1, 0].set(xlabel="Confidence", ylabel="Share of\nimages")
    return described(
        figure,
        f"Reliability diagram of {label or title(regime)}, {len(predictions)} images: "
        f"top-label calibration error {errors[regime]:.3f}.",
    )


@styled
def before_after(before, after, *, labels=("before", "after"), regime="ptq-fbgemm"):
    """Two reliability diagrams side by side, for instance before and after temperature scaling."""
    if before.empty or after.empty:
        return empty("Calibration before and after: no predictions are stored for this cell.")
    figure, axes = new(2, 2, height=4.4, width=6.4, sharex=True, sharey="row", height_ratios=[3, 1.2])
    said = []
    for column, predictions, label in zip(axes.T, (before, after), labels):
        errors = reliability_panels(column, _bins(predictions, regime), [regime])
        column[0].set_title(label)
        column[1].set_xlabel("Confidence")
        said.append(f"{label} {errors[regime]:.3f}")
    axes[0, 0].set_ylabel("Fraction correct")
    axes[1, 0].set_ylabel("Share of\nimages")
    return described(
        figure,
        f"Two reliability diagrams with histograms of confidence. Top-label calibration error: {', '.join(said)}.",
    )


@styled
def training_curve(history, *, regime="fp32", label=""):
    """Training loss and accuracy per epoch (columns of history.csv of one cell); the kept epoch is ringed."""
    history = history.sort_values("epoch")
    if history.empty:
        return empty("Training curve: this regime trains nothing, or its history is missing.")
    figure, axes = new(1, 2, height=2.7, width=WIDTH)
    colour = regime_colour(regime)
    left, right = axes[0]
    left.plot(history["epoch"], history["train_loss"], color=colour, marker="o", markersize=4)
    left.set(xlabel="Epoch", ylabel="Cross-entropy (nats)", title="Training loss", ylim=(0, None))
    right.plot(history["epoch"], 100 * history["train_accuracy"], color=MUTED, linestyle=":", label="training images")
    right.plot(
        history["epoch"],
        100 * history["accuracy"],
        color=colour,
        marker="o",
        markersize=4,
        label="images that choose the epoch",
    )
    best = history.loc[history["accuracy"].idxmax()]
    right.plot(
        best["epoch"],
        100 * best["accuracy"],
        "o",
        markersize=11,
        markerfacecolor="none",
        markeredgecolor=INK,
        label="best",
    )
    right.set(xlabel="Epoch", ylabel="Accuracy (%)", title=label or title(regime))
    right.legend(loc="lower right")
    for axis in axes[0]:
        few_ticks(axis.xaxis, 6, whole=True)
    return described(
        figure,
        f"Training curve of {label or title(regime)}: {len(history)} epochs, best "
        f"accuracy {100 * best['accuracy']:.1f} % at epoch {best['epoch']:.0f}.",
    )


@styled
def confusion_matrix(predictions, *, dataset="", label=""):
    """Confusion matrix of stored predictions: counts, shaded by the share of the true class."""
    if predictions.empty:
        return empty("Confusion matrix: no predictions are stored for this cell.")
    probabilities = predictions.filter(regex="^p_")
    names = [class_title(dataset, c[2:]) for c in probabilities]
    counts = (
        pd.crosstab(predictions["label"].to_numpy(), probabilities.to_numpy().argmax(1))
        .reindex(index=range(len(names)), columns=range(len(names)), fill_value=0)
        .to_numpy()
    )
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = new(height=1.4 + 0.42 * len(names), width=2.0 + 0.62 * len(names))
    axis = axes[0, 0]
    _shade(axis, share, counts)
    axis.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="Predicted", ylabel="True", title=label)
    right = np.trace(counts) / counts.sum()
    recall = ", ".join(f"{n} {100 * s:.0f} %" for n, s in zip(names, np.diag(share)))
    return described(
        figure,
        f"Confusion matrix{' of ' + label if label else ''}: {counts.sum()} images, "
        f"{100 * right:.1f} % right; recall by class {recall}.",
    )


def _shade(axis, share, counts):
    from matplotlib.colors import LinearSegmentedColormap

    ramp = LinearSegmentedColormap.from_list("share", ["#f2f6fb", "#7fa3d1", "#1f3f77"])
    axis.imshow(share, cmap=ramp, vmin=0, vmax=1, aspect="auto")
    for (y, x), n in np.ndenumerate(counts):
        axis.text(x, y, f"{n}", ha="center", va="center", color=ON_DARK if share[y, x] > 0.5 else ON_COLOUR)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
