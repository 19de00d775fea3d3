"""How far quantization moves class activation maps, and the images whose maps moved most and least."""

import base64
import io

import numpy as np
from PIL import Image

from medq.figures import style
from medq.figures.style import INK, MUTED, WIDTH, backbone_style, described, empty, styled
from medq.regimes import INT8
from medq.results import CELL, title
from medq.tables.attention import attention_means

PANELS = {
    "rank_correlation": "Rank correlation",
    "overlap": "Overlap of the top 20 %",
    "absolute_change": "|Change of probability|",
}


@styled
def attention_figure(results, dataset):
    """Maps of every model against those of FP32: mean and 95 % interval per backbone, a panel per measure."""
    frame = attention_means(results)
    frame = frame[frame["dataset"] == dataset]
    if frame.empty:
        return empty(f"Class activation maps on {title(dataset)}: missing from these results.")
    models, backbones = (list(frame[column].unique()) for column in ("model", "backbone"))
    figure, axes = style.new(1, len(PANELS), height=1.6 + 0.42 * len(models), sharey=True)
    for axis, (measure, label) in zip(axes[0], PANELS.items()):
        axis.set_xlabel(label)
        for row in frame[frame["measure"] == measure].to_dict("records"):
            y = models.index(row["model"]) + style.step(row["backbone"], backbones)
            axis.hlines(y, row["low"], row["high"], color=backbone_style(row["backbone"])[0])
            style.point(axis, row["value"], y, *backbone_style(row["backbone"]), 6)
        axis.axhline(frame.loc[~frame["regime"].isin(INT8), "model"].nunique() - 0.5, color=MUTED, linewidth=0.8)
        style.few_ticks(axis.xaxis, 4)
    style.name_rows(axes[0], models)
    axes[0, 0].set_xlim(right=1.02)
    style.backbone_legend(figure, backbones)
    mean = frame[frame["measure"] == "rank_correlation"].groupby("model", sort=False)["value"].mean()
    what = f"How far class activation maps lie from those of FP32 on {title(dataset)}, a row per model and a marker per backbone."
    return described(figure, f"{what} Mean rank correlation", mean, "{:.2f}")


@styled
def attention_gallery(results, dataset):
    """The images of a phantom whose map moved most (left) and least (right) in the first cell that stored some.

    Of each the image, the map of FP32 and that of the integer model.
    """
    shown = results.gallery[results.gallery["dataset"] == dataset]
    if shown.empty:
        return empty(f"Images of {title(dataset)} with their maps: missing from these results.")
    shown = shown[(shown[[*CELL, "fold"]] == shown[[*CELL, "fold"]].iloc[0]).all(axis=1)]
    name = ", ".join(title(shown[key].iloc[0]) for key in ("backbone", "regime", "dataset"))
    n = int(shown["place"].max())
    figure, axes = style.new(n, 6, height=0.7 + WIDTH / 6 * 1.15 * n, abreast=3)
    for axis in axes.flat:
        axis.set_axis_off()
    for row in shown.to_dict("records"):
        line = axes[int(row["place"]) - 1, 3 * (row["moved"] == "least") :][:3]
        line[0].imshow(Image.open(io.BytesIO(base64.b64decode(row["image"]))))
        line[0].set_title(f"ρ = {row['rank_correlation']:.2f}", fontweight="normal")
        for axis, values in zip(line[1:], (row["map_fp32"], row["map"])):
            values = np.array(values.split(), float)
            values = values.reshape(int(np.sqrt(len(values))), -1)
            axis.imshow(values, cmap="cividis")
            y, x = np.unravel_index(values.argmax(), values.shape)
            axis.plot(x, y, "o", markerfacecolor="none", markeredgecolor=INK)
        if row["place"] == 1:
            line[1].set_title("FP32", fontweight="normal")
            line[2].set_title("INT8", fontweight="normal")
    figure.suptitle(f"{name}:\nthe most moved first, the least moved last", x=0.005, ha="left")
    ends = shown.groupby("moved")["rank_correlation"].agg(["min", "max"]).stack()
    what = f"Generated images of {name} with the class activation maps of FP32 and of the integer model, whose maxima are circled."
    known = {f"{moved} ({end})": value for (moved, end), value in ends.items()}
    return described(figure, f"{what} Rank correlation of the maps that moved", known, "{:.2f}")
