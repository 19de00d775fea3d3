"""Which choice makes post-training quantization collapse? Recipes from params/recipes.yaml, one cell at a time."""

import numpy as np
import pandas as pd

from medq import evaluate, metrics, params as profiles
from medq.augment import normalise, unnormalised
from medq.quantize import static
from medq.quantize.engines import ENGINES, Unsupported
from medq.quantize.stage import calibration, converted, float_model, outcome, prepared_model, simulated, study, tidy
from medq.results import FACTORS

TABLE, COMPOSITION = "ablation.csv", "composition.csv"
SCORES = ("auprc", "auroc", "ece", "ece_top_label", "brier")
MISTAKEN = {name: row.mistaken for name, row in ENGINES.items() if row.mistaken}


def measure(params, cell, part):
    """({ablation.csv: scores of `cell`'s FP32 model quantized by every recipe for both engines, composition.csv}, facts).

    `params.study.recipes` restricts the recipes (the default one always belongs to them). A transformer, whose dynamic
    quantization no recipe touches, has the rows of the default alone. composition.csv is of `batch_composition`.
    """
    family = profiles.backbones()[cell.backbone].family
    recipes = profiles.recipes()
    names = ["default"] if family == "transformer" else params.study.recipes
    if names is not None:
        recipes = {name: recipes[name] for name in dict.fromkeys(("default", *names))}
    model, rows, reasons, composition = float_model(params, cell, part), [], [], []
    for settings, uses in _grouped(recipes).items():
        batches = calibration(params, part, normalise if settings.normalised else unnormalised)
        try:
            prepared = prepared_model(model, family, uses[0][1], batches, params.image_size, settings)
            forms = {"fake-quant": simulated(prepared, family, "ptq")}
        except Unsupported as error:
            reasons += [f"{name} for {engine_name}: {error}" for name, engine_name, _ in uses]
            continue
        if settings.training_mode and settings.normalised and not composition:
            composition = batch_composition(forms["fake-quant"], part, params.seed)
        switches = {factor: str(getattr(settings, "batch_norm" if factor == "fused" else factor)) for factor in FACTORS}
        for name, engine_name, run_engine in uses:
            facts = {"recipe": name, "engine": engine_name, "run_engine": run_engine} | switches
            try:
                quantized = converted(prepared, run_engine)
                forms["converted"] = _scores(quantized, part)
            except (Unsupported, FloatingPointError) as error:
                forms.pop("converted", None)
                reasons.append(f"{name} for {engine_name}: {error}")
            if not isinstance(forms["fake-quant"], dict):
                forms["fake-quant"] = _scores(forms["fake-quant"], part)
            rows += [facts | {"form": form} | scores for form, scores in forms.items()]
    rows.sort(key=lambda row: (list(MISTAKEN).index(row["engine"]), list(recipes).index(row["recipe"])))
    orders = pd.DataFrame(composition, columns=["order", "batch_size", *SCORES])
    return {TABLE: tidy(rows, cell, TABLE), COMPOSITION: orders}, outcome(reasons, rows)


def _grouped(recipes):
    """{settings: [(recipe's name, engine, engine that runs it)]}: recipes that come to the same are prepared once."""
    groups = {}
    for engine_name in MISTAKEN:
        for name, recipe in recipes.items():
            settings = static.resolved(recipe, engine_name).model_copy(update={"title": "", "run_engine": "same"})
            run_engine = MISTAKEN[engine_name] if recipe.run_engine == "other" else engine_name
            groups.setdefault(settings, []).append((name, engine_name, run_engine))
    return groups


def _scores(model, part, rows=None, batch_size=evaluate.BATCH):
    rows = part.held_out if rows is None else rows
    probability = evaluate.probabilities(model, part.images[rows], batch_size=batch_size)
    return {name: metrics.METRICS[name](part.labels[rows], probability) for name in SCORES}


def batch_composition(model, part, seed, batch_sizes=(evaluate.BATCH, 8)):
    """Scores of one model on the same held-out images by class and shuffled, in batches of several sizes.

    A model that was traced in training mode normalises each batch by the batch's own statistics: its prediction for an
    image depends on the images beside it. Any other model scores the same in every row. Returns a list of dicts.
    """
    by_class = part.held_out[np.argsort(part.labels[part.held_out], kind="stable")]
    orders = {"by class": by_class, "shuffled": np.random.default_rng(seed).permutation(part.held_out)}
    return [
        {"order": order, "batch_size": size} | _scores(model, part, rows, size)
        for order, rows in orders.items()
        for size in batch_sizes
    ]


run = study("ablation", measure)
