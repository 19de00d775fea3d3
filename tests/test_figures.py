"""Figures: what is drawn and where, one visual language, nothing cut off, the same bytes each time."""

import contextlib
import io
import itertools
import re
import warnings
from functools import cache
from pathlib import Path

import fixtures.results as fixtures
import matplotlib.colors
import medq_drawings as drawings
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.text import Text

from medq import figures, tables
from medq.figures import style
from medq.results import load, published, scores

DATASET = "SkinCancer"


def small():
    """One dataset, three backbones, three regimes."""
    return fixtures.world(
        datasets=("BrainMRI",),
        backbones=("resnet50", "mobilenetv2", "vit_base"),
        n=60,
        regimes=("fp32", "ptq-fbgemm", "qat-fbgemm"),
    )


def history(results):
    h = results.history
    return h[(h["dataset"] == "BrainMRI") & (h["backbone"] == "resnet18") & (h["regime"] == "fp32")]


def predictions(results, regime="ptq-fbgemm"):
    return results.predictions(DATASET, "resnet50", regime)


FIGURES = {
    **{f"figure{k}": getattr(figures, f"figure{k}") for k in range(1, 8)},
    "summary": figures.summary_figure,
    "sqnr": lambda r: figures.sqnr_figure(r, "BrainMRI", "mobilenetv2", "ptq-fbgemm"),
    "ablation": lambda r: figures.ablation_figure(r, "BrainMRI"),
    "remedies": lambda r: figures.remedies_figure(r, DATASET),
    "attention": lambda r: figures.attention_figure(r, DATASET),
    "gallery": lambda r: figures.attention_gallery(r, DATASET),
    "peers": lambda r: figures.peers_figure(r, DATASET),
    "reliability": lambda r: figures.reliability(predictions(r), regime="ptq-fbgemm"),
    "before_after": lambda r: figures.reliability(predictions(r), predictions(r, "fp32"), labels=("before", "after")),
    "training_curve": lambda r: figures.training_curve(history(r)),
    "confusion": lambda r: figures.confusion_matrix(predictions(r), dataset=DATASET, label="ResNet-50"),
}
PANELS = [*(f"figure{k}" for k in range(1, 8)), "summary"]  # whose layout follows the results
EXPLANATIONS = "regime_figure path_figure range_figure auroc_explained auprc_explained ece_explained brier_explained"
EXPLANATIONS = {name: getattr(drawings, name) for name in f"{EXPLANATIONS} decisions_explained".split()}
ALL = [*FIGURES, *EXPLANATIONS]


@cache
def drawn(name, results, phone=False):
    """A figure, laid out; drawn once for all tests that only look."""
    with figures.narrow() if phone else contextlib.nullcontext():
        figure = EXPLANATIONS[name]() if name in EXPLANATIONS else FIGURES[name](results)
    figure.draw_without_rendering()
    return figure


def panels(figure):
    """Axes of a figure that hold data, with their titles."""
    return {axis.get_title(loc="left") or axis.get_title(): axis for axis in figure.axes}


def markers(axis):
    """Visible markers drawn one by one: (x, y, marker, face colour)."""
    return [
        (line.get_xdata()[0], line.get_ydata()[0], line.get_marker(), line.get_markerfacecolor())
        for line in axis.lines
        if len(line.get_xdata()) == 1 and line.get_marker() not in ("None", "none", None)
    ]


# --- everything that is drawn ---------------------------------------------------------------------


@pytest.mark.parametrize("name, size", [*itertools.product(ALL, ("whole", "phone")), *((n, "small") for n in PANELS)])
def test_nothing_is_cut_off_small_or_overlapping(name, size, gaps):
    figure = drawn(name, gaps, True) if size == "phone" else drawn(name, small() if size == "small" else gaps)
    renderer = figure._get_renderer()
    width, height = figure.get_size_inches()
    assert width <= (4.2 if size == "phone" and name != "confusion" else style.WIDTH)
    everything = figure.get_tightbbox(renderer)  # of all that is drawn, in inches
    assert -0.02 <= everything.x0 and everything.x1 <= width + 0.02
    assert -0.02 <= everything.y0 and everything.y1 <= height + 0.02
    assert all(t.get_fontsize() >= 9 for t in figure.findobj(Text) if t.get_text().strip())
    assert not any("mathdefault" in t.get_text() for t in figure.findobj(Text))
    for axis in figure.axes:
        for ticks in (tick_boxes(axis.xaxis, renderer), tick_boxes(axis.yaxis, renderer)):
            assert not overlapping(ticks), [t for t, _ in ticks]
    outside = [(t.get_text(), t.get_window_extent(renderer)) for t in frame_texts(figure)]
    outside += [("legend", legend.get_window_extent(renderer)) for legend in figure.legends]
    assert not overlapping(outside), overlapping(outside)


def tick_boxes(axis, renderer):
    """Drawn tick labels of an axis and their boxes; rotated ones are left to the eye."""
    low, high = sorted(axis.get_view_interval())
    return [
        (label.get_text(), label.get_window_extent(renderer))
        for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels())
        if low <= place <= high and label.get_visible() and label.get_text() and label.get_rotation() in (0, 90)
    ]


def frame_texts(figure):
    """Titles, axis labels and figure labels that are not empty."""
    texts = [t for a in figure.axes for t in (a.title, a._left_title, a.xaxis.label, a.yaxis.label)]
    return [t for t in [*texts, *filter(None, (figure._supxlabel, figure._suptitle))] if t and t.get_text().strip()]


def overlapping(boxes):
    """Pairs of names whose boxes overlap by more than a pixel."""
    return [
        (a, b)
        for (a, p), (b, q) in itertools.combinations(boxes, 2)
        if min(p.x1, q.x1) - max(p.x0, q.x0) > 1 and min(p.y1, q.y1) - max(p.y0, q.y0) > 1
    ]


@pytest.mark.parametrize("name", ALL)
def test_axes_are_named_with_units_and_the_figure_in_words(name, gaps):
    figure = drawn(name, gaps)
    for axis in figure.axes:
        if axis.axison:
            column = [a for a in figure.axes if a.get_subplotspec().colspan == axis.get_subplotspec().colspan]
            row = [a for a in figure.axes if a.get_subplotspec().rowspan == axis.get_subplotspec().rowspan]
            across = [a.get_xlabel() for a in column] + [figure.get_supxlabel(), name == "brier_explained"]
            assert any(across), "what runs across"
            assert any(a.get_ylabel() or [t for t in a.get_yticklabels() if t.get_text()] for a in row), "and down"
    units = {"figure2": "(ms)", "figure6": "ms", "sqnr": "(dB)", "peers": "(×)"}
    units |= {"remedies": "(%)", "training_curve": "(%)"} | dict.fromkeys(("figure3", "summary"), "(percentage points)")
    said = " ".join(a.get_xlabel() + a.get_ylabel() for a in figure.axes)
    assert units.get(name, "") in said
    alt = figures.alt_text(figure)
    assert len(alt) > 60 and "nan" not in alt.lower() and "\n" not in alt


@pytest.mark.parametrize("name", FIGURES)
def test_empty_results_give_a_figure_that_says_so(name, tmp_path):
    figure = FIGURES[name](load(tmp_path))
    said = figures.alt_text(figure)
    assert re.search("missing|no cell|no predictions|hold no", said)
    assert figure.texts[0].get_text() == said


def test_saved_svg_is_the_same_each_time_and_described(gaps, tmp_path):
    for k in range(2):
        figures.save(FIGURES["figure7"](gaps), tmp_path / f"{k}.svg")
    first, second = ((tmp_path / f"{k}.svg").read_text() for k in range(2))
    assert first == second
    assert "<dc:date>" not in first and "<dc:description>" in first and "<text" not in first


@pytest.mark.parametrize("n", [1, 5])
def test_the_lowest_panel_of_each_column_of_runtimes_has_a_scale(full, n):
    few = fixtures.bent(full, peers=lambda p: p[p["backbone"].isin(full.backbones[:n])])
    figure = figures.peers_figure(few, "BrainMRI")
    figure.draw_without_rendering()
    shown = [a for a in figure.axes if a.axison]
    assert len(shown) == n
    for axis in {a.get_subplotspec().colspan.start: a for a in shown}.values():
        assert axis.get_xlabel() and any(t.get_visible() and t.get_text() for t in axis.get_xticklabels())


# --- one visual language --------------------------------------------------------------------------

MACHADO = {  # severity 1.0; Machado, Oliveira and Fernandes (2009), on linear RGB
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def linear(colour):
    c = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB (D65) of linear RGB."""
    xyz = XYZ @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", MACHADO)
@pytest.mark.parametrize("palette", ["regimes", "backbones"])
def test_colours_stay_apart_for_every_eye(palette, vision):
    backbones = {name: colour for name, (colour, _) in figures.BACKBONE_STYLES.items()}
    colours = figures.REGIME_COLOURS if palette == "regimes" else backbones
    seen = {name: lab(np.array(MACHADO[vision]) @ linear(colour)) for name, colour in colours.items()}
    for a, b in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[a] - seen[b]) >= 16, (a, b)  # 2.3 can just be told apart


def contrast(first, second):
    dark, light = sorted(XYZ[1] @ linear(colour) for colour in (first, second))
    return (light + 0.05) / (dark + 0.05)


def test_colours_stand_out_from_a_white_and_from_a_dark_page():
    every = [*figures.REGIME_COLOURS.values(), *(c for c, _ in figures.BACKBONE_STYLES.values())]
    for colour in every:
        assert contrast(colour, "#ffffff") >= 2 and contrast(colour, "#121212") >= 2, colour
        channels = [255 * c for c in matplotlib.colors.to_rgb(colour)]
        assert max(channels) - min(channels) >= 12, "greys change on a dark page, colours must not"
    assert contrast(style.INK, style.PAPER) >= 7 and contrast(style.MUTED, style.PAPER) >= 4.5


def test_every_backbone_has_its_own_marker_and_a_stranger_gets_one_too():
    shapes = [m for _, m in figures.BACKBONE_STYLES.values()]
    assert len(set(shapes)) == 8
    assert figures.backbone_style("mynet") == figures.backbone_style("mynet")
    assert figures.backbone_style("mynet")[0] not in [c for c, _ in figures.BACKBONE_STYLES.values()]
    assert figures.regime_colour("int4") == style.MUTED


def test_a_backbone_looks_the_same_everywhere(gaps):
    colour, marker = figures.BACKBONE_STYLES["mobilenetv2"]
    for name in ("figure1", "figure5", "summary", "remedies", "attention"):
        seen = {(m, matplotlib.colors.to_hex(c)) for axis in drawn(name, gaps).axes for _, _, m, c in markers(axis)}
        assert (marker, colour) in seen, name
        assert {m for m, c in seen if c == colour} == {marker}


# --- what each shows ------------------------------------------------------------------------------


def test_figure1_draws_every_cell_and_its_mean(gaps):
    data = tables.regimes_data(gaps, "auroc")
    axes = panels(drawn("figure1", gaps))
    assert list(axes) == ["BrainMRI", "ChestXray", "SkinCancer"]
    for dataset, axis in axes.items():
        points = [m for m in markers(axis) if m[2] in {s for _, s in figures.BACKBONE_STYLES.values()}]
        assert len(points) in (55, 56)
        places = sorted(x for x, *_ in points)
        own = data[(data["dataset"] == dataset) & (data["backbone"] != "mean")]["value"]
        assert np.allclose(places, np.sort(own))
        bars = [(p.get_x(), p.get_width()) for p in axis.patches]
        row = data[(data["dataset"] == dataset) & (data["backbone"] == "mean")].iloc[0]
        end = min(1.0, row["value"] + row["between_std"])
        assert (bars[0][0], sum(bars[0])) == pytest.approx((row["value"] - row["between_std"], end))
        assert axis.get_xlabel() == "Macro ROC-AUC"
    assert "7 of 8" in [t.get_text() for t in panels(drawn("figure1", gaps))["BrainMRI"].texts]


def test_figure2_circles_and_squares(gaps):
    figure = drawn("figure2", gaps)
    for dataset, axis in panels(figure).items():
        shapes = [m for _, _, m, _ in markers(axis)]
        assert shapes.count("o") == 8 and shapes.count("s") == (7 if dataset == "ChestXray" else 8)
        assert axis.get_xscale() == "log" and "ms" in axis.get_xlabel()
    axis = panels(figure)["BrainMRI"]
    colour = figures.BACKBONE_STYLES["densenet121"][0]
    square = next(m for m in markers(axis) if m[2] == "s" and matplotlib.colors.to_hex(m[3]) == colour)
    assert square[0] == pytest.approx(74.8 / 5.62)


@pytest.mark.parametrize("gone", ["fp32", "qat-fbgemm"])
def test_figure2_of_one_regime_says_that_no_backbone_has_both(full, gone):
    bent = fixtures.bent(full, metrics=lambda t: t[t["regime"] != gone])
    assert "no backbone has both" in figures.alt_text(figures.figure2(bent))
    assert "no backbone has both" in figures.alt_text(figures.figure2_interactive(bent))


def test_figure3_squares_where_significant(gaps):
    def half(b):
        return b.assign(p_value=np.where(b["backbone"] == "resnet18", 0.01, 0.6), p_holm=0.9)

    figure = figures.figure3(fixtures.bent(gaps, bootstrap=half))
    assert len(figure.axes) == 9
    axis = figure.axes[0]
    points = markers(axis)
    assert len(points) == 9 and [m for _, _, m, _ in points].count("s") == 1
    square = next(m for m in points if m[2] == "s")
    assert matplotlib.colors.to_hex(square[3]) == style.PAPER, "hollow: not significant after Holm"
    assert any(np.allclose(line.get_xdata(), 0) for line in axis.lines), "the zero line"
    pairs = [a.get_ylabel() for a in figure.axes[::3]]
    assert pairs == ["FP32 vs INT8-PTQ", "FP32 vs INT8-QAT", "INT8-PTQ vs INT8-QAT"]


def test_figure4_has_no_line_for_transformers_and_says_why(gaps):
    figure = drawn("figure4", gaps)
    assert len(figure.axes) == 3 * 6
    said = " ".join(figure.get_supxlabel().split())
    assert "Swin-T and ViT-B: quantized dynamically, without calibration images" in said
    axis = figure.axes[0]
    line = axis.lines[0]
    c = gaps.calibration_size
    own = c[(c["dataset"] == "BrainMRI") & (c["backbone"] == "resnet18")]
    assert np.allclose(line.get_ydata(), own.groupby("n_calibration")["auprc"].mean())
    assert list(line.get_xdata()) == [16, 32, 64, 128, 256, 512, 1024]


def test_figure4_spreads_over_folds_where_there_are_folds(gaps):
    folds = fixtures.bent(gaps, calibration_size=lambda c: pd.concat([c, c.assign(fold="1", auprc=c["auprc"] - 0.02)]))
    data = tables.calibration_data(folds)
    assert set(data["spread"]) == {"folds"} and (data["n"] == 2).all()
    assert np.allclose(data["std"], 0.02 / np.sqrt(2))
    assert "over folds" in figures.figure4(folds).get_supxlabel()


def test_medians_that_are_missing_are_left_out_of_figure6(gaps):
    """Results of earlier versions lack the median of few batches."""
    some, every = (
        fixtures.bent(gaps, latency=lambda t, rows=rows: t.assign(p50_ms=t["p50_ms"].mask(t["backbone"].isin(rows))))
        for rows in (["resnet18"], gaps.backbones)
    )
    shapes = [m for _, _, m, _ in markers(figures.figure6(some).axes[0])]
    assert shapes.count("o") == shapes.count("s") == 7
    assert figures.figure6(every) is not None


def test_figure6_shows_each_backbone_and_its_speedup(gaps):
    axis = drawn("figure6", gaps).axes[0]
    shapes = [m for _, _, m, _ in markers(axis)]
    assert shapes.count("o") == 8 and shapes.count("s") == 8 and shapes.count("|") == 16
    said = [t.get_text() for t in axis.texts]
    assert "5.62×  (5.62×)" in said and "1.05×  (1.03×)" in said


def test_figure7_draws_the_reliability_curve(gaps):
    from medq.metrics import expected_calibration_error

    figure = drawn("figure7", gaps)
    axes = np.array(figure.axes).reshape(2, 3)
    for column, dataset in enumerate(gaps.datasets):
        curves = [c for c in axes[0, column].collections if isinstance(c, PathCollection)]
        assert len(curves) == 3 and len(axes[1, column].patches) == 3
        bins = tables.reliability_data(gaps).query("dataset == @dataset and regime == 'fp32' and count > 0")
        band = next(c for c in axes[0, column].collections if isinstance(c, PolyCollection)).get_paths()[0].vertices
        assert band[:, 1].min() == bins["band_low"].min() and band[:, 1].max() == bins["band_high"].max()
        p = gaps.predictions(dataset, "resnet50", "fp32")
        ece = expected_calibration_error(p["label"].to_numpy(), p.filter(regex="^p_").to_numpy(), kind="top-label")
        assert axes[1, column].texts[0].get_text() == f"ECE {ece:.3f}"
    other = figures.figure7(gaps, backbone="vit_base")
    assert figures.alt_text(other).startswith("Reliability diagrams of ViT-B")


def test_summary_is_the_change_against_fp32(gaps):
    axis = drawn("summary", gaps).axes[0]
    value = scores(gaps, "auprc").set_index(["dataset", "backbone", "regime"])["value"]
    own = 100 * (value["BrainMRI", "mobilenetv2", "ptq-fbgemm"] - value["BrainMRI", "mobilenetv2", "fp32"])
    triangles = [x for x, _, m, _ in markers(axis) if m == "v"]
    assert np.isclose(triangles, own).any() and len(triangles) == 5
    assert "FP16" not in [t.get_text() for t in axis.get_yticklabels()]  # a training of its own is no cost of precision


def test_summary_leaves_out_what_was_not_run():
    planned = fixtures.world(datasets=("BrainMRI",), backbones=("resnet50",), n=60, regimes=("fp32", "ptq-fbgemm"))
    rows = [t.get_text() for t in figures.summary_figure(planned).axes[0].get_yticklabels()]
    assert rows == ["INT8-PTQ (FBGEMM)"]


def test_sqnr_names_the_three_worst_layers(gaps):
    figure = drawn("sqnr", gaps)
    worst = tables.worst_layers(gaps, "BrainMRI", "mobilenetv2", "ptq-fbgemm")
    label = figure.axes[0].get_xlabel()
    assert all(layer in label for layer in worst["layer"]) and len(worst) == 3
    assert len(figure.axes[0].lines[0].get_ydata()) == 12


def test_ablation_heat_map_holds_the_changes(gaps):
    texts = [t.get_text() for t in drawn("ablation", gaps).axes[0].texts]
    assert texts.count("-40.0") == 6 and texts.count("-30.0") == 1 and len(texts) == 18


def test_confusion_matrix_counts(gaps):
    from sklearn.metrics import confusion_matrix

    p = predictions(gaps)
    expected = confusion_matrix(p["label"], p.filter(regex="^p_").to_numpy().argmax(1), labels=range(7))
    axis = drawn("confusion", gaps).axes[0]
    assert [int(t.get_text()) for t in axis.texts] == expected.ravel().tolist()
    assert [t.get_text() for t in axis.get_xticklabels()][:2] == ["AKIEC", "BCC"]


def test_training_curve_rings_the_best_epoch(gaps):
    h = history(gaps).assign(accuracy=[0.5, 0.9, 0.8, 0.7, 0.6])
    ring = figures.training_curve(h).axes[1].lines[-1]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (2, pytest.approx(90))


def test_explanations_compute_what_they_say():
    of_class = np.array([[0.95], [0.88], [0.81], [0.72], [0.55], [0.34]])
    right = (of_class > [0.78, 0.61, 0.47, 0.42, 0.30, 0.24, 0.17, 0.12, 0.06]).sum()
    alt = figures.alt_text(drawings.auroc_explained())
    assert f"{right} of 54 pairs" in alt and f"{right / 54:.3f}" in alt
    parts = [0.15**2 + 0.1**2 + 0.05**2, 0.6**2 + 0.35**2 + 0.25**2, 0.05**2 + 0.85**2 + 0.8**2]
    assert f"Brier score of {np.mean(parts):.3f}" in figures.alt_text(drawings.brier_explained())


# --- interactive ----------------------------------------------------------------------------------


def test_interactive_figures_hold_the_same_points(gaps, tmp_path):
    two, four = figures.figure2_interactive(gaps), figures.figure4_interactive(gaps)
    assert len(two.data) == 3 * 8 and len(four.data) == 3 * 6
    assert len([t for t in two.data if t.showlegend]) == 8
    trace = next(t for t in two.data if t.name == "DenseNet-121")
    assert list(trace.marker.symbol) == ["circle", "square"] and trace.line.color == "#56b7d9"
    assert len(figures.alt_text(two)) > 60 and "AUPRC" in figures.alt_text(four)
    assert "cdn" not in two.to_html(include_plotlyjs=False)
    empty = load(tmp_path)
    assert "missing" in figures.alt_text(figures.figure2_interactive(empty))
    assert "missing" in figures.alt_text(figures.figure4_interactive(empty))


LABELS = (
    "10 $/h, \\frac $",
    "$x$",
    "a_b^c {d} $$",
    "良性 (结节)",
    "양성",
    "सौम्य",
    "حميد",
    "Ω ∅ ☃ é",
    "\U0001d49c",
    "良 $5 $",
)


@pytest.mark.parametrize("label", LABELS)
def test_any_label_can_be_drawn_without_boxes(label):
    probabilities = {f"p_{label} a": [0.9, 0.2, 0.7], f"p_{label} b": [0.1, 0.8, 0.3]}
    frame = pd.DataFrame({"image_id": list("abc"), "fold": 0, "label": [0, 1, 0]} | probabilities)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure = figures.confusion_matrix(frame, dataset="x", label=label)
        figure.savefig(io.BytesIO(), format="svg")
    said = [str(item.message) for item in caught]
    assert not [text for text in said if "missing from font" in text.lower()]
    drawn = {text.get_text() for text in figure.findobj(Text)}
    if not said:
        assert any(label in text for text in drawn)
    else:  # no installed font: the warning names the signs, and the labels hold their code points
        assert all(sign in said[0] for sign in label if ord(sign) > 0x2E00)
        assert label in {text.encode().decode("unicode_escape") for text in drawn if "\\" in text and text.isascii()}


def test_names_of_bars_are_drawn_without_boxes(monkeypatch):
    monkeypatch.setattr(style, "_families", lambda missing: [])  # no font has them

    @style.styled
    def bars():
        figure, axes = style.new(height=1)
        axes[0, 0].barh(["a 漢", "b"], [1, 2])
        return figure

    with pytest.warns(style.FontWarning, match="no installed font"):
        figure = bars()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="svg")
    assert {text.get_text() for text in figure.axes[0].get_yticklabels()} == {"a \\u6f22", "b"}


def test_logarithmic_axes_have_plain_labels():
    figure = figures.figure6(load(Path(__file__).parents[1] / "results" / "reference"))
    figure.savefig(io.BytesIO(), format="svg")
    assert not [text for text in figure.findobj(Text) if "mathdefault" in text.get_text()]


def test_summary_of_the_papers_numbers_says_that_nothing_was_run():
    assert "no cell of these results is done yet" in "".join(
        t.get_text() for t in figures.summary_figure(published()).texts
    )
