"""Every table by its name: the function that makes it, and how it is printed. `show` prints, `data` returns."""

from typing import NamedTuple

import pandas as pd

from medq.errors import one_of
from medq.results import class_title, counterpart, title
from medq.results import published as paper_results
from medq.tables import about, beyond, paper, plotted
from medq.tables.beyond import COLLAPSE, GAP, VARIANTS, disturbed, other_models
from medq.tables.attention import attention
from medq.tables.changes import SCORES, changes
from medq.tables.entries import PAPER_REGIMES, comparable, covers
from medq.tables.html import STYLE, Look, to_html


class Shown(NamedTuple):
    """A table: its numbers, one row each, its caption, and its HTML."""

    data: pd.DataFrame
    caption: str
    html: str

    def _repr_html_(self):
        return f"{STYLE}\n<p>{self.caption}</p>{self.html}"


def _levels(results):
    """What Tables 1 and 3 do with the paper's levels: compare them, or say why they cannot be compared."""
    if comparable(results):
        return {}
    why = (
        "The paper's values are shown but not compared: its models were fine-tuned from ImageNet weights at 224 pixels, "
        "and these were not."
    )
    return {"compared": (), "notes": (why,)}


def _floors(results):
    """What the binned ECE of a calibrated FP32 model would be, for each dataset."""
    rows = results.intervals.query("metric == 'ece_floor' and backbone == 'mean' and regime == 'fp32'")
    floors = ", ".join(f"{title(d)} {v:.4f}" for d, v in zip(rows["dataset"], rows["value"]))
    return (
        f"A perfectly calibrated model with FP32's probabilities would show a binned ECE of: {floors}."
        if floors
        else ""
    )


def _table1(results, form="fake-quant"):
    what = {"fake-quant": "fake-quantized models, as in the paper's Table 1"}
    what = what.get(form, "converted models, as they would be deployed")
    look = _levels(results)
    mean = (
        "Mean over backbones; for Brier with the 95 % bootstrap interval of that mean. The binned ECE has no interval."
    )
    return Look(
        f"Calibration summary across backbones: ECE and Brier ({what}; lower is better)",
        formats={None: "{:.4f}"},
        rows=("dataset", "metric"),
        across="regime",
        lowest=tuple(PAPER_REGIMES),
        **look | {"notes": (f"{mean} {covers(results)}", _floors(results), *look.get("notes", ()))},
    )


def _table2(results, batch_size=32):
    once = "Timed once per backbone, not per dataset: only the classifier's width differs."
    return Look(
        f"CPU efficiency of INT8-PTQ at batch {batch_size} (median within the family)",
        (
            "In parentheses the least and the greatest of the family's backbones.",
            once if results.latency["dataset"].eq("").any() else "",
            "Seconds and milliseconds belong to the machine; the last column can be compared.",
            disturbed(results, "latency"),
        ),
        {"throughput": "{:.1f}", "p50_ms": "{:.0f}", "convert_seconds": "{:.1f}", "against_fbgemm": "{:.2f}"},
        paper.TABLE2,
        rows=("dataset", "family", "engine"),
        across="quantity",
        compared=("against_fbgemm",),
        interval="the range of our backbones",
    )


def _table3(results, dataset=None, backbone="resnet50", engine="fbgemm", form="converted"):
    look = _levels(results)
    notes = (f"In parentheses the 95 % bootstrap interval within the cell. {covers(results)}", *look.get("notes", ()))
    if backbone != "resnet50":
        notes += ("The paper's Table 3 is for ResNet-50 alone.",)
    classes = {
        f"{c} {m}": f"{class_title(dataset, c)} {title(m)}" for c in results.classes(dataset) for m in SCORES[:2]
    }
    return Look(
        f"Per-class AUPRC and ROC-AUC of {title(backbone)} across regimes, {title(dataset)}",
        formats={None: "{:.2f}" if counterpart(dataset) == "SkinCancer" else "{:.3f}"},
        labels=classes,
        rows=("regime",),
        across="column",
        **look | {"notes": notes},
    )


def _table4(results, batch_size=1, engine="fbgemm"):
    ratios = ("fp32_tail", "int8_tail", "speedup", "size_ratio")
    return Look(
        f"CPU latency at batch {batch_size}, FP32 and INT8-PTQ ({engine}), speed-up and size",
        (
            "In parentheses a 95 % interval from 20 consecutive blocks of batches (none for p99). That of a median supposes a "
            "machine that does not drift; that of a speed-up does not.",
            "Milliseconds belong to the machine; the ratios can be compared.",
            disturbed(results, "latency"),
        ),
        {None: "{:.1f}", "best_speedup": "{:.2f}"} | dict.fromkeys(ratios, "{:.2f}"),
        paper.TABLE4,
        rows=("backbone",),
        across="quantity",
        compared=ratios,
    )


def _ablation(results):
    limit = (
        f"Collapsed: {COLLAPSE:.2f} less AUPRC, or {COLLAPSE:.2f} more top-label ECE, than the default recipe gives."
    )
    return Look(
        "The smallest change of recipe that makes PTQ collapse",
        (limit, other_models(results, "ablation")),
        {None: "{:.3f}", "n_changes": "{:.0f}", "tried": "{:.0f}"},
        {"n_changes": "Number of changes", "tried": "Recipes tried"}
        | {f"{m}_before": f"{title(m)} by default" for m in ("auprc", "ece", "ece_top_label")},
    )


def _remedies(results):
    percent = {f"{m}_closed": "{:.0%}" for m in SCORES}
    return Look(
        "Remedies without retraining: share of the PTQ to FP32 gap closed",
        (f"No share is given where PTQ is not worse than FP32 by {GAP} or more.", other_models(results, "remedies")),
        {None: "{:.4f}", **percent, "slowdown": "{:.2f}×"},
        {c: f"{title(c.removesuffix('_closed'))}, gap closed" for c in percent},
    )


def _peers(results):
    sizes = "/".join(f"{size:g}" for size in sorted(results.peers["image_size"].dropna().unique())) or "?"
    return Look(
        "The same models in other INT8 runtimes",
        (
            "Pareto: no other row of the model at this batch size is as fast and as well calibrated, and better in one.",
            f"Times at {sizes} pixels, whatever the size the models were trained at.",
            "No p99 where there are fewer than 368 batches.",
            other_models(results, "peers"),
            disturbed(results, "peers"),
        ),
        {None: "{:.2f}", "batch_size": "{:.0f}", "image_size": "{:.0f}", **dict.fromkeys(SCORES, "{:.4f}")},
        {"name": "Runtime", "runtime": "Key", "precision": "Precision"},
    )


RISES = ("ece_rise", "brier_rise", "nll_rise")
COST = {  # what advice costs, wherever it is printed
    "formats": {None: "{:.2f}", "batch_size": "{:.0f}", "auprc_loss_pp": "{:+.2f}", "speedup": "{:.2f}×"}
    | dict.fromkeys(RISES, "{:+.4f}"),
    "labels": {"speedup": "Speed-up over eager FP32", "auprc_loss_pp": "AUPRC loss (points)", "beaten_by": "Beaten by"}
    | {r: f"{title(r.removesuffix('_rise'))} rise" for r in RISES},
}
COUNTS = dict.fromkeys(("crossed_up", "crossed_down", "n"), "{:.0f}")
WHOLE, SIGNED = {None: "{:,.0f}"}, {None: "{:.4f}", "effect": "{:+.4f}"}


def _variant(kind):
    note = "One training run each: a difference holds the scatter between runs, too."
    return lambda r, p: beyond.beside_variant(r, kind), Look(f"As in the paper, and {VARIANTS[kind]}", (note,), SIGNED)


TABLES = {  # name: function of (results, published, **options); its Look, or a function of (results, **options)
    "table1": (paper.table1, _table1),
    "table2": (paper.table2, _table2),
    "table3": (paper.table3, _table3),
    "table4": (paper.table4, _table4),
    "figure1": (lambda r, p: plotted.regimes_data(r, "auroc", p), Look("ROC-AUC by regime")),
    "figure2": (lambda r, p: plotted.tradeoff_data(r), Look("AUPRC against latency")),
    "figure3": (lambda r, p: plotted.forest_data(r), Look("Paired bootstrap of AUPRC")),
    "figure4": (lambda r, p: plotted.calibration_data(r), Look("AUPRC by number of calibration images")),
    "figure5": (lambda r, p: plotted.regimes_data(r, "auprc", p), Look("AUPRC by regime")),
    "figure6": (plotted.latency_data, Look("Latency of FP32 and INT8-PTQ")),
    "figure7": (lambda r, p, **o: plotted.reliability_data(r, **o), Look("Bins of the reliability diagrams")),
    "changes": (lambda r, p: changes(r), Look("Change of every score from FP32", formats={None: "{:+.4f}"})),
    "engine_check": (
        lambda r, p: beyond.engine_check(r),
        Look(
            "Converted models against their own simulation (Brier)",
            ("Gap: how much worse the converted model is than its fake-quantized simulation.",),
            {None: "{:.4f}", "max_steps": "{:.0f}"},
            {"patched": "Operator patched", "max_steps": "Largest error (steps)"},
        ),
    ),
    "ablation": (lambda r, p: r.ablation, Look("Every recipe that was tried")),
    "smallest_change": (lambda r, p: beyond.ablation(r), _ablation),
    "recipes_against_table1": (
        beyond.recipes_against_table1,
        Look(
            "How near each recipe comes to the changes from FP32 that PTQ shows in the paper's Table 1",
            (
                f"Reproduces: within {beyond.REPRODUCED['ece']} of ECE and {beyond.REPRODUCED['brier']} of Brier in each of the "
                "six pairs of dataset and engine. Errors are root mean squares over them; distance: both, in units of "
                "these limits.",
            ),
            {None: "{:.3f}", "cells": "{:.0f}"},
            {"cells": "Datasets × engines"},
        ),
    ),
    "remedies": (lambda r, p: beyond.remedies(r), _remedies),
    "attention_means": (lambda r, p: r.attention, Look("Every measure of class activation maps")),
    "attention": (
        lambda r, p: attention(r),
        Look(
            "Class activation maps against those of FP32 on the same held-out images",
            (
                "Means over n images with 95 % intervals. Rank correlation: Spearman's, over positions; overlap: of the top "
                "20 % of positions, intersection over union; peak shift: of the maximum, in pixels; absolute change: of the "
                "probability of the class that FP32 predicts; relation: Spearman's, over images, of how far a map moved "
                "with that change.",
            ),
            {None: "{:.2f}", "grid": "{:.0f}", "n": "{:.0f}", "peak_shift": "{:.1f}", "absolute_change": "{:.3f}"},
        ),
    ),
    "layers": (lambda r, p: r.layers, Look("Noise of every quantized layer")),
    "worst_layers": (
        lambda r, p, **cell: beyond.worst_layers(r, **cell),
        Look(
            "The three noisiest layers", (), {None: "{:.1f}", "saturation": "{:.2%}", "weight_range_ratio": "{:.1f}×"}
        ),
    ),
    "silent": (
        lambda r, p: beyond.silent(r),
        Look(
            "Decisions at a threshold fixed on the FP32 model",
            ("Means over folds; counts are sums over folds.",),
            {None: "{:.3f}", **COUNTS},
        ),
    ),
    "flips": (
        lambda r, p: beyond.flips(r),
        Look("Label flips between regimes", (), {None: "{:.0f}", "share": "{:.1%}"}),
    ),
    "leak": (
        lambda r, p: beyond.leak(r),
        Look("ROC-AUC with and without test images that have a twin among the training images", (), SIGNED),
    ),
    "leak_effect": (
        lambda r, p: beyond.leak_effect(r),
        Look(
            "What training on copies does to the Brier score, by difference in differences",
            ("One training of each backbone with and one without the copies; the interval holds images alone.",),
            SIGNED | dict.fromkeys(("backbones", "twins", "others"), "{:.0f}"),
        ),
    ),
    "deduplicated": _variant("deduplicated"),
    "inner": _variant("inner"),
    "qat_control": (
        lambda r, p: beyond.qat_control(r),
        Look(
            "QAT (fbgemm) against FP32 trained for as long, AUPRC",
            formats={None: "{:.4f}", "training_on": "{:+.4f}", "awareness": "{:+.4f}"},
        ),
    ),
    "peers": (lambda r, p: beyond.peers(r), _peers),
    "recommended": (
        lambda r, p: beyond.recommended(r),
        Look(
            "What is recommended, and what is both faster and better calibrated",
            ("At the default limits of medq advise. Beaten by: does not pass, or it would be recommended.",),
            **COST,
        ),
    ),
    "advice": (
        lambda r, p: beyond.advice(r),
        Look(
            "The precision to ship for each dataset and backbone, at the default limits",
            unfold=("refused", "ship", "why not faster"),
            **COST,
        ),
    ),
    "speedups": (
        lambda r, p: paper.speedups(r),
        Look(
            "Speed-up of INT8-PTQ (FBGEMM) over every FP32 baseline",
            formats={None: "{:.2f}"},
            labels={"value": "Speed-up (×)", "low": "95 % from", "high": "to", "best": "Fastest FP32"},
        ),
    ),
    "coverage": (lambda r, p: r.status, Look("What became of every cell", formats=WHOLE)),
    "balance": (
        lambda r, p: about.balance(r),
        Look("Images per class", formats=WHOLE | {"share": "{:.1%}"}, labels={"release": "Public release"}),
    ),
    "folds": (lambda r, p: about.folds(r), Look("Images, groups and rarest class of each fold", formats=WHOLE)),
    "conditions": (lambda r, p: about.conditions(r), Look("What the machine was doing during each timing")),
    "versions": (lambda r, p: about.versions(r), Look("Versions of packages")),
    "selection": (
        lambda r, p: about.selection(r),
        Look(
            "Accuracy at the epoch that was chosen on the held-out images, and around it",
            formats={None: "{:.0f}", "accuracy": "{:.2%}", "around_it": "{:.2%}", "optimism": "{:+.2f}"},
            labels={"around_it": "Mean with its neighbours", "optimism": "Optimism (points)"},
        ),
    ),
    "batch_norm_sizes": (
        about.batch_norm_sizes,
        Look(
            "FP32 size over INT8 size of the state dict, batch normalisation as traced and fused, beside the paper's Table 4",
            formats={None: "{:.2f}", "qat_traced": "{:.0%}", "qat_replaced": "{:.0%}"},
            labels={"qat_traced": "Neighbours' effect under QAT, traced", "qat_replaced": "Module replaced first"},
        ),
    ),
    "cell_numbers": (
        lambda r, p, **cell: about.cell_numbers(r, **cell),
        Look("Metrics on the held-out images", formats={None: "{:.4f}"}),
    ),
    "cell_classes": (
        lambda r, p, **cell: about.cell_classes(r, **cell),
        Look("Metrics of each class as deployed", formats={None: "{:.4f}"}),
    ),
}


def data(name, results, published=None, **options):
    """The numbers behind a table or figure (a name in `TABLES`), one row each; `UserError` for an unknown name."""
    make, _ = TABLES[one_of("table or figure", name, TABLES)]
    return make(results, published or paper_results(), **options)


def show(name, results, published=None, **options):
    """A table by its name, as a `Shown`: numbers, caption and HTML."""
    frame = data(name, results, published, **options)
    look = TABLES[name][1]
    look = look(results, **options) if callable(look) else look
    wide = frame.assign(column=frame["class"] + " " + frame["metric"]) if look.across == "column" else frame
    return Shown(frame, look.caption, to_html(wide, look))
