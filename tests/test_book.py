"""The book built on a small simulated result folder, checked in its HTML; its helpers and its experiment on their own."""

import csv
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from html import unescape
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from filelock import FileLock

import book_check
import medq_cells
import medq_links
import medq_pages
from fixtures import results as fixtures_results
import medq_book as book
from medq import params, paths, results, tables

pytestmark = pytest.mark.timeout(900)  # a busy machine builds the book slowly
MISSING = ("phantom-BrainMRI", "swin_tiny", "qat-qnnpack")
FAILED = ("phantom-BrainMRI", "resnet50", "fp16")
UNSUPPORTED = ("phantom-BrainMRI", "resnet50", "ptq-qnnpack")
WRONG = ("phantom-BrainMRI", "mobilenetv2", "ptq-qnnpack")


@pytest.fixture(scope="module")
def site(shared_tmp):
    """The small book, built once however many processes run the tests."""
    folder = shared_tmp / "book with a space"
    with FileLock(str(shared_tmp / "book.lock")):
        if not (folder / "output.txt").is_file():
            folder.mkdir()
            shape = {"datasets": ("BrainMRI",), "backbones": ("resnet50", "mobilenetv2", "swin_tiny"), "n": 80}
            gaps = {"missing": [MISSING], "failed": [FAILED], "unsupported": [UNSUPPORTED], "disagree": [WRONG]}
            fixtures_results.write(folder / "small", phantoms=True, **shape, **gaps)
            _, output = book_check.build(folder, folder / "small")
            (folder / "output.txt").write_text(output)
    html = folder / "book" / "_build" / "html"
    return {
        "html": html,
        "output": (folder / "output.txt").read_text(),
        "pages": book_check.pages(html),
        "results": results.load(folder / "small"),
        "folder": folder,
    }


def text(site, page):
    return " ".join(site["pages"][page].get_text(" ").split())


def test_builds_without_a_warning(site):
    assert book_check.warnings(site["output"]) == []


def test_loads_nothing_from_elsewhere(site):
    assert book_check.outside(site["html"], site["pages"]) == []


def test_links_and_anchors_lead_somewhere(site):
    assert book_check.broken_links(site["html"], site["pages"]) == []


def test_images_have_size_and_alternative_text(site):
    assert book_check.plain_images(site["pages"]) == []


def test_no_path_of_this_machine(site):
    for page in [*site["html"].rglob("*.html"), *site["html"].rglob("*.ipynb"), *site["html"].rglob("*.svg")]:
        content = page.read_text(encoding="utf-8")
        assert str(site["folder"]) not in content and str(paths.ROOT) not in content, page


@pytest.mark.parametrize("kind, number", [("table", n) for n in range(1, 5)] + [("figure", n) for n in range(1, 8)])
def test_every_table_and_figure_of_the_paper_is_there(site, kind, number):
    page = site["pages"][f"results/{kind}{number}.html"]
    named = page.find(id=f"{kind}{number}")
    assert named and named.find(class_="caption-number").get_text(strip=True) == f"{kind.title()} {number}"
    assert named.find("table" if kind == "table" else "img")
    files = {a["href"].rsplit(".", 1)[-1] for a in page.find_all("a", class_="download")}
    assert files >= ({"csv"} if kind == "table" else {"csv", "svg"})
    assert page.find("details", class_="hide"), "the code that makes it is folded, not absent"


def test_a_number_on_a_page_is_the_number_in_the_results(site):
    rows = results.means(site["results"], "ece", form="fake-quant")
    rows = rows[rows["regime"] == "ptq-fbgemm"].set_index("dataset")
    cells = [
        [c.get_text(" ", strip=True) for c in row.find_all(["th", "td"])]
        for row in site["pages"]["results/table1.html"].find(id="table1").find_all("tr")
    ]
    shown = {row[0]: row[4] for row in cells if len(row) > 4 and row[1] == results.title("ece")}
    for name, value in rows["value"].items():
        assert shown[results.title(name)].startswith(f"{value:.4f}")


def test_the_csv_behind_a_table_holds_the_same_numbers(site):
    link = site["pages"]["results/table1.html"].find("a", class_="download", href=re.compile(r"table1\.csv"))
    with (site["html"] / "results" / link["href"]).open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["metric"] == "brier" and r["regime"] == "fp32"]
    means = results.means(site["results"], "brier", form="fake-quant").query("regime == 'fp32'")
    expected = means.set_index("dataset")["value"].to_dict()
    assert {r["dataset"]: float(r["ours"]) for r in rows} == pytest.approx(expected)


def test_pages_say_what_is_missing_failed_and_unsupported(site):
    matrix = site["pages"]["cells/index.html"]
    for kind, n in {"missing": 1, "failed": 1, "unsupported": 1, "wrong": 1, "done": 17}.items():
        assert len(matrix.select(f"table.medq-matrix td.{kind}")) == n, kind
    assert "scale ratio out of range" in text(site, "cells/phantom-BrainMRI-resnet50-ptq-qnnpack.html")
    assert "the kernel died" in text(site, "cells/phantom-BrainMRI-resnet50-fp16.html")
    assert "ReLU6 off by 6.0" in text(site, "cells/phantom-BrainMRI-mobilenetv2-ptq-qnnpack.html")
    assert "unsupported" in text(site, "results/table1.html")


BANNERED = (
    "index results/table1 results/figure7 results/claims beyond/found cells/index beyond/remedies repro/model-card"
)


@pytest.mark.parametrize("page", BANNERED.split())
def test_banner_says_what_these_results_are_not(site, page):
    banner = site["pages"][f"{page}.html"].find("details", class_="medq-banner")
    line = banner.find("summary").get_text()
    assert "phantoms" in line and "from scratch" in line and "64 pixels" in line and "42" in line
    assert len(banner.get_text()) > 3 * len(line), "it opens into the rest"


def test_no_page_tells_about_results_that_it_does_not_show(site):
    """What is written about `results/reference` must not stand beside the numbers of another folder."""
    always = ("index.html", "beyond/found.html", "results/claims.html", "beyond/batch-norm.html")
    for name, soup in site["pages"].items():
        assert not soup.find_all(class_="medq-number") or name in always, name
        assert "{medq}" not in soup.get_text() and "(missing)" not in soup.get_text()


def test_every_entry_of_the_map_leads_somewhere_and_has_its_number(site):
    auprc = results.scores(site["results"], "auprc").set_index(["dataset", "backbone", "regime"])["value"]
    entry = site["pages"]["cells/index.html"].find("a", href="phantom-BrainMRI-resnet50-ptq-fbgemm.html")
    assert entry.get_text().endswith(f"{auprc['phantom-BrainMRI', 'resnet50', 'ptq-fbgemm']:.3f}")
    plain = site["pages"]["cells/index.html"].find("a", href="../files/phantom-BrainMRI-swin_tiny-fp32.csv")
    frame = pd.read_csv(site["html"] / "files" / "phantom-BrainMRI-swin_tiny-fp32.csv", keep_default_na=False)
    assert plain and set(frame["backbone"]) == {"swin_tiny"} and "brier" in set(frame["metric"])


def test_launch_buttons_and_links_follow_the_one_setting(site):
    page = site["pages"]["results/figure3.html"]
    links = [a["href"] for a in page.find_all("a", href=True)]
    host = medq_links.config()["repository"]["url"]
    name = host.removeprefix("https://github.com/")
    binder = f"https://mybinder.org/v2/gh/{name}/main?urlpath=lab/tree/book/results/figure3.md"
    assert binder in links and medq_links.colab_url("notebooks/collect.ipynb") in links
    soups = site["pages"].values()
    everywhere = {a["href"] for soup in soups for a in soup.find_all("a", href=re.compile("github.com"))}
    others = {f"https://github.com/{n}" for n in ("Cedars-CIG/Quantization", "huggingface/pytorch-image-models")}
    assert {a for a in everywhere if not a.startswith(host)} <= others


def test_all_pages_are_in_the_table_of_contents():
    toc = yaml.safe_load((paths.ROOT / "_toc.yml").read_text())
    listed = {toc["root"]} | {c["file"] for part in toc["parts"] for c in part["chapters"]}
    there = {
        p.relative_to(paths.ROOT / "book").with_suffix("").as_posix()
        for p in (paths.ROOT / "book").rglob("*.md")
        if "_build" not in p.parts and p.name.count("-") < 2 or p.parent.name != "cells"
    }
    assert listed == {name for name in there if not name.startswith("_build")}
    for name in ("_config.yml", "_toc.yml"):
        assert (paths.ROOT / "book" / name).resolve() == paths.ROOT / name


def test_everything_that_a_page_or_checklist_points_to_exists():
    lists = yaml.safe_load((paths.ROOT / "book" / "_data" / "checklists.yaml").read_text())
    proofs = {p for items in lists.values() for item in items for p in item.get("proof", [])}
    roles = {
        m
        for page in (paths.ROOT / "book").rglob("*.md")
        for m in re.findall(r"\{repo\}`(?:[^`<]*<)?([^`>]+)>?`", page.read_text())
    }
    gone = [p for p in proofs if not (paths.ROOT / p).exists() and not (paths.ROOT / "book" / f"{p}.md").is_file()]
    assert gone + [p for p in roles if not (paths.ROOT / p).exists()] == []
    assert all(item.get("proof") or item.get("note") for items in lists.values() for item in items)


# --- helpers ------------------------------------------------------------------------------------------------


def test_dark_exchanges_greys_and_keeps_colours():
    svg = (
        '<svg xmlns="x"><path style="fill: #ffffff; stroke: #222222"/>'
        '<path style="fill: #ce0e17" clip-path="url(#abc)"/></svg>'
    )
    dark = medq_pages.darkened(svg)
    assert "fill: #121212" in dark and "fill: #ce0e17" in dark and "url(#abc)" in dark
    grey = re.search(r"stroke: #([0-9a-f]{2})\1\1", dark)
    assert grey and int(grey[1], 16) > 180
    assert 'fill="#' in dark.split(">")[0], "text without a colour would be black on black"


def test_a_picture_of_any_name_has_a_size(tmp_path):
    (tmp_path / "x.svg").write_text('<svg width="72pt" height="36pt"></svg>')
    app = SimpleNamespace(srcdir=tmp_path, env=SimpleNamespace(images={"x.svg": (set(), "NA_漢 1.svg")}))
    tag = medq_pages.sized('<img src="../_images/NA_%E6%BC%A2%201.svg">', app)
    assert 'width="96" height="48"' in tag


def test_a_figure_of_any_name_says_without_a_path_what_no_font_has(tmp_path, monkeypatch, recwarn):
    from matplotlib.figure import Figure

    from medq import figures

    def draw():
        warnings.warn("no installed font has '漢'", figures.FontWarning, stacklevel=2)
        warnings.warn("something else", stacklevel=2)
        return Figure(figsize=(2, 2))

    for folder in ("", str(tmp_path)):
        monkeypatch.setenv("MEDQ_BOOK", folder)
        shown = book.figure(draw, name='NA #1 "x"')
        text = shown.myst if folder else shown.html
        assert "no installed font has '漢'." in unescape(text) and str(book.__file__) not in text
    assert yaml.safe_load(re.search(":name: (.*)", shown.myst)[1]) == 'NA #1 "x"'
    assert {str(item.message) for item in recwarn} == {"something else"}


def test_fingerprint_changes_with_the_results(tmp_path):
    (tmp_path / "metrics.csv").write_text("a")
    before = medq_pages.fingerprint(tmp_path)
    assert before == medq_pages.fingerprint(tmp_path)
    (tmp_path / "metrics.csv").write_text("ab")
    assert before != medq_pages.fingerprint(tmp_path)


def test_pages_of_cells_follow_the_results(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQ_BOOK", str(tmp_path))
    backbones, regimes = ("resnet18", "vit_base"), ("fp32", "ptq-fbgemm")
    shape = {"datasets": ("BrainMRI",), "backbones": backbones, "regimes": regimes, "n": 40}
    made = results.load(fixtures_results.write(tmp_path / "r", **shape))
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "BrainMRI-resnet50-fp32.md").write_text("of an earlier build")
    medq_cells.write_pages(tmp_path, made)
    expected = {f"BrainMRI-{b}-{r}" for b in backbones for r in regimes}
    assert {p.stem for p in (tmp_path / "cells").iterdir()} == expected


def test_the_command_of_a_cell_can_be_copied_whatever_its_names(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDQ_BOOK", str(tmp_path))
    name = "it's $5 & `x` | more"
    made = SimpleNamespace(name="own", path=tmp_path, provenance={})
    command = medq_cells._files(made, name, "resnet18", "fp32").splitlines()[-2]
    assert shlex.split(command)[-3:] == [f"dataset={name}", "backbone=resnet18", "regime=fp32"]


@pytest.mark.parametrize("name", ["a#b", "a `b`", "a%20b", "a (b) [c]", "a;b&c", "100 %", "it's"])
def test_links_to_pages_and_files_of_any_name(tmp_path, monkeypatch, name):
    from urllib.parse import unquote, urlsplit

    monkeypatch.setenv("MEDQ_BOOK", str(tmp_path))
    page = medq_cells.page_name(name, "resnet18", "fp32")
    path, uri = book.asset(f"files/{name}.csv")
    assert urlsplit(uri).path == unquote(uri) == uri and str(path) == str(tmp_path) + uri
    assert urlsplit(f"{page}.md").path == unquote(f"{page}.md") and not set(page) & set("()[]` ")
    assert page != medq_cells.page_name(name + "?", "resnet18", "fp32")
    assert medq_cells.page_name("BrainMRI", "resnet18", "fp32") == "BrainMRI-resnet18-fp32"


@pytest.mark.parametrize("title", ["10 $/h or 20 $", "a `b` c", "[x](y) #z", "<b> *c* _d_ ~e~ |f|", "back\\slash {g}"])
def test_titles_are_text_in_a_page(title):
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    (inline,) = [token for token in MarkdownIt().use(dollarmath_plugin).parse(book.plain(title)) if token.children]
    assert {token.type for token in inline.children} == {"text"}
    assert "".join(token.content for token in inline.children) == title


@pytest.fixture
def numbers(tmp_path):
    """Build a page of prose about `results/reference`, a made-up folder: (its text, what the build warns about)."""

    def build(text, shown="reference"):
        folder = tmp_path / "page"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        where = tmp_path / shown
        if not where.is_dir():
            fixtures_results.write(where, datasets=("BrainMRI",), backbones=("resnet18", "vit_base"), n=40)
        (folder / "conf.py").write_text(
            f"import sys\nsys.path.insert(0, {str(paths.ROOT / 'book' / '_ext')!r})\n"
            "extensions = ['myst_parser', 'medq_text']\nmyst_enable_extensions = ['colon_fence']\n"
        )
        (folder / "index.md").write_text(f"# Page\n\n{text}\n")
        environment = os.environ | {"MEDQ_RESULTS": str(where), "PYTHONPATH": str(paths.ROOT), "NO_COLOR": "1"}
        command = [sys.executable, "-m", "sphinx", "-q", "-b", "text", str(folder), str(folder / "out")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        return (folder / "out" / "index.txt").read_text(), done.stderr

    return build


PROSE = """
::::{about} reference
:::{facts}
loss = -100 * changes("auprc", "ptq-fbgemm").set_index("backbone")["value"]
:::

Lost: {medq}`loss["resnet18"] as .1f`, gained {medq}`-1.5 as +.1f`, of {medq}`len(loss)`.

:::{holds} loss["resnet18"] > -1000
It loses less than a thousand points.
:::

:::{holds} loss["resnet18"] > 1000
:otherwise: In fact {medq}`len(loss)` models.
It loses more than a thousand points.
:::
::::

:::{about} elsewhere
About other results.
:::

Tally: {medq}`tally()`. Here: {medq}`no_such_name as .1f`.
"""


def test_prose_takes_its_numbers_from_results_and_says_when_it_no_longer_holds(numbers, tmp_path):
    text, warned = numbers(PROSE)
    ours = results.load(tmp_path / "reference")
    value = results.scores(ours, "auprc").set_index(["backbone", "regime"])["value"]
    loss = 100 * (value["resnet18", "fp32"] - value["resnet18", "ptq-fbgemm"])
    assert f"Lost: {loss:.1f}, gained −1.5, of 2." in text.replace("\n", " ")
    assert "less than a thousand" in text and "more than a thousand" not in text and "In fact 2 models." in text
    assert "About other results" not in text and "supported" in text and "Here: (missing)" in text
    assert warned.count("WARNING") == 2 and 'loss["resnet18"] > 1000' in warned and "no_such_name" in warned


def test_prose_about_one_folder_is_not_shown_with_another(numbers):
    text, warned = numbers(PROSE, shown="mine")
    assert "Lost" not in text and "thousand" not in text and "Tally" in text and warned.count("WARNING") == 1


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["empty", "sparse"])
def test_every_page_says_what_it_lacks(tmp_path, monkeypatch, folder):
    """The code of all pages on a folder with nothing in it, and on one with hardly more."""
    if folder == "sparse":
        omit = [*set(results.SCHEMA) - {"cells.csv", "metrics.csv"}, "provenance.json", "folds"]
        shape = {"datasets": ("BrainMRI",), "backbones": ("vit_base",), "regimes": ("fp32", "ptq-fbgemm"), "n": 40}
        failed = [("BrainMRI", "vit_base", "ptq-fbgemm")]
        fixtures_results.write(tmp_path / folder, **shape, omit=omit, predictions=False, failed=failed)
    (tmp_path / folder).mkdir(exist_ok=True)
    monkeypatch.setenv("MEDQ_RESULTS", str(tmp_path / folder))
    monkeypatch.setenv("MEDQ_BOOK", str(tmp_path))
    cell = re.compile(r"```\{code-cell\} ipython3\n(?::tags[^\n]*\n)?(.*?)```", re.S)
    pages = [p for p in (paths.ROOT / "book").rglob("*.md") if "_build" not in p.parts and p.stem.count("-") < 2]
    for page in pages:
        space = {}
        for code in cell.findall(page.read_text()):
            exec(compile(code, str(page), "exec"), space)


# --- the experiment on batch normalisation ------------------------------------------------------------------


@pytest.fixture(scope="module")
def experiment():
    path = paths.ROOT / "book" / "_data" / "batch_norm.py"
    spec = importlib.util.spec_from_file_location("batch_norm", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, pd.read_csv(path.with_suffix(".csv")).set_index("backbone")


def test_batch_norm_experiment_gives_the_committed_size(experiment):
    from medq import backbones

    module, committed = experiment
    ratio = module.size_ratio(backbones.create("mobilenetv2", 4, module.SIDE), "traced")
    assert ratio == pytest.approx(committed.loc["mobilenetv2", "traced"], abs=0.005)
    assert set(tables.batch_norm_sizes()["nearer"]) == {"traced"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0", "mobilenetv2"])
def test_batch_norm_experiment_gives_the_committed_row(experiment, name):
    module, committed = experiment
    now = module.measure(name)
    for treatment in ("traced", "fused"):
        assert now[treatment] == pytest.approx(committed.loc[name, treatment], abs=0.005)
    assert now["qat_traced"] > 0.1 and now["qat_replaced"] < 1e-4


# --- the worked example of book/run/own.md ------------------------------------------------------------------


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The YAML blocks of the page, in a copy of params/, and images where the page says they lie."""
    from PIL import Image

    page = (paths.ROOT / "book" / "run" / "own.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(b) for b in re.findall(r"```yaml\n(.*?)```", page, re.S)]
    folder = tmp_path / "params"
    folder.mkdir()
    for name, keys in (("datasets", ("Retina", "Fractures")), ("backbones", ("regnet",))):
        entries = {k: v for b in blocks for k, v in b.items() if k in keys}
        assert set(entries) == set(keys)
        (folder / f"{name}.yaml").write_text((paths.PARAMS / f"{name}.yaml").read_text() + yaml.safe_dump(entries))
    profile = next(b for b in blocks if "profile" in b)
    (folder / "mine.yaml").write_text(yaml.safe_dump(profile))
    rows = []
    for k in range(30):
        name = f"r{k:04d}.png"
        (tmp_path / "data/retina/photographs").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 24), (8 * k, 0, 0)).save(tmp_path / "data/retina/photographs" / name)
        rows.append((name.removesuffix(".png"), ("healthy", "referable")[k // 2 % 2], f"p{k // 2}"))
    pd.DataFrame(rows, columns=["image", "diagnosis", "patient"]).to_csv(
        tmp_path / "data/retina/labels.csv", index=False
    )
    for k in range(12):
        target = tmp_path / "data/fractures" / ("none", "fracture")[k % 2]
        target.mkdir(parents=True, exist_ok=True)
        Image.new("L", (24, 24), 20 * k).save(target / f"{k}.png")
    return tmp_path


def test_worked_example_reads_the_images_it_describes(example):
    from medq.datasets.folds import folds
    from medq.datasets.index import index

    specs = params.datasets(example / "params")
    for name, n in (("Retina", 30), ("Fractures", 12)):
        frame = index(specs[name], example / "data")
        assert len(frame) == n
        split = folds(frame, specs[name])
        assert split.groupby("group")["fold"].nunique().max() == 1 and split["fold"].nunique() == 5


def test_worked_example_backbone_builds_and_quantizes(example, monkeypatch):
    import torch

    from medq import backbones
    from medq.params import Recipe
    from medq.quantize import static

    known = params.backbones(example / "params")
    monkeypatch.setattr(params, "backbones", lambda *_: known)
    model = backbones.create("regnet", 2, 64).eval()
    prepared = static.prepare(model, "fbgemm", Recipe(title="default"), 64)
    static.calibrate(prepared, [torch.randn(2, 3, 64, 64)])
    assert static.convert(prepared, "fbgemm")(torch.randn(1, 3, 64, 64)).shape == (1, 2)


def test_worked_example_profile_is_valid(example, monkeypatch):
    monkeypatch.setattr(params, "backbones", lambda *_: {"regnet": None, "resnet18": None})
    monkeypatch.setattr(params, "datasets", lambda *_: {"Retina": None})
    profile = params.load(example / "params" / "mine.yaml")
    assert profile.datasets == ["Retina"] and profile.weights == "imagenet"


def test_worked_example_of_a_trained_model_runs(example, runs, monkeypatch):
    import torch
    from safetensors.torch import save_file

    from medq import advise, artefacts, backbones, collect, finetune, latency, quantize, results
    from medq.errors import UserError

    page = (paths.ROOT / "book" / "run" / "own.md").read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"```yaml\n(.*?)```", page, re.S) if "profile: shipped" in b)
    (example / "params" / "shipped.yaml").write_text(block)
    for kind in ("datasets", "backbones"):
        known = getattr(params, kind)(example / "params")
        monkeypatch.setattr(params, kind, lambda *_, known=known: known)
    monkeypatch.setenv("MEDQ_DATA", str(example / "data"))
    small = {"image_size": 32, "calibration": {"images": 16}, "bootstrap": {"resamples": 100}, "device": "cpu"}
    small["latency"] = {"image_size": 32, "batch_sizes": [1], "warmup": 1, "seconds": 0.1, "batches": 20, "threads": 1}
    profile = params.load(example / "params" / "shipped.yaml", small)
    torch.manual_seed(1)
    model = backbones.create("regnet", 2, 32)
    (example / "models").mkdir()
    save_file(model.state_dict(), example / "models" / "regnety_002.safetensors")
    cell = paths.Cell("shipped", "Retina", "regnet", "fp32")
    finetune.run(profile, cell)
    finetune.run(profile, cell.of("fp32-autocast"))
    for regime in ("ptq-fbgemm", "ptq-qnnpack"):
        quantize.run(profile, cell.of(regime))
    latency.run(profile, paths.Cell("shipped", "", "regnet", ""))
    kept = backbones.read_state(cell.folder / finetune.CHECKPOINT)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert artefacts.record(cell.folder)["epochs"] == 0
    manifest = json.loads((cell.folder / finetune.MANIFEST).read_text())
    assert manifest["loaded"]["file"] == "regnety_002.safetensors" and manifest["loaded"]["replaced"] == []
    assert str(example) not in json.dumps(manifest["parameters"])
    collect.collect(runs / "shipped", example / "results")
    found = results.load(example / "results")
    assert {*found.cells["regime"]} == {"fp32", "fp32-autocast", "ptq-fbgemm", "ptq-qnnpack"}
    assert {"fp32", "fp32-autocast", "ptq-fbgemm"} <= {*found.metrics["regime"]}  # qnnpack may refuse an untrained sum
    assert "ptq-fbgemm" in set(advise.decide(found)["candidate"])
    save_file(backbones.create("regnet", 5, 32).state_dict(), example / "models" / "regnety_002.safetensors")
    with pytest.raises(UserError, match="regnety_002.*'head.fc.weight' is of shape"):
        finetune.run(profile, cell)
