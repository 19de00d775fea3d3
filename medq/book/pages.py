"""What single pages of the book say, computed from a result folder or from the project itself."""

import json

import pandas as pd

from medq import paths
from medq.book.show import Shown, figure, joined, plain, table, text
from medq.results import CELL, PHANTOM, STUDY_TITLES, class_title, title

DATA = paths.ROOT / "book" / "_data"
EFFECT = "neighbours' effect, traced"


def banner(results):
    """What these results are and are not, above everything that is computed from them."""
    return text(f":::{{admonition}} Which results are these?\n:class: medq-banner\n{results.banner()}\n:::")


def limits(results):
    """Markdown list: what nobody should conclude from these results, given how they were made."""
    p = results.provenance.get("parameters", {})
    phantoms = [plain(title(d)) for d in results.datasets if d.startswith(PHANTOM)]
    folds = results.cells.groupby("dataset")["fold"].nunique()
    single = [plain(title(d)) for d in folds.index[folds == 1]]
    states = results.status["status"].value_counts()
    lacking = [f"{states[s]} {s}" for s in ("unsupported", "failed", "missing") if s in states]
    size = p.get("image_size")
    known = {  # what to say: whether it applies
        f"{', '.join(phantoms)}: generated drawings. Nothing about medicine follows from them.": phantoms,
        "Trained from scratch: every metric lies below what fine-tuned models reach, and activations may "
        "have other ranges. Whether the paper's checkpoints behave alike is not shown.": p.get("weights") == "none",
        f"Images of {size} pixels hold less than the paper's 224; rare findings may not be visible at all.": size
        and size != 224,
        "A subset of the images: intervals are wider than the full releases would give.": any(
            (p.get("subset") or {}).values()
        ),
        f"One fold or split of {', '.join(single)}: nothing says how much numbers change with the split.": single,
        "One seed: how much training itself scatters is not measured, and two regimes that were trained "
        "apart (FP32 and FP16, FP32 and QAT) differ by that scatter, too.": "seed" in p,
        f"Of {len(results.status)} cells {', '.join(lacking)}: means over backbones are over those that "
        "are there.": lacking,
    }
    said = [f"- {line}" for line, applies in known.items() if applies]
    return text("\n".join(said) or "No limits are recorded beyond those of the paper's own design.")


def example(results):
    """The backbone of Table 3 and Figure 7: the paper's ResNet-50, or the first where that is not there."""
    done = set(results.status.loc[results.status["status"] == "done", "backbone"])
    return next((b for b in ("resnet50", *results.backbones) if b in done), "resnet50")


def packages(results):
    """Versions that these results were measured with: package, version."""
    versions = results.provenance.get("versions", {})
    return pd.DataFrame(list(versions.items()), columns=["package", "version"])


def conditions(results):
    """What the machine was doing during each timing, as far as a page shows it: one row for each."""
    found = results.conditions
    return pd.DataFrame(
        {
            "timing": found["stage"].map(STUDY_TITLES),
            "dataset": found["dataset"].map(title),
            "backbone": found["backbone"].map(title),
            "threads": found["threads"],
            "load before": found["load_before"],
            "load after": found["load_after"],
            "other work (cores)": found["others"],
            "seconds": found["seconds"],
            "processor": found["cpu"],
            "commit": found["commit"].str[:7],
        }
    )


def provenance(results):
    """`provenance.json`, folded."""
    content = json.dumps(results.provenance, indent=1, ensure_ascii=False)
    return Shown(f":::{{dropdown}} provenance.json\n```json\n{content}\n```\n:::")


# --- data ---------------------------------------------------------------------------------------------------


def balance(results):
    """Images per dataset and class: dataset, class, release, in these results, share, held out.

    `release` counts the public release, `in these results` the stored fold assignment, `held out` its images
    in folds that were run.
    """
    from medq import params

    rows = []
    for name in results.datasets:
        spec, folds = params.datasets().get(name), results.folds(name)
        done = set(results.cells.loc[results.cells["dataset"] == name, "fold"])
        for label, klass in enumerate(results.classes(name)):
            ours = folds[folds["label"].isin([str(label), klass])]
            release = sum(part.get(klass, 0) for part in spec.release.values()) if spec else 0
            rows.append(
                {
                    "dataset": name,
                    "class": klass,
                    "release": release,
                    "in these results": len(ours),
                    "share": len(ours) / max(1, len(folds)),
                    "held out": int(ours["fold"].isin(done).sum()),
                }
            )
    columns = ["dataset", "class", "release", "in these results", "share", "held out"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs = {"formats": {None: "{:,.0f}", "share": "{:.1%}"}}
    return frame


def balance_figure(results):
    """Bars of the classes' shares, a panel per dataset."""
    from medq.figures import style

    @style.styled
    def draw():
        frame = balance(results)
        if frame.empty:
            return style.empty("Class balance: these results name no dataset.")
        most = frame.groupby("dataset").size().max()
        figure, axes = style.new(1, len(results.datasets), height=0.9 + 0.28 * most)
        for axis, name in zip(axes[0], results.datasets):
            part = frame[frame["dataset"] == name].iloc[::-1]
            axis.barh([class_title(name, c) for c in part["class"]], 100 * part["share"], color="#4e8886")
            axis.set(title=title(name), xlabel="Share of images (%)")
            axis.grid(axis="y", visible=False)
        rare = frame.loc[frame.groupby("dataset", sort=False)["share"].idxmin()]
        said = [
            f"{title(d)}: {class_title(d, c)} {100 * s:.1f} %"
            for d, c, s in zip(rare["dataset"], rare["class"], rare["share"])
        ]
        return style.described(figure, f"Share of each class, by dataset. The rarest: {'; '.join(said)}.")

    return draw()


def phantom_figure():
    """One generated image of each class, a row per phantom dataset."""
    from medq import params
    from medq.datasets import phantoms
    from medq.figures import style

    @style.styled
    def draw():
        specs = [s for s in params.datasets().values() if s.layout == "phantom"]
        columns = max(len(s.classes) for s in specs)
        figure, axes = style.new(len(specs), columns, height=1.35 * len(specs))
        for line, spec in zip(axes, specs):
            index = phantoms.index(spec)
            for axis in line:
                axis.axis("off")
            for label, (axis, klass) in enumerate(zip(line, spec.class_titles())):
                axis.imshow(phantoms.draw(index.loc[index["label"] == label, "path"].iloc[0]))
                axis.set_title(klass, fontsize=style.FONT, fontweight="normal", loc="center")
        return style.described(
            figure,
            "Generated images, one of each class: drawings that stand in for "
            "brain MRI slices, chest X-rays and skin lesions.",
        )

    return draw()


def fold_table(results):
    """Every fold: dataset, fold, images, groups, rarest (class), of it (images of that class)."""
    rows = []
    for name in results.datasets:
        classes = results.classes(name)
        for fold, part in results.folds(name).groupby("fold"):
            counts = part["label"].value_counts()
            rare = counts.idxmin()
            rows.append(
                {
                    "dataset": name,
                    "fold": str(fold),
                    "images": len(part),
                    "groups": part["group"].nunique(),
                    "of it": counts.min(),
                    "rarest": class_title(name, classes[int(rare)] if rare.isdigit() else rare),
                }
            )
    frame = pd.DataFrame(rows, columns=["dataset", "fold", "images", "groups", "rarest", "of it"])
    frame.attrs = {"formats": {None: "{:,.0f}"}}
    return frame


def sources():
    """Datasets of the catalogue that are not generated: dataset, source, licence."""
    from medq import params

    rows = [
        {"dataset": name, "source": spec.source or "–", "licence": spec.licence or "–"}
        for name, spec in params.datasets().items()
        if spec.layout != "phantom"
    ]
    return pd.DataFrame(rows, columns=["dataset", "source", "licence"])


# --- experiments of the project itself ----------------------------------------------------------------------


def kernel_sweep():
    """Run every operator that `medq.quantize.sweep` knows on every engine of this machine; a table of those that err."""
    import warnings

    import torch

    from medq import provenance
    from medq.quantize import sweep

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that this API will go
        tried = sweep.sweep()
    wrong = sweep.disagreements(tried)
    instructions = ", ".join(provenance.cpu()["instructions"]) or "no integer instructions known to us"
    said = (
        f"Run now, with PyTorch {torch.__version__} on a processor with {instructions}: {tried['agrees'].notna().sum()} combinations of operator, "
        f"engine, memory layout and range of activations. {len(wrong)} do not compute what floating point says."
    )
    if wrong.empty:
        return text(said)
    wrong = (
        wrong.groupby(["engine", "operator", "range"], sort=False)
        .agg(
            layouts=("layout", lambda names: ", ".join(sorted(set(names)))),
            steps=("kernel_max_steps", "max"),
            share=("wrong", "max"),
        )
        .reset_index()
    )
    wrong = wrong.rename(columns={"range": "activations", "steps": "largest error (steps)", "share": "values off (%)"})
    wrong["values off (%)"] *= 100
    wrong.attrs["formats"] = {"largest error (steps)": "{:.0f}", "values off (%)": "{:.1f}"}
    return joined(
        text(said), table(wrong, "kernel-sweep", "Operators whose integers are not what floating point says.")
    )


def relu6_demonstration():
    """Run the four lines that show qnnpack's defect on this machine, and say what came out."""
    import warnings

    import torch

    from medq.quantize.engines import engine

    version = torch.__version__
    if "qnnpack" not in torch.backends.quantized.supported_engines:
        return text(f"*This PyTorch ({version}) has no qnnpack engine, so the four lines cannot run here.*")
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(42))
    x = x.contiguous(memory_format=torch.channels_last)
    with engine("qnnpack"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that this API will go
        q = torch.quantize_per_tensor(x, 0.05, 128, torch.quint8)
        got, right = torch.nn.functional.relu6(q).dequantize(), torch.nn.functional.relu6(q.dequantize())
    wrong = int((got != right).sum())
    if not wrong:
        return text(f"Run now, with PyTorch {version}: no difference. **It is free of the defect.**")
    same = torch.equal(got.flatten().sort().values, right.flatten().sort().values)
    return text(
        f"Run now, with PyTorch {version}: {wrong} of {right.numel()} values differ, by up to "
        f"**{(got - right).abs().max():.2f}**. Sorted, the two hold "
        + ("the same values: they stand in the wrong places." if same else "different values, too.")
    )


def batch_norm_sizes():
    """`book/_data/batch_norm.csv` beside the paper: how batch normalisation shows in a model's size.

    Columns: backbone; traced, fused, paper (FP32 over INT8 size); nearer (of the two to the paper's); and how
    much one image's logits change with its neighbours in a model prepared for QAT, relative to their spread.
    """
    from medq.results import published

    frame = pd.read_csv(DATA / "batch_norm.csv")
    frame["paper"] = frame["backbone"].map(published().ratios.set_index("backbone")["size_ratio"])
    frame["nearer"] = frame[["traced", "fused"]].sub(frame["paper"], axis=0).abs().idxmin(axis=1)
    frame = frame[["backbone", "traced", "fused", "paper", "nearer", "qat_traced", "qat_replaced"]]
    frame = frame.rename(columns={"qat_traced": EFFECT, "qat_replaced": "replaced first"})
    frame.attrs = {"formats": {None: "{:.2f}", EFFECT: "{:.0%}", "replaced first": "{:.0%}"}}
    return frame


def batch_norm_reading():
    """Markdown: which treatment of batch normalisation the paper's sizes belong to."""
    frame = batch_norm_sizes()
    gap = {k: (frame[k] - frame["paper"]).abs() for k in ("traced", "fused")}
    traced = int((frame["nearer"] == "traced").sum())
    dependent = int((frame[EFFECT] > 0.01).sum())
    verdict = (
        "The paper's models were therefore quantized with the unfused default."
        if traced == len(frame)
        else "The sizes do not agree on one recipe."
    )
    return text(
        f"In {traced} of {len(frame)} backbones the size with batch normalisation as traced is the "
        f"nearer one: it is off the paper's by at most {gap['traced'].max():.2f}, the fused one by "
        f"{gap['fused'].min():.2f} to {gap['fused'].max():.2f}. {verdict} Prepared for QAT as "
        f"traced, {dependent} of {len(frame)} let an image's neighbours change its logits by more "
        "than a hundredth of their spread."
    )


def layers(results, regime="ptq-fbgemm"):
    """The noise of every quantized layer, a tab per cell that was diagnosed, with its three worst layers."""
    from medq import figures, tables

    found = results.layers[results.layers["regime"] == regime]
    tabs = []
    for dataset in results.datasets:
        for backbone in results.backbones:
            rows = found[(found["dataset"] == dataset) & (found["backbone"] == backbone)]
            if rows.empty:
                continue
            name = f"layers-{dataset}-{backbone}"
            shown = joined(
                figure(
                    figures.sqnr_figure(results, dataset, backbone, regime),
                    name,
                    "Noise of each quantized layer.",
                    rows,
                    numbered=False,
                ),
                table(tables.worst_layers(results, dataset, backbone, regime), f"{name}-worst", numbered=False),
            )
            tabs.append(f"::::{{tab-item}} {plain(title(backbone))}, {plain(title(dataset))}\n{shown.myst}\n::::")
    if not tabs:
        return text("*No cell of these results was diagnosed layer by layer.*")
    return text(":::::{tab-set}\n" + "\n".join(tabs) + "\n:::::")


# --- model selection ----------------------------------------------------------------------------------------


def selection_optimism(results):
    """Accuracy at the chosen epoch against the mean of that epoch and its two neighbours, per trained cell.

    Columns: dataset, backbone, regime, epochs, best_epoch, accuracy, around_it, optimism (percentage points).
    Cells whose best epoch is the first or last are left out: a neighbour is missing, the model may still be
    learning.
    """
    rows = []
    for key, part in results.history.groupby(CELL, sort=False):
        found = [_optimism(h.sort_values("epoch")) for _, h in part.groupby("fold")]
        found = [f for f in found if f]
        if found:
            rows.append(dict(zip(CELL, key)) | pd.DataFrame(found).mean().to_dict())
    columns = [*CELL, "epochs", "best_epoch", "accuracy", "around_it", "optimism"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs = {"formats": {None: "{:.0f}", "accuracy": "{:.2%}", "around_it": "{:.2%}", "optimism": "{:+.2f}"}}
    return frame


def _optimism(history):
    accuracy = history["accuracy"].to_numpy()
    best = int(accuracy.argmax())
    if not 0 < best < len(accuracy) - 1:
        return None
    around = accuracy[best - 1 : best + 2].mean()
    return {
        "epochs": len(accuracy),
        "best_epoch": history["epoch"].iloc[best],
        "accuracy": accuracy[best],
        "around_it": around,
        "optimism": 100 * (accuracy[best] - around),
    }


def selection_reading(results):
    """Markdown: how large the optimism of choosing on the test images looks here."""
    frame = selection_optimism(results)
    trained = results.history.groupby(CELL).ngroups
    if frame.empty:
        return text(
            f"Of {trained} trained cells none has its best epoch between two others, so nothing can be said here."
        )
    return text(
        f"In {len(frame)} of {trained} trained cells the best epoch lies between two others. There "
        f"the reported accuracy stands {frame['optimism'].median():.2f} percentage points above the "
        f"mean around it (median; largest {frame['optimism'].max():.2f}). The mean includes the best "
        "epoch itself and the last steps of learning, so it is a rough measure, not a correction."
    )
