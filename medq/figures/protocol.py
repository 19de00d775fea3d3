"""What each recipe of post-training quantization makes of the models of `results/pretrained`."""

from medq.figures import style
from medq.figures.style import INK, described, empty, handle, regime_colour, styled
from medq.results import scores, title

ENGINES = {"fbgemm": "o", "qnnpack": "s"}  # marker


@styled
def recipe_figure(results, metric="brier", *, form="fake-quant"):
    """The score of each recipe under both engines, sorted by the first; a panel per model, FP32 as a dashed line."""
    frame = results.ablation[results.ablation["form"] == form]
    if frame.empty:
        return empty("Recipes under the paper's protocol: missing from these results.")
    before = scores(results, metric, form=form).query("regime == 'fp32'").set_index(["dataset", "backbone"])["value"]
    models = frame.groupby(["dataset", "backbone"], sort=False)
    wide = {model: part.pivot(index="recipe", columns="engine", values=metric) for model, part in models}
    order = next(iter(wide.values())).sort_values("fbgemm").index
    figure, axes = style.new(1, len(wide), height=1.3 + 0.22 * len(order), sharey=True)
    for axis, (model, part) in zip(axes[0], wide.items()):
        part = part.reindex(order)
        for engine, marker in ENGINES.items():
            if engine in part:
                style.point(axis, part[engine], range(len(order)), regime_colour(f"ptq-{engine}"), marker, 6)
        axis.axvline(before[model], color=INK, linestyle="--", linewidth=1)
        axis.set(title=f"{title(model[1])}, {title(model[0])}", xlabel="Brier score" if metric == "brier" else metric)
        axis.set_xlim(left=0)
        style.few_ticks(axis.xaxis, 5)
    axes[0, 0].set_yticks(range(len(order)), [recipe.replace("-", " ") for recipe in order])
    axes[0, 0].set_ylim(len(order) - 0.5, -0.5)
    marks = [handle(engine, regime_colour(f"ptq-{engine}"), marker) for engine, marker in ENGINES.items()]
    style.legend(figure, handles=[*marks, handle("FP32", INK, "", linestyle="--")], ncols=3)
    model, part = next(iter(wide.items()))
    what = f"Brier score of {title(model[1])} on {title(model[0])} per recipe, FP32 {before[model]:.2f}"
    return described(figure, what, part["fbgemm"].sort_values(), "{:.2f}")
