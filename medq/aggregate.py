"""Tidy tables from predictions: metrics, intervals, paired differences, decisions and leakage, as pure functions.

`models` throughout: {(dataset, backbone, regime, suffix): predictions, fold by fold}, where the suffix names the variant of
the model (`VARIANTS`); a column `seed` tells several trainings apart. `folds` and `audits`: {dataset: DataFrame}, the
tables of the stage `datasets`.
"""

import itertools

import numpy as np
import pandas as pd

from medq import bootstrap, metrics, regimes
from medq.groups import connected
from medq.results import PEER_REFERENCE, SIMULATED, VARIANTS

LEAK = (*metrics.SCORES, "accuracy")
SUBSETS = {"without-identical": ("identical",), "without-twins": None}  # kinds of copies that are left out; None: all


def recipe_and_form(regime, suffix):
    """(recipe, form) of a variant of a regime."""
    recipe, form, _ = VARIANTS[suffix]
    return recipe, form or ("converted" if regime in regimes.INT8 else "float")


def arrays(frame):
    """(labels [n], probabilities [n, classes], class names) of a table of predictions."""
    columns = [name for name in frame if name.startswith("p_")]
    return frame["label"].to_numpy(), frame[columns].to_numpy(), [name[2:] for name in columns]


def by_seed(frame):
    """{seed: predictions} of the predictions of one model; the seed is "" where there is one alone."""
    return dict(list(frame.groupby("seed"))) if "seed" in frame else {"": frame}


def without_empty_seed(frame):
    """`frame`, its column `seed` only if it has entries: with a single seed tables have none."""
    return frame if "seed" in frame and frame["seed"].ne("").any() else frame.drop(columns="seed", errors="ignore")


def metric_table(models):
    """metrics.csv: every metric of every variant, for each fold and pooled over folds; the mean of several seeds, too."""
    parts = []
    for (dataset, backbone, regime, suffix), predictions in models.items():
        recipe, form = recipe_and_form(regime, suffix)
        cell = {"dataset": dataset, "backbone": backbone, "regime": regime, "recipe": recipe, "form": form}
        rows = [
            metrics.summary(*arrays(frame)).assign(**cell, fold=fold, seed=str(seed))
            for seed, of_seed in by_seed(predictions).items()
            for fold, frame in [*of_seed.groupby("fold"), ("pooled", of_seed)]
        ]
        if rows[0]["seed"].any():
            groups = pd.concat(rows).groupby([*cell, "fold", "metric", "class"], sort=False)["value"]
            rows.append(groups.agg(value="mean", seed_std="std").reset_index().assign(seed="mean"))
        parts += rows
    return without_empty_seed(pd.concat(parts, ignore_index=True)) if parts else pd.DataFrame()


# --- the bootstrap (section 3.5) ----------------------------------------------------------------------------------------


def resampled(models, folds, audits, parameters):
    """(intervals.csv, rows of bootstrap.csv): all regimes and forms of a dataset on the same resamples."""
    methods = {
        (dataset, backbone, regime + suffix): by_seed(predictions)
        for (dataset, backbone, regime, suffix), predictions in models.items()
        if suffix in ("", SIMULATED)
    }
    intervals, differences = _tables(methods, compared(), folds, audits, parameters)
    if len(intervals):
        simulated = intervals["regime"].str.endswith(SIMULATED)
        names = intervals["regime"].str.removesuffix(SIMULATED)
        forms = [recipe_and_form(name, SIMULATED * s)[1] for name, s in zip(names, simulated)]
        intervals = intervals.assign(regime=names, form=forms)
        intervals = intervals.sort_values(["dataset", "regime", "form"], kind="stable")
    return intervals, differences


def compared():
    """(a, b) of every two methods that are compared: regimes, their simulations, each with its own, all of Table 1."""
    pairs = regimes.pairs()
    table1 = [r + SIMULATED * (r in regimes.INT8) for r in regimes.PAPER]
    found = (
        *pairs,
        *(tuple(r + SIMULATED * (r in regimes.INT8) for r in pair) for pair in pairs if set(pair) & set(regimes.INT8)),
        *((regime + SIMULATED, regime) for regime in regimes.INT8),
        *itertools.combinations(table1, 2),
    )
    return tuple(dict.fromkeys(found))


def peer_differences(peers, folds, audits, parameters):
    """Rows of bootstrap.csv: every runtime against `PEER_REFERENCE`, which runs the same checkpoint; families of their own.

    `peers`: {(dataset, backbone, runtime): predictions of all folds}.
    """
    runtimes = dict.fromkeys(key[2] for key in peers if key[2] != PEER_REFERENCE)
    methods = {key: {"": frame} for key, frame in peers.items()}
    return _tables(methods, [(PEER_REFERENCE, runtime) for runtime in runtimes], folds, audits, parameters)[1]


def _tables(methods, pairs, folds, audits, parameters):
    """`medq.bootstrap.tables` of {(dataset, backbone, method): {seed: predictions}}, with Holm's correction."""
    alike, found = {}, [[], []]  # models of a dataset that were evaluated on the same images
    for key, trainings in methods.items():
        first = next(iter(trainings.values()))
        alike.setdefault((key[0], tuple(first["image_id"])), {})[key[1:]] = trainings
    for (dataset, images), chosen in alike.items():
        labels, _, classes = arrays(next(frame for trainings in chosen.values() for frame in trainings.values()))
        made = bootstrap.tables(
            labels,
            {key: {s: arrays(part)[1] for s, part in trainings.items()} for key, trainings in chosen.items()},
            pairs,
            classes=classes,
            groups=_groups(folds, audits, dataset, images),
            n_resamples=parameters["bootstrap"]["resamples"],
            seed=parameters["seed"],
        )
        for frames, frame in zip(found, made):
            frames.append(frame.assign(dataset=dataset))
    intervals, differences = (
        _of_most_models(pd.concat(frames, ignore_index=True)) if frames else pd.DataFrame() for frames in found
    )
    return intervals, bootstrap.with_holm(differences) if len(differences) else differences


def _groups(folds, audits, dataset, image_id):
    """What to resample in place of images: groups (lesions) and near-duplicates of the audit, joined; None without any."""
    if dataset not in folds:
        return None
    own = folds[dataset].set_index("image_id")["group"].reindex(image_id).to_numpy()
    groups = connected(image_id, own, audits[dataset])
    return groups if len(np.unique(groups)) < len(groups) else None


def _of_most_models(frame):
    """Where backbones were evaluated on different images, a mean is over the images that most backbones share."""
    keys = [c for c in ("dataset", "backbone", "regime", "method_a", "method_b", "metric", "class") if c in frame]
    first = frame.sort_values("n_models", ascending=False, kind="stable").drop_duplicates(keys).index
    return frame.loc[sorted(first)]


# --- decisions and copies ---------------------------------------------------------------------------------------------


def decisions(models):
    """(silent.csv, flips.csv): each regime against FP32 on the same images, fold by fold, for the first seed of both."""
    silent, flips = [], []
    for (dataset, backbone, regime, suffix), predictions in models.items():
        recipe, form = recipe_and_form(regime, suffix)
        fp32 = models.get((dataset, backbone, "fp32", ""))
        if fp32 is None or regime == "fp32" or recipe != "default":
            continue
        before, after = by_seed(fp32), by_seed(predictions)
        seed = next((s for s in after if s in before), None)
        reference = dict(list(before[seed].groupby("fold"))) if seed is not None else {}
        for fold, frame in after[seed].groupby("fold") if reference else ():
            if fold not in reference or list(reference[fold]["image_id"]) != list(frame["image_id"]):
                continue
            labels, old, classes = arrays(reference[fold])
            new, named = arrays(frame)[1], {"dataset": dataset, "backbone": backbone, "fold": fold}
            crossed = metrics.threshold_crossings(labels, old, new, classes=classes)
            silent.append(crossed.assign(**named, regime=regime, form=form))
            if not suffix:
                flips.append(named | {"regime_a": "fp32", "regime_b": regime} | metrics.label_flips(labels, old, new))
    return pd.concat(silent, ignore_index=True) if silent else pd.DataFrame(), pd.DataFrame(flips)


def leak(models, audits, trained):
    """leak.csv: metrics of all held-out images, and without those that have a copy among the images trained on; first seeds.

    `trained`: {(dataset, fold): ids of the images that models of that fold were trained on}.
    """
    rows, known = [], {}
    for (dataset, backbone, regime, suffix), predictions in models.items():
        frame = next(iter(by_seed(predictions).values()))
        recipe, form = recipe_and_form(regime, suffix)
        key = dataset, *sorted(frame["fold"].unique())
        if recipe != "default" or dataset not in audits or not {(dataset, k) for k in key[1:]} <= trained.keys():
            continue
        if key not in known:
            audit = audits[dataset]
            known[key] = {name: _copied(audit, frame, trained, dataset, kinds) for name, kinds in SUBSETS.items()}
        if not any(known[key].values()):
            continue
        for subset, ids in {"all": set(), **known[key]}.items():
            labels, probabilities, _ = arrays(frame[~frame["image_id"].isin(ids)])
            named = {"dataset": dataset, "backbone": backbone, "regime": regime, "form": form}
            rows += [
                named
                | {"metric": m, "subset": subset, "n": len(labels), "value": metrics.METRICS[m](labels, probabilities)}
                for m in (LEAK if len(labels) else ())
            ]
    return pd.DataFrame(rows)


def _copied(audit, predictions, trained, dataset, kinds):
    """Ids of held-out images with a copy of these kinds among the images that their fold trained on."""
    audit, found = audit if kinds is None else audit[audit["kind"].isin(kinds)], set()
    for fold, ids in predictions.groupby("fold")["image_id"]:
        seen, held_out = (audit["image_id"].isin(of) for of in (trained[dataset, fold], ids))
        found |= set(audit["image_id"][held_out & audit["group_id"].isin(audit["group_id"][seen])])
    return found
