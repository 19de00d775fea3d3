"""What single pages of the book say, computed from a result folder or from the project itself."""

import json
from html import escape

import pandas as pd

from medq import paths
from medq.book.show import Shown, figure, in_repository, joined, repository_url, table, table_of, text
from medq.results import PHANTOM, class_title, title

DATA = paths.ROOT / "book" / "_data"
STATES = {"yes": "✓ yes", "partly": "◐ partly", "no": "✗ no"}


def banner(results):
    """What these results are and are not, above everything that is computed from them."""
    return text(f":::{{admonition}} Which results are these?\n:class: medq-banner\n{results.banner()}\n:::")


def limits(results):
    """Markdown list: what nobody should conclude from these results, given how they were made."""
    p = results.provenance.get("parameters", {})
    phantoms = [d for d in results.datasets if d.startswith(PHANTOM)]
    folds = results.cells.groupby("dataset")["fold"].nunique() if len(results.cells) else pd.Series(dtype=int)
    said = []
    if phantoms:
        said.append(f"{', '.join(map(title, phantoms))}: generated drawings. Nothing about medicine follows from them.")
    if p.get("weights") == "none":
        said.append("Trained from scratch: levels of every metric lie below those of fine-tuned models, and ranges of "
                    "activations may differ. Whether the paper's checkpoints behave alike is not shown.")
    size = p.get("image_size")
    if size and size != 224:
        said.append(f"Images of {size} pixels hold less than the paper's 224; rare findings may not be visible at all.")
    if any((p.get("subset") or {}).values()):
        said.append("A subset of the images: intervals are wider than the full releases would give.")
    if (folds == 1).any():
        said.append(f"One fold or split of {', '.join(title(d) for d in folds.index[folds == 1])}: nothing here says how much "
                    "numbers change with the split.")
    if p.get("seed") is not None:
        said.append("One seed: how much training itself scatters is not measured, and two regimes that were trained apart "
                    "(FP32 and FP16, FP32 and QAT) differ by that scatter, too.")
    gaps = results.status["status"].value_counts() if len(results.status) else {}
    lacking = [f"{gaps[s]} {s}" for s in ("unsupported", "failed", "missing") if s in gaps]
    if lacking:
        said.append(f"Of the {len(results.status)} cells {', '.join(lacking)}: means over backbones are over those that are there.")
    return text("\n".join(f"- {line}" for line in said) or "These results have no known limits beyond the paper's own.")


# --- data -------------------------------------------------------------------------------------------------------------

def balance(results):
    """Images per dataset and class: in the public release, in these results' folds, and held out in folds that were run."""
    from medq import params

    rows = []
    for name in results.datasets:
        spec, folds = params.datasets().get(name), results.folds(name)
        done = set(results.cells.loc[results.cells["dataset"] == name, "fold"])
        for label, klass in enumerate(results.classes(name)):
            ours = folds[folds["label"].isin([str(label), klass])]
            release = sum(part.get(klass, 0) for part in spec.release.values()) if spec else 0
            rows.append({"dataset": name, "class": klass, "release": release, "in these results": len(ours),
                         "share": len(ours) / max(1, len(folds)), "held out": int(ours["fold"].isin(done).sum())})
    frame = pd.DataFrame(rows, columns=["dataset", "class", "release", "in these results", "share", "held out"])
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
        said = [f"{title(d)}: {class_title(d, c)} {100 * s:.1f} %" for d, c, s in
                zip(rare["dataset"], rare["class"], rare["share"])]
        return style.described(figure, f"Share of each class, one panel per dataset. The rarest: {'; '.join(said)}.")
    return draw()


def phantom_figure():
    """One generated image of each class, a row per phantom dataset."""
    from medq import params
    from medq.datasets import phantoms
    from medq.figures import style

    @style.styled
    def draw():
        specs = {n: s for n, s in params.datasets().items() if s.layout == "phantom"}
        columns = max(len(s.classes) for s in specs.values())
        figure, axes = style.new(len(specs), columns, height=1.35 * len(specs))
        for line, (name, spec) in zip(axes, specs.items()):
            index = phantoms.index(spec)
            for axis in line:
                axis.axis("off")
            for label, (axis, klass) in enumerate(zip(line, spec.class_titles())):
                axis.imshow(phantoms.draw(index.loc[index["label"] == label, "path"].iloc[0]))
                axis.set_title(klass, fontsize=style.FONT, fontweight="normal", loc="center")
        return style.described(figure, "Generated images, one of each class: drawings that stand in for brain MRI slices, chest "
                               "X-rays and skin lesions.")
    return draw()


def fold_table(results):
    """Images, groups and the rarest class of every fold: dataset, fold, images, groups, rarest, of_it."""
    rows = []
    for name in results.datasets:
        folds, classes = results.folds(name), results.classes(name)
        for fold, part in folds.groupby("fold"):
            counts = part["label"].value_counts()
            rare = counts.idxmin()
            rows.append({"dataset": name, "fold": str(fold), "images": len(part), "groups": part["group"].nunique(),
                         "rarest": class_title(name, classes[int(rare)] if rare.isdigit() else rare), "of it": counts.min()})
    frame = pd.DataFrame(rows, columns=["dataset", "fold", "images", "groups", "rarest", "of it"])
    frame.attrs = {"formats": {None: "{:,.0f}"}}
    return frame


# --- experiments of the project itself --------------------------------------------------------------------------------

def relu6_demonstration():
    """Run the four lines that show qnnpack's defect on this machine, and say what came out."""
    import warnings

    import torch

    from medq.quantize.engines import engine

    if "qnnpack" not in torch.backends.quantized.supported_engines:
        return text(f"*This PyTorch ({torch.__version__}) has no qnnpack engine, so the four lines cannot run here.*")
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(42)).contiguous(memory_format=torch.channels_last)
    with engine("qnnpack"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that this API will go
        q = torch.quantize_per_tensor(x, 0.05, 128, torch.quint8)
        got, right = torch.nn.functional.relu6(q).dequantize(), torch.nn.functional.relu6(q.dequantize())
    error = (got - right).abs().max().item()
    same = torch.equal(got.flatten().sort().values, right.flatten().sort().values)
    if error == 0:
        return text(f"Run now, with PyTorch {torch.__version__}: the difference is 0. **This PyTorch does not have the defect.**")
    return text(f"Run now, with PyTorch {torch.__version__}: the largest difference is **{error:.2f}**, in {int((got != right).sum())} of "
                f"{right.numel()} places. Sorted, the two hold {'the same values' if same else 'different values'}: "
                f"{'they stand in the wrong places.' if same else 'the values themselves are wrong.'}")


def batch_norm_sizes():
    """`book/_data/batch_norm.csv`: size ratios with batch normalisation traced and fused, and the paper's.

    Columns: backbone, traced, fused, paper, nearer (the treatment whose ratio is nearer to the paper's), and how much one
    image's logits change with its neighbours in a model prepared for QAT, relative to their spread.
    """
    from medq.results import published

    frame = pd.read_csv(DATA / "batch_norm.csv")
    paper = published().ratios.set_index("backbone")["size_ratio"]
    frame["paper"] = frame["backbone"].map(paper)
    gaps = frame[["traced", "fused"]].sub(frame["paper"], axis=0).abs()
    frame["nearer"] = gaps.idxmin(axis=1)
    frame = frame[["backbone", "traced", "fused", "paper", "nearer", "qat_traced", "qat_replaced"]].rename(columns={
        "qat_traced": "neighbours' effect, QAT traced", "qat_replaced": "QAT replaced"})
    frame.attrs = {"formats": {None: "{:.2f}", "neighbours' effect, QAT traced": "{:.0%}", "QAT replaced": "{:.0%}"}}
    return frame


def batch_norm_reading():
    """Markdown: which treatment of batch normalisation the paper's sizes belong to."""
    frame = batch_norm_sizes()
    gap = {k: (frame[k] - frame["paper"]).abs() for k in ("traced", "fused")}
    traced = int((frame["nearer"] == "traced").sum())
    dependent = int((frame["neighbours' effect, QAT traced"] > 0.01).sum())
    said = (f"In {traced} of {len(frame)} backbones the size with batch normalisation left as traced is the nearer one: it is off the "
            f"paper's by at most {gap['traced'].max():.2f}, the fused one by {gap['fused'].min():.2f} to {gap['fused'].max():.2f}. ")
    said += ("The paper's models were therefore quantized with the unfused default." if traced == len(frame) else
             "The sizes do not agree on one recipe.")
    said += (f" Prepared for QAT as traced, {dependent} of {len(frame)} backbones let an image's neighbours change its logits by "
             "more than a hundredth of their spread.")
    return text(said)


# --- model selection --------------------------------------------------------------------------------------------------

def selection_optimism(results):
    """Accuracy at the chosen epoch against the mean of that epoch and its two neighbours, per trained cell.

    Columns: dataset, backbone, regime, epochs, best_epoch, accuracy, around_it, optimism (in percentage points). Cells whose
    best epoch is the first or last are left out: there a neighbour is missing and the model may still be learning.
    """
    rows = []
    for (dataset, backbone, regime), part in results.history.groupby(["dataset", "backbone", "regime"], sort=False):
        found = [_optimism(h.sort_values("epoch")) for _, h in part.groupby("fold")]
        found = [f for f in found if f]
        if found:
            rows.append({"dataset": dataset, "backbone": backbone, "regime": regime,
                         **pd.DataFrame(found).mean().to_dict()})
    columns = ["dataset", "backbone", "regime", "epochs", "best_epoch", "accuracy", "around_it", "optimism"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs = {"formats": {None: "{:.0f}", "accuracy": "{:.2%}", "around_it": "{:.2%}", "optimism": "{:+.2f}"}}
    return frame


def _optimism(history):
    accuracy = history["accuracy"].to_numpy()
    best = int(accuracy.argmax())
    if not 0 < best < len(accuracy) - 1:
        return None
    around = accuracy[best - 1:best + 2].mean()
    return {"epochs": len(accuracy), "best_epoch": history["epoch"].iloc[best], "accuracy": accuracy[best],
            "around_it": around, "optimism": 100 * (accuracy[best] - around)}


def selection_reading(results):
    """Markdown: how large the optimism of choosing on the test images looks here."""
    frame = selection_optimism(results)
    trained = results.history.groupby(["dataset", "backbone", "regime"]).ngroups
    if frame.empty:
        return text(f"Of {trained} trained cells none has its best epoch between two others, so nothing can be said here.")
    said = (f"In {len(frame)} of {trained} trained cells the best epoch lies between two others. There the reported accuracy stands "
            f"{frame['optimism'].median():.2f} percentage points above the mean around it (median; largest "
            f"{frame['optimism'].max():.2f}). The mean includes the best epoch itself and the last steps of learning, so it "
            "is a rough measure, not a correction.")
    return text(said)


# --- claims and checklists --------------------------------------------------------------------------------------------

def checks(name):
    """A checklist of `book/_data/checklists.yaml` as a list, each item with its state and links to what proves it."""
    import yaml

    items = yaml.safe_load((DATA / "checklists.yaml").read_text(encoding="utf-8"))[name]
    lines = []
    for item in items:
        proof = [f"[{p}]({repository_url(p)})" if in_repository(p) else f"{{doc}}`/{p}`" for p in item.get("proof", [])]
        note = f" {item['note']}" if item.get("note") else ""
        lines.append(f"| {STATES[item['state']]} | {item['item']} | {', '.join(proof)}{note} |")
    return text("| | asked for | what proves it |\n| --- | --- | --- |\n" + "\n".join(lines))


def packages(results):
    """Versions that these results were measured with: package, version."""
    versions = results.provenance.get("versions", {})
    return pd.DataFrame([{"package": k, "version": v} for k, v in versions.items()], columns=["package", "version"])


def provenance(results):
    """`provenance.json` in a folded block."""
    return Shown(f":::{{dropdown}} provenance.json\n```json\n{json.dumps(results.provenance, indent=1, ensure_ascii=False)}\n```\n:::")


VERDICTS = {"supported": "✓ supported", "contradicted": "✗ contradicted", "not testable": "? not testable"}


def verdicts(claims):
    """The claims of `medq.claims.evaluate` with nothing but claim, section and verdict."""
    frame = claims[["claim", "section", "verdict"]].copy()
    frame["verdict"] = frame["verdict"].map(lambda v: VERDICTS.get(v, v))
    frame.attrs = {}
    return frame


def verdict_summary(claims):
    """Markdown: how many claims got which verdict, and which are contradicted."""
    counts = claims["verdict"].value_counts()
    badges = " · ".join(f"{shown[0]} **{counts.get(v, 0)} {v}**" for v, shown in VERDICTS.items())
    names = list(claims.loc[claims["verdict"] == "contradicted", "claim"])
    said = f"Of {len(claims)} claims: {badges}."
    return text(said + (f"\n\nContradicted: {'; '.join(names)}." if names else ""))


def claims_table(claims):
    """All claims with their tests and verdicts; the evidence unfolds."""
    rows = []
    for claim in claims.to_dict("records"):
        text = {k: escape(str(v)) for k, v in claim.items()}
        evidence = "".join(f"<li>{part.strip()}</li>" for part in text["evidence"].split(";"))
        rows.append(f"<tr><td class='text'><strong>{text['claim']}</strong><br>{text['test']}<details><summary>Evidence</summary><ul>"
                    f"{evidence}</ul></details></td><td class='text'>{text['section']}</td>"
                    f"<td class='text verdict'>{VERDICTS.get(claim['verdict'], text['verdict'])}</td></tr>")
    html = ("<div class='medq-scroll' role='region' tabindex='0' aria-label='Claims'><table class='medq-claims'><thead><tr>"
            "<th class='text' scope='col'>Claim and its test</th><th class='text' scope='col'>Section</th>"
            f"<th class='text' scope='col'>Verdict</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>")
    return table_of(html, "claims", "The paper's claims, tested on these results.", claims, sortable=True)


def sources():
    """Datasets of the catalogue that are not generated: dataset, source, licence."""
    from medq import params

    rows = [{"dataset": name, "source": spec.source or "–", "licence": spec.licence or "–"}
            for name, spec in params.datasets().items() if spec.layout != "phantom"]
    return pd.DataFrame(rows, columns=["dataset", "source", "licence"])


def layers(results, regime="ptq-fbgemm"):
    """The noise of every quantized layer, one tab per cell that was diagnosed, with its three worst layers."""
    from medq import figures, tables

    found = results.layers[results.layers["regime"] == regime][["dataset", "backbone"]].drop_duplicates()
    if found.empty:
        return text("*No cell of these results was diagnosed layer by layer.*")
    tabs = []
    for dataset in [d for d in results.datasets if d in set(found["dataset"])]:
        for backbone in [b for b in results.backbones if ((found["dataset"] == dataset) & (found["backbone"] == b)).any()]:
            name = f"layers-{dataset}-{backbone}"
            rows = results.layers[(results.layers["dataset"] == dataset) & (results.layers["backbone"] == backbone)
                                  & (results.layers["regime"] == regime)]
            shown = joined(figure(figures.sqnr_figure(results, dataset, backbone, regime), name,
                                  "Noise of each quantized layer.", rows, numbered=False),
                           table(tables.worst_layers(results, dataset, backbone, regime), f"{name}-worst", numbered=False))
            tabs.append(f"::::{{tab-item}} {title(backbone)}, {title(dataset)}\n{shown.myst}\n::::")
    return text(":::::{tab-set}\n" + "\n".join(tabs) + "\n:::::")



# --- what to ship -----------------------------------------------------------------------------------------------------

LIMITS = {"auprc": 1.0, "ece": 1.0}  # largest loss of AUPRC in points, largest rise of ECE in hundredths


def advice(results, *, limits=LIMITS, batch_size=1):
    """The fastest regime whose losses against FP32 certainly stay within `limits`, per dataset and backbone.

    A regime passes if the 95 % bootstrap interval of its loss lies within the limit for every metric. Columns: dataset,
    backbone, ship, p50_ms, speedup (over FP32), then why the faster ones were passed over.
    """
    from medq.results import REGIMES, timings

    times = timings(results, batch_size).set_index(["backbone", "regime"])["p50_ms"].to_dict()
    losses = _losses(results)
    rows = []
    for dataset in results.datasets:
        for backbone in results.backbones:
            base = times.get((backbone, "fp32"))
            verdict = {r: _refused(losses, (dataset, backbone, r), limits) for r in REGIMES
                       if r not in ("fp32", "fp32-continued") and (backbone, r) in times}
            passed = [r for r, why in verdict.items() if not why and base and times[backbone, r] < base]
            ship = min(passed, key=lambda r: times[backbone, r], default="fp32")
            p50 = times.get((backbone, ship), float("nan"))
            refused = [f"{title(r)}: {why}" for r, why in verdict.items() if why and times[backbone, r] < p50]
            rows.append({"dataset": dataset, "backbone": backbone, "ship": title(ship), "p50_ms": p50,
                         "speedup": base / p50 if base else float("nan"), "faster, but refused": "; ".join(refused) or "none"})
    frame = pd.DataFrame(rows, columns=["dataset", "backbone", "ship", "p50_ms", "speedup", "faster, but refused"])
    frame.attrs = {"formats": {None: "{:.2f}", "speedup": "{:.2f}×"}}
    return frame


def _losses(results):
    """{(dataset, backbone, regime): {metric: (loss, its upper bound)}}, in points or hundredths, worse is positive."""
    found = {}
    b = results.bootstrap
    for row in b[b["method_a"] == "fp32"].to_dict("records"):
        worse = (row["delta_pp"], row["high_pp"]) if row["metric"] not in ("ece", "brier") else (-row["delta_pp"], -row["low_pp"])
        found.setdefault((row["dataset"], row["backbone"], row["method_b"]), {})[row["metric"]] = worse
    return found


def _refused(losses, cell, limits):
    """Why a cell does not pass, in words; empty if it does."""
    known = losses.get(cell, {})
    for metric, limit in limits.items():
        if metric not in known:
            return f"{title(metric)} not compared"
        value, bound = known[metric]
        if not bound <= limit:
            return f"{title(metric)} {'loss' if metric == 'auprc' else 'rise'} {value:.1f}, perhaps {bound:.1f}"
    return ""


def advice_reading(results):
    """Markdown: how often each regime is the one to ship."""
    frame = advice(results)
    if frame.empty or frame["p50_ms"].isna().all():
        return text("These results hold no timings, so nothing can be advised.")
    counts = frame["ship"].value_counts()
    said = ", ".join(f"{name} in {n}" for name, n in counts.items())
    return text(f"Of {len(frame)} pairs of dataset and backbone the advice is {said}; the median speed-up of what is advised over FP32 "
                f"is {frame['speedup'].median():.2f}. A regime whose interval reaches over the limit is refused even if its "
                "estimate lies within: with few images, caution is what the numbers allow.")
