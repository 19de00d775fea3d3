"""Figures 1 to 7 of the paper, from a result folder, and interactive forms of 2 and 4."""

import math
import textwrap

import numpy as np
from matplotlib.patches import Patch

from medq.figures import style
from medq.figures.style import FONT, GRID, INK, MUTED, PAPER, WIDTH
from medq.figures.style import backbone_style, described, empty, handle, regime_colour, styled
from medq.regimes import REGIMES
from medq.results import family, published, title
from medq.tables import PAIRS, calibration_data, forest_data, latency_data, plotted, regimes_data, reliability_data
from medq.tables import speedups

# --- Figures 1 and 5 ------------------------------------------------------------------------------


@styled
def figure1(results, *, metric="auroc"):
    """Figure 1: macro ROC-AUC across regimes, a panel per dataset; each backbone, and their mean ± std."""
    data = regimes_data(results, metric)
    if data.empty:
        return empty(f"{title(metric)} across regimes: no cell of these results is done yet.")
    regimes = [r for r in REGIMES if r in results.regimes]
    figure, axes = style.new(1, len(results.datasets), height=1.5 + 0.47 * len(regimes), sharey=True)
    for axis, dataset in zip(axes[0], results.datasets):
        _regime_panel(axis, data[data["dataset"] == dataset], regimes, results.backbones)
        axis.set(title=title(dataset), xlabel=f"Macro {title(metric)}")
    style.name_rows(axes[0], map(title, regimes))
    mean = data[data["backbone"] == "mean"]
    handles = [handle("mean", marker="|", markersize=11, markeredgewidth=3)]
    handles.append(Patch(color=MUTED, alpha=0.3, label="± std of backbones"))
    if data["low"].notna().any():
        handles.append(handle("95 % interval of mean", INK, None, linestyle="-", linewidth=1.2))
    style.backbone_legend(figure, results.backbones, extra=handles)
    known = {f"{title(d)}, {title(r)}": v for d, r, v in zip(mean["dataset"], mean["regime"], mean["value"])}
    what = f"Macro {title(metric)} of each regime, a panel per dataset. Means over backbones"
    return described(figure, what, known)


def figure5(results):
    """Figure 5: macro AUPRC across regimes, drawn like Figure 1."""
    return figure1(results, metric="auprc")


def _regime_panel(axis, data, regimes, backbones):
    """One dataset: per regime a bar of mean ± std, the mean's own interval, a marker per backbone."""
    if data.empty:
        return style.absent(axis)
    cells, mean = data[data["backbone"] != "mean"], data[data["backbone"] == "mean"].set_index("regime")
    place = {"transform": axis.get_yaxis_transform(), "va": "center", "color": MUTED}
    for y, regime in enumerate(regimes):
        if regime not in mean.index:
            axis.text(0.5, y, "missing", ha="center", **place)
            continue
        row, colour = mean.loc[regime], regime_colour(regime)
        std = np.nan_to_num(row["between_std"])
        left, right = max(0.0, row["value"] - std), min(1.0, row["value"] + std)
        axis.barh(y, right - left, left=left, height=0.62, color=colour, alpha=0.3, linewidth=0)
        axis.plot([row["value"]] * 2, [y - 0.36, y + 0.36], color=colour, linewidth=3, solid_capstyle="butt")
        if not math.isnan(row["low"]):
            axis.plot([row["low"], row["high"]], [y + 0.36] * 2, color=INK, linewidth=1.2, solid_capstyle="butt")
    for b, regime, value in zip(cells["backbone"], cells["regime"], cells["value"]):
        style.point(axis, value, regimes.index(regime) + style.step(b, backbones), *backbone_style(b), zorder=4)
    axis.margins(x=0.06)
    style.few_ticks(axis.xaxis, 3)
    counts = cells.groupby("regime").size()
    for regime, n in counts[counts < len(backbones)].items():
        room = mean["value"].get(regime, 0) > sum(axis.get_xlim()) / 2
        x, side = (0.01, "left") if room else (0.99, "right")
        axis.text(x, regimes.index(regime) - 0.5, f"{n} of {len(backbones)}", ha=side, **place)


# --- Figure 2 -------------------------------------------------------------------------------------


@styled
def figure2(results):
    """Figure 2: macro AUPRC against latency at batch 1, FP32 (circle) and INT8-QAT (square), a colour per backbone."""
    data = plotted.tradeoff_data(results).dropna(subset=["value", "p50_ms"])
    if data.empty:
        return empty("AUPRC against latency: these results hold no backbone with both an AUPRC and a timing.")
    figure, axes = style.new(1, len(results.datasets), height=3.9)
    for axis, dataset in zip(axes[0], results.datasets):
        part = data[data["dataset"] == dataset]
        for backbone, points in part.groupby("backbone", sort=False):
            colour = backbone_style(backbone)[0]
            axis.plot(points["p50_ms"], points["value"], color=colour, linewidth=1, alpha=0.8)
            for p in points.to_dict("records"):
                axis.plot([p["p50_ms"]] * 2, [p["low"], p["high"]], color=colour, linewidth=1)
                style.point(axis, p["p50_ms"], p["value"], colour, "o" if p["regime"] == "fp32" else "s", 8)
        _log_ms(axis, part["p50_ms"])
        axis.set(title=title(dataset), xlabel="p50 at batch 1 (ms)")
        style.few_ticks(axis.yaxis, 5)
        if part.empty:
            style.absent(axis)
            axis.tick_params(axis="y", left=False, labelleft=False)
    axes[0, 0].set_ylabel("Macro AUPRC")
    shapes = {"o": "FP32", "s": "INT8-QAT (FBGEMM)"}
    edge = {"edgecolor": INK, "linewidth": 0.5}  # the shape means something else here, so a backbone is a patch
    handles = [Patch(facecolor=backbone_style(b)[0], label=title(b), **edge) for b in results.backbones]
    handles += [handle(label, marker=m, markersize=8, markeredgecolor=INK) for m, label in shapes.items()]
    style.legend(figure, handles=handles, ncols=5, handlelength=1, handletextpad=0.5, columnspacing=1.3)
    return described(figure, _tradeoff_alt(data))


def _log_ms(axis, values):
    """Logarithmic milliseconds with plain labels at 1, 2, 5 times powers of ten that the data span."""
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    if len(values):
        low, high = values.min() / 1.35, values.max() * 1.35
        for steps in ((1, 2, 5), (1, 3), (1,)):
            ticks = [s * 10.0**k for k in range(-2, 6) for s in steps if low <= s * 10.0**k <= high]
            if len(ticks) <= axis.figure.get_figwidth():
                break
        axis.set_xlim(low, high)
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.set_xticks([], minor=True)


def _tradeoff_alt(data):
    wide = data.pivot_table(index=["dataset", "backbone"], columns="regime", values=["value", "p50_ms"]).dropna()
    if wide.empty or not {"fp32", "qat-fbgemm"} <= set(wide["value"]):
        return "Macro AUPRC against latency; no backbone has both an FP32 and an INT8-QAT (fbgemm) point."
    fp32, qat = (wide.xs(regime, axis=1, level="regime") for regime in ("fp32", "qat-fbgemm"))
    times, points = fp32["p50_ms"] / qat["p50_ms"], 100 * (qat["value"] - fp32["value"])
    return (
        "Macro AUPRC against median latency, a panel per dataset, FP32 as circles and INT8-QAT as squares. From FP32 to "
        f"INT8-QAT latency changes by a factor of {times.min():.2f} to {times.max():.2f} and AUPRC by "
        f"{points.min():+.1f} to {points.max():+.1f} percentage points."
    )


def figure2_interactive(results):
    """Figure 2 with values on hover, as a plotly figure (alternative text in `alt_text`)."""
    data = plotted.tradeoff_data(results).dropna(subset=["value", "p50_ms"])

    def trace(points):
        regimes = ["FP32" if r == "fp32" else "INT8-QAT" for r in points["regime"]]
        symbols = ["circle" if r == "FP32" else "square" for r in regimes]
        return {
            "x": points["p50_ms"],
            "y": points["value"],
            "text": [f"{title(points['backbone'].iloc[0])}, {r}" for r in regimes],
            "hovertemplate": "%{text}<br>%{x:.2f} ms<br>AUPRC %{y:.4f}<extra></extra>",
            "marker": {"size": 11, "symbol": symbols, "line": {"width": 1}},
        }

    alt = _tradeoff_alt(data) if len(data) else "AUPRC against latency: missing."
    figure = _interactive(results, data, trace, alt)
    figure.update_xaxes(type="log", title="p50 at batch 1 (ms)", dtick="D2")
    figure.update_yaxes(title="Macro AUPRC", col=1)
    return figure


def _interactive(results, data, trace, alt):
    """A plotly figure, a panel per dataset and a line per backbone; `trace` gives what is special of a line.

    Transparent, in a mid grey that can be read on a white and on a dark page.
    """
    from plotly.subplots import make_subplots

    names, seen, grey, clear = [title(d) for d in results.datasets], set(), "#7a7a7a", "rgba(0,0,0,0)"
    figure = make_subplots(rows=1, cols=max(1, len(names)), subplot_titles=names, horizontal_spacing=0.07)
    for column, dataset in enumerate(results.datasets, 1):
        for backbone, points in data[data["dataset"] == dataset].groupby("backbone", sort=False):
            line = {"color": backbone_style(backbone)[0], "width": 1.5}
            legend = {"name": title(backbone), "legendgroup": backbone, "showlegend": backbone not in seen}
            figure.add_scatter(mode="lines+markers", row=1, col=column, line=line, **legend, **trace(points))
            seen.add(backbone)
    legend, margin = {"orientation": "h", "y": -0.2}, {"l": 60, "r": 10, "t": 40, "b": 10}
    figure.update_layout(paper_bgcolor=clear, plot_bgcolor=clear, height=460, font={"color": grey, "size": 13})
    figure.update_layout(margin=margin, legend=legend, meta={"alt": alt})
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(gridcolor="rgba(128,128,128,.3)", linecolor=grey, zeroline=False)
    return figure


# --- Figure 3 -------------------------------------------------------------------------------------


@styled
def figure3(results):
    """Figure 3: paired bootstrap differences in AUPRC, pooled and per backbone; square where p < 0.05, else circle."""
    data = forest_data(results)
    if data.empty:
        return empty("Paired bootstrap differences in AUPRC: missing from these results.")
    rows = ["all", *results.backbones]
    each = max(1.55, 0.35 + 0.2 * len(rows))  # inches, so that the pair's name fits beside its panel
    figure, axes = style.new(len(PAIRS), len(results.datasets), height=1.0 + len(PAIRS) * each, sharey=True)
    for pair, line in zip(PAIRS, axes):
        name = plotted.pair_title(pair)
        for axis, dataset in zip(line, results.datasets):
            _forest_panel(axis, data[(data["pair"] == name) & (data["dataset"] == dataset)], rows)
        line[0].set_yticks(range(len(rows)), ["All backbones", *map(title, rows[1:])])
        line[0].set_ylabel(name, fontweight="bold")
    for top, bottom, dataset in zip(axes[0], axes[-1], results.datasets):
        top.set_title(title(dataset))
        bottom.set_xlabel("ΔAUPRC (percentage points)")
    axes[0, 0].invert_yaxis()
    hollow = handle("p < 0.05, but not after Holm", INK, "s", markeredgecolor=INK, markerfacecolor=PAPER)
    note = "Line: 95 % interval. Right of zero: the first method is better."
    handles = [handle("p < 0.05", marker="s"), handle("p ≥ 0.05"), hollow]
    style.legend(figure, handles=handles, ncols=3, title=note)
    pooled = data[data["backbone"] == "all"]
    known = {f"{p}, {title(d)}": v for p, d, v in zip(pooled["pair"], pooled["dataset"], pooled["delta_pp"])}
    what = "Paired bootstrap differences in AUPRC, in percentage points, for three pairs of regimes and each dataset."
    return described(figure, f"{what} Over all backbones", known, "{:+.2f}")


def _forest_panel(axis, data, rows):
    axis.set_ylim(-0.7, len(rows) - 0.3)
    if data.empty:
        return style.absent(axis)
    axis.axvline(0, color=INK, linewidth=1)
    for r in data[data["backbone"].isin(rows)].to_dict("records"):
        y, pooled = rows.index(r["backbone"]), r["backbone"] == "all"
        colour = INK if pooled else backbone_style(r["backbone"])[0]
        significant, kept = r["p_value"] < 0.05, not r["p_holm"] >= 0.05
        axis.plot([r["low_pp"], r["high_pp"]], [y, y], color=colour, linewidth=2.2 if pooled else 1.5)
        face = {"markerfacecolor": PAPER if significant and not kept else colour, "markeredgecolor": colour}
        shape = "s" if significant else "o", 7 if pooled else 5.5
        style.point(axis, r["delta_pp"], y, colour, *shape, zorder=4, **face)
    place = {"transform": axis.get_yaxis_transform(), "ha": "right", "va": "center", "color": MUTED}
    for y in set(range(len(rows))) - {rows.index(b) for b in data["backbone"] if b in rows}:
        axis.text(0.99, y, "missing", bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1}, **place)
    axis.margins(x=0.08)
    style.few_ticks(axis.xaxis, 4)


# --- Figure 4 -------------------------------------------------------------------------------------


@styled
def figure4(results):
    """Figure 4: AUPRC against the number of calibration images; a small panel per CNN, a row per dataset."""
    data = calibration_data(results)
    if data.empty:
        return empty("AUPRC against the number of calibration images: missing from these results.")
    cnns = [b for b in results.backbones if family(b) == "cnn"]
    shape = {"height": 1.1 + 1.35 * len(results.datasets), "abreast": 2}
    figure, axes = style.new(len(results.datasets), len(cnns), sharex=True, sharey="row", **shape)
    for line, dataset in zip(axes, results.datasets):
        for axis, backbone in zip(line, cnns):
            part = data[(data["dataset"] == dataset) & (data["backbone"] == backbone)].sort_values("n_calibration")
            colour, marker = backbone_style(backbone)
            if part.empty:  # the scale is shared with the panels beside
                axis.text(0.5, 0.5, "missing", transform=axis.transAxes, ha="center", va="center", color=MUTED)
            ends = (part["mean"] + sign * part["std"].fillna(0) for sign in (-1, 1))
            axis.fill_between(part["n_calibration"], *ends, color=colour, alpha=0.35, linewidth=0)
            style.point(axis, part["n_calibration"], part["mean"], colour, marker, 4, linestyle="-")
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.minorticks_off()
        line[0].set_ylabel(f"{title(dataset)}\nAUPRC")
        style.few_ticks(line[0].yaxis, 4)
    for axis, backbone in zip(axes[0], cnns):
        axis.set_title(title(backbone), fontsize=FONT, loc="center")
    sizes = sorted(data["n_calibration"].unique())
    marks = sorted({sizes[0], sizes[len(sizes) // 2], sizes[-1]})
    axes[0, 0].set_xticks(marks, [f"{m:g}" for m in marks])
    spread = {"folds": "over folds", "subsets": "over resampled subsets of one fold"}
    dynamic = [title(b) for b in results.backbones if b not in cnns]
    note = f"Line: mean; band: ± 1 std {style.joined(dict.fromkeys(data['spread'].map(spread)))}."
    note += f" {style.joined(dynamic)}: quantized dynamically, without calibration images." if dynamic else ""
    lines = textwrap.fill(note, int(13 * figure.get_figwidth()))
    figure.supxlabel(f"Calibration images\n{lines}", fontsize=FONT)
    return described(figure, *_sweep_alt(data))


def _sweep_alt(data):
    ends = data.sort_values("n_calibration").groupby(["dataset", "backbone"], sort=False)["mean"].agg(["first", "last"])
    change = 100 * (ends["last"] - ends["first"])
    what = (
        "AUPRC after post-training quantization against the number of calibration images, for each convolutional "
        "backbone and dataset. Change in percentage points from the smallest to the largest set"
    )
    return what, {f"{title(d)} {title(b)}": v for (d, b), v in change.items()}, "{:+.1f}"


def figure4_interactive(results):
    """Figure 4 with values on hover, one panel per dataset, as a plotly figure."""
    data = calibration_data(results)

    def trace(part):
        name = title(part["backbone"].iloc[0])
        return {
            "x": part["n_calibration"],
            "y": part["mean"],
            "error_y": {"type": "data", "array": part["std"].fillna(0), "thickness": 1, "width": 3},
            "hovertemplate": f"{name}<br>%{{x}} images<br>AUPRC %{{y:.4f}}<extra></extra>",
        }

    missing = "AUPRC against the number of calibration images: missing."
    figure = _interactive(results, data, trace, style.listing(*_sweep_alt(data)) if len(data) else missing)
    figure.update_xaxes(type="log", title="Calibration images", tickvals=sorted(data["n_calibration"].unique()))
    figure.update_yaxes(title="AUPRC", col=1)
    return figure


# --- Figure 6 -------------------------------------------------------------------------------------


@styled
def figure6(results):
    """Figure 6: CPU latency at batch 1 of FP32 and INT8-PTQ per backbone, p50 and p99, and the speed-up."""
    data = latency_data(results).dropna(subset=["p50_ms"])
    if data.empty:
        return empty("CPU latency of FP32 and INT8-PTQ: missing from these results.")
    figure, axes = style.new(height=1.4 + 0.36 * len(results.backbones))
    axis, shapes = axes[0, 0], {"fp32": "o", "ptq-fbgemm": "s"}
    ups = speedups(results)
    ups = ups[ups["baseline"] == "eager"].set_index("backbone")["value"].dropna()
    theirs = published().ratios.set_index("backbone")["speedup"]
    beside = {"transform": axis.get_yaxis_transform()}
    for y, backbone in enumerate(results.backbones):
        rows = data[data["backbone"] == backbone].set_index("regime")
        if len(rows) == 2:
            axis.plot(rows["p50_ms"], [y, y], color=GRID, linewidth=4, zorder=1)
        for regime, row in rows.iterrows():
            colour = regime_colour(regime)
            axis.plot([row["p50_ms"], row["p99_ms"]], [y, y], color=colour, linewidth=2)
            axis.plot(row["p99_ms"], y, "|", color=colour, markersize=9, markeredgewidth=2)
            style.point(axis, row["p50_ms"], y, colour, shapes[regime], 8)
        ratio = f"{ups[backbone]:.2f}×" if backbone in ups else "not timed"
        ratio += f"  ({theirs[backbone]:.2f}×)" if backbone in theirs else ""
        axis.text(1.01, y, ratio, va="center", **beside)
    axis.text(1.01, -0.8, "speed-up (paper's)", va="bottom", color=MUTED, **beside)
    style.name_rows([axis], map(title, results.backbones))
    _log_ms(axis, np.concatenate([data["p50_ms"], data["p99_ms"].dropna()]))
    axis.set_xlabel("Latency at batch 1 on this CPU (ms, logarithmic)")
    edge = {"markeredgecolor": INK, "markersize": 8}
    handles = [handle(f"{title(r)}, p50", regime_colour(r), m, **edge) for r, m in shapes.items()]
    handles.append(handle("p99", marker="|", markersize=9, markeredgewidth=2))
    style.legend(figure, handles=handles, ncols=3)
    what = "CPU latency at batch 1 of FP32 and INT8-PTQ for each backbone, median and 99th percentile."
    known = {title(b): ups[b] for b in results.backbones if b in ups}
    return described(figure, f"{what} Speed-up of INT8 over FP32", known, "{:.2f}")


# --- Figure 7 -------------------------------------------------------------------------------------


@styled
def figure7(results, *, backbone="resnet50"):
    """Figure 7: reliability (top label) of one backbone under FP32, PTQ and QAT, histograms below."""
    data = reliability_data(results, backbone=backbone)
    if data.empty:
        return empty(f"Reliability of {title(backbone)}: these results hold no predictions for it.")
    regimes = ["fp32", "ptq-fbgemm", "qat-fbgemm"]
    columns = {title(d): data[data["dataset"] == d] for d in results.datasets}
    wide = len(columns) > 2
    figure, errors = reliability_panels(columns, regimes, height=4.9, width=WIDTH if wide else 4.8)
    handles = [handle(title(r), regime_colour(r), m, linestyle="-") for r, m in zip(regimes, "osD")]
    handles.append(handle("perfect calibration", INK, None, linestyle="--"))
    style.legend(figure, handles=handles, ncols=4 if wide else 2)
    what = f"Reliability diagrams of {title(backbone)} with histograms of confidence below, a column per dataset."
    known = {f"{d} {title(r)}": e for (d, r), e in errors.items()}
    return described(figure, f"{what} Top-label calibration error", known)


def reliability_panels(columns, regimes, **shape):
    """Reliability diagrams, with histograms below, of {title: bins of `tables.reliability_bins`}.

    Returns the figure and {(title, regime): top-label ECE}. The pale band is where the bins of a calibrated model lie in
    95 % of samples of this size.
    """
    figure, axes = style.new(2, len(columns), sharex=True, sharey="row", height_ratios=[3, 1.2], **shape)
    errors, edge = {}, {"edgecolor": INK, "linewidth": 0.4, "zorder": 3, "clip_on": False}
    for (above, below), (name, data) in zip(axes.T, columns.items()):
        above.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1)
        for k, (regime, marker) in enumerate(zip(regimes, "osD")):
            bins, colour = data[data["regime"] == regime], regime_colour(regime)
            if bins.empty:
                continue
            errors[name, regime] = ece = bins["ece"].iloc[0]
            share, shown = bins["count"] / bins["count"].sum(), bins[bins["count"] > 0]
            band = {"color": colour, "alpha": 0.12, "linewidth": 0}
            above.fill_between(shown["confidence"], shown["band_low"], shown["band_high"], **band)
            above.plot(shown["confidence"], shown["frequency"], color=colour, linewidth=1.2, alpha=0.8)
            sizes = 12 + 90 * share[shown.index]
            above.scatter(shown["confidence"], shown["frequency"], s=sizes, color=colour, marker=marker, **edge)
            below.stairs(share, [*bins["lower"], bins["upper"].iloc[-1]], color=colour, linewidth=1.8)
            below.text(0.1, 0.97 - 0.23 * k, f"ECE {ece:.3f}", transform=below.transAxes, va="top")
            style.point(below, 0.05, 0.89 - 0.23 * k, colour, marker, 5.5, transform=below.transAxes)
        if not any(known == name for known, _ in errors):
            above.text(0.5, 0.55, "missing", transform=above.transAxes, ha="center", color=MUTED)
        ticks = [0, 0.5, 1], ["0", "0.5", "1"]
        above.set(title=name, xlim=(0, 1), ylim=(0, 1))
        above.set_xticks(*ticks)
        above.set_yticks(*ticks)
        below.set(xlabel="Confidence")
        below.set_ylim(0, None)
    axes[0, 0].set_ylabel("Fraction correct")
    axes[1, 0].set_ylabel("Share of\nimages")
    return figure, errors
