"""What each recipe of post-training quantization makes of a model."""

from medq.figures import style
from medq.figures.style import INK, described, empty, handle, regime_colour, styled
from medq.results import scores, title

ENGINES = {"fbgemm": "o", "qnnpack": "s"}  # marker
BRIER = title("brier")


@styled
def recipe_figure(results, dataset):
    """Brier score of every recipe, simulated, under both engines, best under fbgemm first; a panel per backbone, FP32 dashed."""
    frame = results.ablation[(results.ablation["form"] == "fake-quant") & (results.ablation["dataset"] == dataset)]
    if frame.empty:
        return empty(f"Recipes on {title(dataset)}: missing from these results.")
    before = scores(results, "brier").query("regime == 'fp32' and dataset == @dataset").set_index("backbone")["value"]
    wide = {b: part.pivot(index="recipe", columns="engine", values="brier") for b, part in frame.groupby("backbone")}
    order = next(iter(wide.values())).sort_values("fbgemm").index
    figure, axes = style.new(1, len(wide), height=1.3 + 0.22 * len(order), sharey=True)
    for axis, (backbone, part) in zip(axes[0], wide.items()):
        axis.axvline(before[backbone], color=INK, linestyle="--", linewidth=1)
        for engine, marker in ENGINES.items():
            style.point(axis, part[engine].reindex(order), range(len(order)), regime_colour(f"ptq-{engine}"), marker, 6)
        axis.set(title=title(backbone), xlabel=BRIER)
        axis.set_xlim(left=0)
        style.few_ticks(axis.xaxis, 5)
    axes[0, 0].set_yticks(range(len(order)), [recipe.replace("-", " ") for recipe in order])
    axes[0, 0].set_ylim(len(order) - 0.5, -0.5)
    marks = [handle(title(f"ptq-{e}"), regime_colour(f"ptq-{e}"), marker) for e, marker in ENGINES.items()]
    style.legend(figure, handles=[*marks, handle("FP32", INK, "", linestyle="--")], ncols=3)
    backbone, part = next(iter(wide.items()))
    what = f"{BRIER} of {title(backbone)} on {title(dataset)} per recipe for fbgemm, FP32 {before[backbone]:.2f}"
    return described(figure, what, part["fbgemm"].sort_values(), "{:.2f}")
