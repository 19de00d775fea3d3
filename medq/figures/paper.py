"""Figures 1 to 7 of the paper, from a result folder, and interactive forms of 2 and 4."""

import math
import textwrap

import numpy as np

from medq.figures.style import (
    FONT,
    GRID,
    INK,
    MUTED,
    PAPER,
    WIDTH,
    absent,
    backbone_legend,
    backbone_style,
    described,
    empty,
    few_ticks,
    joined,
    new,
    regime_colour,
    styled,
)
from medq.results import REGIMES, family, title
from medq.results import published as paper_results
from medq.tables import (
    PAIRS,
    calibration_data,
    forest_data,
    latency_data,
    regimes_data,
    reliability_data,
    speedups,
    tradeoff_data,
)


# --- Figures 1 and 5 ------------------------------------------------------------------------------


def figure1(results, published=None, *, form="converted"):
    """Figure 1: macro ROC-AUC across regimes, a panel per dataset; each backbone, and their mean ± std."""
    return _across_regimes(results, published, "auroc", form)


def figure5(results, published=None, *, form="converted"):
    """Figure 5: macro AUPRC across regimes, drawn like Figure 1."""
    return _across_regimes(results, published, "auprc", form)


@styled
def _across_regimes(results, published, metric, form):
    data = regimes_data(results, metric, published, form=form)
    if data.empty:
        return empty(f"{title(metric)} across regimes: no cell of these results is done yet.")
    regimes = [r for r in REGIMES if r in results.regimes]
    figure, axes = new(1, len(results.datasets), height=1.5 + 0.47 * len(regimes), sharey=True)
    for axis, dataset in zip(axes[0], results.datasets):
        _regime_panel(axis, data[data["dataset"] == dataset], regimes, results)
        axis.set_title(title(dataset))
        axis.set_xlabel(f"Macro {title(metric)}")
    axes[0, 0].set_yticks(range(len(regimes)), [title(r) for r in regimes])
    axes[0, 0].set_ylim(len(regimes) - 0.4, -0.6)
    backbone_legend(figure, results.backbones, extra=_mean_handles(data))
    return described(figure, _regimes_alt(data, metric, results, regimes))


def _regime_panel(axis, data, regimes, results):
    """One dataset: per regime a bar of mean ± std, the mean's own interval, a marker per backbone."""
    if data.empty:
        return absent(axis)
    spread = {b: k for k, b in enumerate(results.backbones)}
    mean = data[data["backbone"] == "mean"].set_index("regime")
    for y, regime in enumerate(regimes):
        if regime not in mean.index:
            axis.text(0.5, y, "missing", transform=axis.get_yaxis_transform(), ha="center", va="center", color=MUTED)
            continue
        row, colour = mean.loc[regime], regime_colour(regime)
        std = 0.0 if math.isnan(row["between_std"]) else row["between_std"]

        left, right = max(0.0, row["value"] - std), min(1.0, row["value"] + std)
        axis.barh(y, right - left, left=left, height=0.62, color=colour, alpha=0.3, linewidth=0)
        axis.plot([row["value"]] * 2, [y - 0.36, y + 0.36], color=colour, linewidth=3, solid_capstyle="butt")
        if not math.isnan(row["low"]):
            axis.plot([row["low"], row["high"]], [y + 0.36] * 2, color=INK, linewidth=1.2, solid_capstyle="butt")
        if not math.isnan(row["paper"]):
            axis.plot(row["paper"], y, "D", markersize=7, markerfacecolor="none", markeredgecolor=INK, zorder=5)
    for point in data[data["backbone"] != "mean"].to_dict("records"):
        colour, marker = backbone_style(point["backbone"])
        step = 0.5 * (spread[point["backbone"]] / max(1, len(spread) - 1) - 0.5)
        axis.plot(
            point["value"],
            regimes.index(point["regime"]) + step,
            marker,
            color=colour,
            markersize=5,
            markeredgecolor=INK,
            markeredgewidth=0.5,
            zorder=4,
            linestyle="none",
        )
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.06)
    few_ticks(axis.xaxis, 3)
    counts = data[data["backbone"] != "mean"].groupby("regime").size()
    for regime, n in counts[counts < len(results.backbones)].items():
        left = mean["value"].get(regime, 0) > sum(axis.get_xlim()) / 2  # where there is room
        axis.text(
            0.01 if left else 0.99,
            regimes.index(regime) - 0.5,
            f"{n} of {len(results.backbones)}",
            transform=axis.get_yaxis_transform(),
            ha="left" if left else "right",
            va="center",
            color=MUTED,
        )


def _mean_handles(data):
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Line2D(
            [],
            [],
            color=MUTED,
            linewidth=3,
            linestyle="none",
            marker="|",
            markersize=11,
            markeredgewidth=3,
            label="mean",
        ),
        Patch(color=MUTED, alpha=0.3, label="± std of backbones"),
    ]
    if data["low"].notna().any():
        handles.append(Line2D([], [], color=INK, linewidth=1.2, label="95 % interval of mean"))
    if data["paper"].notna().any():
        handles.append(
            Line2D([], [], marker="D", linestyle="none", markerfacecolor="none", markeredgecolor=INK, label="paper")
        )
    return handles


def _regimes_alt(data, metric, results, regimes):
    mean = data[data["backbone"] == "mean"].set_index(["dataset", "regime"])["value"]
    said = []
    for dataset in results.datasets:
        known = [f"{title(r)} {mean[dataset, r]:.3f}" for r in regimes if (dataset, r) in mean.index]
        said.append(f"{title(dataset)}: {', '.join(known) or 'missing'}")
    return (
        f"Macro {title(metric)} of each precision regime, one panel per dataset, mean and standard "
        f"deviation across backbones with each backbone as a marker. Means: {'; '.join(said)}."
    )


# --- Figure 2 -------------------------------------------------------------------------------------


@styled
def figure2(results, published=None, *, engine="fbgemm", batch_size=1):
    """Figure 2: macro AUPRC against latency, FP32 (circle) and INT8-QAT (square), a colour per backbone."""
    from matplotlib.lines import Line2D

    data = tradeoff_data(results, engine=engine, batch_size=batch_size).dropna(subset=["value", "p50_ms"])
    if data.empty:
        return empty("AUPRC against latency: these results hold no backbone with both an AUPRC and a timing.")
    figure, axes = new(1, len(results.datasets), height=3.9)
    for axis, dataset in zip(axes[0], results.datasets):
        part = data[data["dataset"] == dataset]
        for backbone, points in part.groupby("backbone", sort=False):
            colour = backbone_style(backbone)[0]
            axis.plot(points["p50_ms"], points["value"], color=colour, linewidth=1, alpha=0.8)
            for p in points.to_dict("records"):
                axis.plot([p["p50_ms"]] * 2, [p["low"], p["high"]], color=colour, linewidth=1)
                axis.plot(
                    p["p50_ms"],
                    p["value"],
                    "o" if p["regime"] == "fp32" else "s",
                    color=colour,
                    markersize=8,
                    markeredgecolor=INK,
                    markeredgewidth=0.6,
                    linestyle="none",
                )
        _log_ms(axis, part["p50_ms"])
        axis.set(title=title(dataset), xlabel=f"p50 at batch {batch_size} (ms)")
        few_ticks(axis.yaxis, 5)
        if part.empty:
            absent(axis)
            axis.tick_params(axis="y", left=False, labelleft=False)
    axes[0, 0].set_ylabel("Macro AUPRC")
    _colour_legend(
        figure,
        results.backbones,
        [
            Line2D([], [], marker=m, color=MUTED, linestyle="none", markersize=8, markeredgecolor=INK, label=label)
            for m, label in (("o", "FP32"), ("s", f"INT8-QAT ({engine.upper()})"))
        ],
    )
    return described(figure, _tradeoff_alt(data, results, engine))


def _log_ms(axis, values):
    """Logarithmic milliseconds with plain labels at 1, 2, 5 times powers of ten that the data span."""
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    if len(values):
        low, high = values.min() / 1.35, values.max() * 1.35
        choices = [
            [s * 10.0**k for k in range(-2, 6) for s in steps if low <= s * 10.0**k <= high]
            for steps in ((1, 2, 5), (1, 3), (1,))
        ]
        ticks = next((c for c in choices if len(c) <= 6), choices[-1])
        axis.set_xlim(low, high)
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.set_xticks([], minor=True)


def _colour_legend(figure, backbones, extra):
    """Below the figure: a colour patch per backbone (the shape means something else here), then `extra`."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=backbone_style(b)[0], edgecolor=INK, linewidth=0.5, label=title(b)) for b in backbones]
    figure.legend(
        handles=[*handles, *extra],
        loc="outside lower center",
        ncols=5,
        handlelength=1,
        handletextpad=0.5,
        columnspacing=1.3,
    )


def _tradeoff_alt(data, results, engine):
    wide = data.pivot_table(index=["dataset", "backbone"], columns="regime", values=["value", "p50_ms"])
    both = wide.dropna()
    if both.empty or not {"fp32", f"qat-{engine}"} <= set(both["value"]):
        return f"Macro AUPRC against latency; no backbone has both an FP32 and an INT8-QAT ({engine}) point."
    faster = (both["p50_ms"]["fp32"] / both["p50_ms"][f"qat-{engine}"]).groupby("backbone").first()
    change = 100 * (both["value"][f"qat-{engine}"] - both["value"]["fp32"])
    return (
        "Scatter of macro AUPRC against median latency, one panel per dataset, FP32 as circles and "
        f"INT8-QAT as squares. From FP32 to INT8-QAT latency changes by a factor of {faster.min():.2f} "
        f"to {faster.max():.2f} and AUPRC by {change.min():+.1f} to {change.max():+.1f} percentage "
        "points."
    )


def figure2_interactive(results, *, engine="fbgemm", batch_size=1):
    """Figure 2 with values on hover, as a plotly figure (alternative text in `alt_text`)."""
    from plotly.subplots import make_subplots

    data = tradeoff_data(results, engine=engine, batch_size=batch_size).dropna(subset=["value", "p50_ms"])
    names = [title(d) for d in results.datasets]
    figure = make_subplots(rows=1, cols=max(1, len(names)), subplot_titles=names, horizontal_spacing=0.07)
    first = _first_time()
    for column, dataset in enumerate(results.datasets, 1):
        for backbone, points in data[data["dataset"] == dataset].groupby("backbone", sort=False):
            regimes = ["FP32" if r == "fp32" else "INT8-QAT" for r in points["regime"]]
            hover = "%{text}<br>%{x:.2f} ms<br>AUPRC %{y:.4f}<extra></extra>"
            figure.add_scatter(
                x=points["p50_ms"],
                y=points["value"],
                mode="lines+markers",
                name=title(backbone),
                row=1,
                col=column,
                legendgroup=backbone,
                showlegend=first(backbone),
                text=[f"{title(backbone)}, {r}" for r in regimes],
                hovertemplate=hover,
                line={"color": backbone_style(backbone)[0], "width": 1},
                marker={
                    "size": 11,
                    "symbol": ["circle" if r == "FP32" else "square" for r in regimes],
                    "line": {"width": 1},
                },
            )
    figure.update_xaxes(type="log", title=f"p50 at batch {batch_size} (ms)", dtick="D2")
    figure.update_yaxes(title="Macro AUPRC", col=1)
    alt = _tradeoff_alt(data, results, engine) if len(data) else "AUPRC against latency: missing."
    return _plotly_style(figure, alt, height=460)


def _first_time():
    """A function that is true for each name once: a legend entry stands where its name first appears."""
    seen = set()
    return lambda name: name not in seen and not seen.add(name)


def _plotly_style(figure, alt, height):
    """Transparent, in a mid grey that both a white and a dark page let one read."""
    grey = "#7a7a7a"
    figure.update_layout(
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        height=height,
        font={"color": grey, "size": 13},
        margin={"l": 60, "r": 10, "t": 40, "b": 10},
        legend={"orientation": "h", "y": -0.2},
        meta={"alt": " ".join(alt.split())},
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,.3)", linecolor=grey, zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,128,128,.3)", linecolor=grey, zeroline=False)
    return figure


# --- Figure 3 -------------------------------------------------------------------------------------


@styled
def figure3(results, published=None, *, engine="fbgemm", metric="auprc", per_backbone=True):
    """Figure 3: paired bootstrap differences, pooled and per backbone; square where p < 0.05, else circle."""
    from matplotlib.lines import Line2D

    data = forest_data(results, metric=metric, engine=engine)
    if data.empty:
        return empty(f"Paired bootstrap differences in {title(metric)}: missing from these results.")
    rows = ["all", *(b for b in results.backbones if per_backbone)]
    pairs = [" vs ".join("FP32" if k == "fp32" else f"INT8-{k.upper()}" for k in pair) for pair in PAIRS]
    each = max(1.55, 0.35 + 0.2 * len(rows))  # inches, so that the pair's name fits beside its panel
    figure, axes = new(len(pairs), len(results.datasets), height=1.0 + len(pairs) * each, sharey=True)
    for pair, line in zip(pairs, axes):
        for axis, dataset in zip(line, results.datasets):
            _forest_panel(axis, data[(data["pair"] == pair) & (data["dataset"] == dataset)], rows)
        line[0].set_yticks(range(len(rows)), ["All backbones", *(title(b) for b in rows[1:])])
        line[0].set_ylabel(pair, fontweight="bold")
    for top, bottom, dataset in zip(axes[0], axes[-1], results.datasets):
        top.set_title(title(dataset))
        bottom.set_xlabel(f"Δ{title(metric)} (percentage points)")
    axes[0, 0].invert_yaxis()
    handles = [
        Line2D([], [], marker=m, color=MUTED, markeredgecolor=INK, linestyle="none", label=label)
        for m, label in (("s", "p < 0.05"), ("o", "p ≥ 0.05"))
    ]
    handles.append(
        Line2D(
            [],
            [],
            marker="s",
            markerfacecolor=PAPER,
            markeredgecolor=INK,
            linestyle="none",
            label="p < 0.05, but not after Holm",
        )
    )
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=3,
        title="Line: 95 % interval. Right of zero: the first method is better.",
    )
    return described(figure, _forest_alt(data, results, pairs, metric))


def _forest_panel(axis, data, rows):
    axis.set_ylim(-0.7, len(rows) - 0.3)
    if data.empty:
        return absent(axis)
    axis.axvline(0, color=INK, linewidth=1)
    for r in data.to_dict("records"):
        if r["backbone"] not in rows:
            continue
        y, pooled = rows.index(r["backbone"]), r["backbone"] == "all"
        colour = INK if pooled else backbone_style(r["backbone"])[0]
        significant, kept = r["p_value"] < 0.05, not r["p_holm"] >= 0.05
        axis.plot([r["low_pp"], r["high_pp"]], [y, y], color=colour, linewidth=2.2 if pooled else 1.5)
        axis.plot(
            r["delta_pp"],
            y,
            "s" if significant else "o",
            color=colour,
            markersize=7 if pooled else 5.5,
            markeredgecolor=INK if pooled else colour,
            linestyle="none",
            zorder=4,
            markerfacecolor=PAPER if significant and not kept else colour,
        )
    for y in set(range(len(rows))) - {rows.index(b) for b in data["backbone"] if b in rows}:
        axis.text(
            0.99,
            y,
            "missing",
            transform=axis.get_yaxis_transform(),
            ha="right",
            va="center",
            color=MUTED,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1},
        )
    axis.margins(x=0.08)
    few_ticks(axis.xaxis, 4)


def _forest_alt(data, results, pairs, metric):
    said = []
    pooled = data[data["backbone"] == "all"].set_index(["dataset", "pair"])
    for pair in pairs:
        known = [
            f"{title(d)} {pooled.loc[(d, pair), 'delta_pp']:+.2f} "
            f"({pooled.loc[(d, pair), 'low_pp']:+.2f} to "
            f"{pooled.loc[(d, pair), 'high_pp']:+.2f})"
            for d in results.datasets
            if (d, pair) in pooled.index
        ]
        said.append(f"{pair}: {', '.join(known) or 'missing'}")
    return (
        f"Forest plot of paired bootstrap differences in {title(metric)}, in percentage points, rows of "
        "panels for three pairs of regimes and a column per dataset. Over all backbones: "
        f"{'; '.join(said)}."
    )


# --- Figure 4 -------------------------------------------------------------------------------------


@styled
def figure4(results, published=None, *, regime="ptq-fbgemm"):
    """Figure 4: AUPRC against the number of calibration images; a small panel per CNN, a row per dataset."""
    data = calibration_data(results, regime=regime)
    if data.empty:
        return empty("AUPRC against the number of calibration images: missing from these results.")
    cnns = [b for b in results.backbones if family(b) == "cnn"]
    figure, axes = new(
        len(results.datasets), len(cnns), height=1.1 + 1.35 * len(results.datasets), sharex=True, sharey="row"
    )
    for axis, backbone in zip(axes[0], cnns):
        axis.set_title(title(backbone), fontsize=FONT, loc="center")
    for line, dataset in zip(axes, results.datasets):
        for axis, backbone in zip(line, cnns):
            part = data[(data["dataset"] == dataset) & (data["backbone"] == backbone)]
            _sweep_panel(axis, part.sort_values("n_calibration"), backbone)
        line[0].set_ylabel(f"{title(dataset)}\nAUPRC")
        few_ticks(line[0].yaxis, 4)
    sizes = sorted(data["n_calibration"].unique())
    marks = sorted({sizes[0], sizes[len(sizes) // 2], sizes[-1]})
    axes[0, 0].set_xticks(marks, [f"{m:g}" for m in marks])
    note = textwrap.fill(_sweep_note(data, results), 100)
    figure.supxlabel(f"Calibration images\n{note}", fontsize=FONT)
    return described(figure, _sweep_alt(data, results))


def _sweep_panel(axis, part, backbone):
    colour, marker = backbone_style(backbone)
    if part.empty:  # the scale is shared with the panels beside
        axis.text(0.5, 0.5, "missing", transform=axis.transAxes, ha="center", va="center", color=MUTED)
    std = part["std"].fillna(0)
    axis.fill_between(
        part["n_calibration"], part["mean"] - std, part["mean"] + std, color=colour, alpha=0.35, linewidth=0
    )
    axis.plot(
        part["n_calibration"],
        part["mean"],
        color=colour,
        marker=marker,
        markersize=4,
        markeredgecolor=INK,
        markeredgewidth=0.4,
    )
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()


def _sweep_note(data, results):
    spread = {"folds": "over folds", "subsets": "over resampled subsets of one fold"}
    kinds = joined(dict.fromkeys(spread[s] for s in data["spread"]))
    dynamic = [title(b) for b in results.backbones if family(b) == "transformer"]
    note = f"Line: mean; band: ± 1 std {kinds}."
    return note + (f" {joined(dynamic)}: quantized dynamically, without calibration images." if dynamic else "")


def _sweep_alt(data, results):
    ends = data.sort_values("n_calibration").groupby(["dataset", "backbone"], sort=False)["mean"].agg(["first", "last"])
    change = 100 * (ends["last"] - ends["first"])
    said = [
        f"{title(d)} {change[d].min():+.1f} to {change[d].max():+.1f}"
        for d in results.datasets
        if d in change.index.get_level_values(0)
    ]
    return (
        "AUPRC after post-training quantization against the number of calibration images, one small "
        "panel per convolutional backbone and dataset, mean with a band of one standard deviation. "
        "Change from the smallest to the largest set in percentage points, over backbones: "
        f"{'; '.join(said)}. {_sweep_note(data, results)}"
    )


def figure4_interactive(results, *, regime="ptq-fbgemm"):
    """Figure 4 with values on hover, one panel per dataset, as a plotly figure."""
    from plotly.subplots import make_subplots

    data = calibration_data(results, regime=regime)
    names = [title(d) for d in results.datasets]
    figure = make_subplots(rows=1, cols=max(1, len(names)), subplot_titles=names, horizontal_spacing=0.07)
    first = _first_time()
    for column, dataset in enumerate(results.datasets, 1):
        for backbone, part in data[data["dataset"] == dataset].groupby("backbone", sort=False):
            figure.add_scatter(
                x=part["n_calibration"],
                y=part["mean"],
                mode="lines+markers",
                name=title(backbone),
                row=1,
                col=column,
                legendgroup=backbone,
                showlegend=first(backbone),
                line={"color": backbone_style(backbone)[0]},
                error_y={"type": "data", "array": part["std"].fillna(0), "thickness": 1, "width": 3},
                hovertemplate=f"{title(backbone)}<br>%{{x}} images<br>AUPRC %{{y:.4f}}<extra></extra>",
            )
    figure.update_xaxes(type="log", title="Calibration images", tickvals=sorted(data["n_calibration"].unique()))
    figure.update_yaxes(title="AUPRC", col=1)
    missing = "AUPRC against the number of calibration images: missing."
    alt = _sweep_alt(data, results) if len(data) else missing
    return _plotly_style(figure, alt, height=460)


# --- Figure 6 -------------------------------------------------------------------------------------


@styled
def figure6(results, published=None, *, engine="fbgemm", batch_size=1):
    """Figure 6: CPU latency of FP32 and INT8-PTQ per backbone, p50 and p99, and the speed-up."""
    from matplotlib.lines import Line2D

    data = latency_data(results, published, engine=engine, batch_size=batch_size)
    if data.empty:
        return empty("CPU latency of FP32 and INT8-PTQ: missing from these results.")
    figure, axes = new(height=1.4 + 0.36 * len(results.backbones))
    axis, regimes = axes[0, 0], ["fp32", f"ptq-{engine}"]
    ups = speedups(results, batch_size=batch_size, regime=regimes[1])
    ups = ups[ups["baseline"] == "eager"].set_index("backbone")["value"]
    theirs = (published or paper_results()).ratios
    theirs = theirs[(theirs["batch_size"] == batch_size) & (theirs["regime"] == regimes[1])]
    theirs = theirs.set_index("backbone")["speedup"]
    for y, backbone in enumerate(results.backbones):
        rows = data[data["backbone"] == backbone].set_index("regime")
        if len(rows) == 2:
            axis.plot(rows["p50_ms"], [y, y], color=GRID, linewidth=4, zorder=1)
        for regime, row in rows.iterrows():
            colour = regime_colour(regime)
            axis.plot([row["p50_ms"], row["p99_ms"]], [y, y], color=colour, linewidth=2)
            axis.plot(row["p99_ms"], y, "|", color=colour, markersize=9, markeredgewidth=2)
            axis.plot(
                row["p50_ms"],
                y,
                "o" if regime == "fp32" else "s",
                color=colour,
                markersize=8,
                markeredgecolor=INK,
                markeredgewidth=0.5,
            )
        said = f"{ups[backbone]:.2f}×" if backbone in ups else "not timed"
        said += f"  ({theirs[backbone]:.2f}×)" if backbone in theirs else ""
        axis.text(1.01, y, said, va="center", transform=axis.get_yaxis_transform())
    axis.text(1.01, -0.8, "speed-up (paper's)", transform=axis.get_yaxis_transform(), va="bottom", color=MUTED)
    axis.set_yticks(range(len(results.backbones)), [title(b) for b in results.backbones])
    axis.set_ylim(len(results.backbones) - 0.4, -0.6)
    _log_ms(axis, np.concatenate([data["p50_ms"], data["p99_ms"].dropna()]))
    axis.set_xlabel(f"Latency at batch {batch_size} on this CPU (ms, logarithmic)")
    axis.grid(axis="y", visible=False)
    handles = [
        Line2D([], [], marker=m, color=regime_colour(r), markeredgecolor=INK, markersize=8, label=f"{title(r)}, p50")
        for r, m in zip(regimes, "os")
    ]
    handles.append(
        Line2D([], [], marker="|", color=MUTED, markersize=9, markeredgewidth=2, linestyle="none", label="p99")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    known = [f"{title(b)} {ups[b]:.2f}" for b in results.backbones if b in ups]
    return described(
        figure,
        f"CPU latency at batch {batch_size} of FP32 and {title(regimes[1])} for each "
        "backbone, median and 99th percentile. Speed-up of INT8 over FP32: "
        f"{', '.join(known) or 'missing'}.",
    )


# --- Figure 7 -------------------------------------------------------------------------------------


@styled
def figure7(results, published=None, *, backbone="resnet50", engine="fbgemm"):
    """Figure 7: reliability (top label) of one backbone under FP32, PTQ and QAT, histograms below."""
    from matplotlib.lines import Line2D

    data = reliability_data(results, backbone=backbone, engine=engine)
    if data.empty:
        return empty(f"Reliability of {title(backbone)}: these results hold no predictions for it.")
    datasets, regimes = results.datasets, ["fp32", f"ptq-{engine}", f"qat-{engine}"]
    wide = len(datasets) > 2
    figure, axes = new(
        2, len(datasets), height=4.9, width=WIDTH if wide else 4.8, sharex=True, sharey="row", height_ratios=[3, 1.2]
    )
    said = []
    for column, dataset in enumerate(datasets):
        errors = reliability_panels(axes[:, column], data[data["dataset"] == dataset], regimes)
        axes[0, column].set_title(title(dataset))
        said.append(f"{title(dataset)}: " + (", ".join(f"{title(r)} {e:.3f}" for r, e in errors.items()) or "missing"))
        axes[1, column].set_xlabel("Confidence")
    axes[0, 0].set_ylabel("Fraction correct")
    axes[1, 0].set_ylabel("Share of\nimages")
    handles = [Line2D([], [], color=regime_colour(r), marker=m, label=title(r)) for r, m in zip(regimes, "osD")]
    figure.legend(
        handles=[*handles, Line2D([], [], color=INK, linestyle="--", label="perfect calibration")],
        loc="outside lower center",
        ncols=4 if wide else 2,
    )
    return described(
        figure,
        f"Reliability diagrams of {title(backbone)} with histograms of confidence "
        "below, one column per dataset. Top-label calibration error: "
        f"{'; '.join(said)}.",
    )


def reliability_panels(axes, data, regimes):
    """Draw curves on axes[0] and histograms on axes[1]; return {regime: top-label ECE}."""
    errors = {}
    axes[0].plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1)
    for k, (regime, marker) in enumerate(zip(regimes, "osD")):
        bins = data[data["regime"] == regime]
        if bins.empty:
            continue
        share, colour = bins["count"] / bins["count"].sum(), regime_colour(regime)
        errors[regime] = float((share * (bins["confidence"] - bins["frequency"]).abs()).sum())
        shown = bins[bins["count"] > 0]
        axes[0].plot(shown["confidence"], shown["frequency"], color=colour, linewidth=1.2, alpha=0.8)
        axes[0].scatter(
            shown["confidence"],
            shown["frequency"],
            s=12 + 90 * share[shown.index],
            color=colour,
            marker=marker,
            edgecolor=INK,
            linewidth=0.4,
            zorder=3,
            clip_on=False,
        )
        axes[1].stairs(share, [*bins["lower"], bins["upper"].iloc[-1]], color=colour, linewidth=1.8)
        axes[1].text(0.1, 0.97 - 0.23 * k, f"ECE {errors[regime]:.3f}", transform=axes[1].transAxes, va="top")
        axes[1].plot(
            0.05,
            0.89 - 0.23 * k,
            marker=marker,
            color=colour,
            markersize=5.5,
            linestyle="none",
            transform=axes[1].transAxes,
            markeredgecolor=INK,
            markeredgewidth=0.4,
        )
    axes[1].set_ylim(0, None)
    if not errors:
        axes[0].text(0.5, 0.55, "missing", transform=axes[0].transAxes, ha="center", color=MUTED)
    axes[0].set(xlim=(0, 1), ylim=(0, 1))
    axes[0].set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes[0].set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    return errors
