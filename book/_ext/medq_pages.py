"""What the book asks of Sphinx beyond Jupyter Book, each part small and independent.

- `run_pages`: the code of all pages runs in a few warm kernels. A kernel with its imports costs three
  seconds; one each for some eighty pages would be more than a build may take in all. The outputs go into
  MyST-NB's own cache, where the pages then find them; a page that fails here is run again by MyST-NB, which
  reports it in its usual way.
- directives `plot`, `tabular`, `interactive`: figures and tables whose content `medq_book` has written.
- role `repo`: a link to a file of the repository, which must exist.
- formulas as MathML, so that no script is needed; a size on every image; keyboard access to scrolling tables.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
from html import escape
from pathlib import Path
from urllib.parse import unquote

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.math import get_node_equation_number

import medq_book as book
from medq_links import colab_url, in_repository, repository_url
from medq_cells import write_pages
from medq_text import TOLD

from medq import paths

LOG = logging.getLogger(__name__)
ICONS = {"Binder": "fas fa-flask", "Colab": "fas fa-infinity"}
KERNELS = min(4, os.cpu_count() or 1)


# --- running the pages --------------------------------------------------------------------------------------


def prepare(app):
    """Fix the result folder, write the pages of chosen cells, run all pages whose outputs are out of date.

    To look at a few pages quickly, name them in MEDQ_PAGES ("index beyond/ship"): the others keep their code alone.
    """
    from medq import results
    from medq.errors import UserError

    try:
        ours = results.current()
    except UserError as error:
        print(f"The book needs results: {error} `medq batch params/smoke.yaml` makes some.", file=sys.stderr)
        raise SystemExit(2) from None
    os.environ["MEDQ_RESULTS"] = str(Path(ours.path).resolve())
    os.environ["MEDQ_BOOK"] = str(app.srcdir)
    here = str(Path(__file__).parent)  # pages import medq_book and medq_drawings
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    stamp_file = Path(app.outdir).parent / "pages.json"
    stamp = {"results": fingerprint(*(r.path for r in results.companions(ours, TOLD)))}
    old = json.loads(stamp_file.read_text()) if stamp_file.is_file() else {}
    if old.get("results") != stamp["results"]:  # nothing of other results may stay behind
        for folder in (Path(app.srcdir) / book.ASSETS, Path(app.outdir) / "cells", Path(app.outdir) / "files"):
            shutil.rmtree(folder, ignore_errors=True)
    write_pages(app.srcdir, ours)
    app.env.medq_changed, stale = set(), []
    for path in sorted(Path(app.srcdir).rglob("*.md")):
        if {"_build", "_ext"} & set(path.relative_to(app.srcdir).parts):
            continue
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(app.srcdir).with_suffix("").as_posix()
        stamp[name] = hashlib.sha256((stamp["results"] + text).encode()).hexdigest()
        if old.get(name) != stamp[name]:
            app.env.medq_changed.add(name)
            stale += [(name, text)] if "{code-cell}" in text else []
    only = os.environ.get("MEDQ_PAGES", "").split()
    if only:
        others = [f"{name}.md" for name, _ in stale if name not in only]
        stale = [(name, text) for name, text in stale if name in only]
        app.env.mystnb_config = app.env.mystnb_config.copy(execution_excludepatterns=others)
        stamp = {"results": stamp["results"]}  # the next build is a whole one
    failed = run_pages(app, stale)
    stamp_file.parent.mkdir(parents=True, exist_ok=True)
    stamp_file.write_text(json.dumps({name: value for name, value in stamp.items() if name not in failed}))


def run_pages(app, pages):
    """Execute `pages` [(name, text)] in KERNELS warm kernels and put their outputs in the notebook cache.

    Returns the names of the pages that failed.
    """
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn
    from myst_nb.core.read import read_myst_markdown_notebook

    if not pages:
        return set()
    kernels = min(KERNELS, len(pages))
    LOG.info("running the code of %d pages in %d kernels", len(pages), kernels)
    queue = [(name, read_myst_markdown_notebook(text, config=app.env.myst_config)) for name, text in reversed(pages)]

    async def gather():
        timeout = app.config.nb_execution_timeout
        return await asyncio.gather(*(run_queue(queue, str(app.srcdir), timeout) for _ in range(kernels)))

    cache = get_cache(app.env.mystnb_config.execution_cache_path)
    for _, notebook in queue:  # a page that fails must not fall back on outputs of an earlier build
        with contextlib.suppress(KeyError):
            cache.remove_cache(cache.match_cache_notebook(notebook).pk)
    done = [notebook for notebooks in asyncio.run(gather()) for notebook in notebooks]
    for name, notebook in done:
        cache.cache_notebook_bundle(CacheBundleIn(notebook, name), check_validity=False, overwrite=True)
    return {name for name, _ in pages} - {name for name, _ in done}


async def run_queue(queue, folder, timeout):
    """Start one kernel and run notebooks from `queue` [(name, notebook)] in it until none is left; those
    that ended well.
    """
    from jupyter_client.manager import start_new_async_kernel
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    done = []
    manager, client = await start_new_async_kernel(
        kernel_name="python3", cwd=folder, extra_arguments=["--log-level=ERROR"]
    )
    try:
        while queue:
            name, notebook = queue.pop()
            try:
                runner = NotebookClient(notebook, km=manager, timeout=timeout, record_timing=False)
                runner.kc = client  # a second client of one kernel would wait for ever for its replies
                await runner.async_execute()
                done.append((name, notebook))
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                LOG.info("%s fails, and is left to MyST-NB: %s", name, str(error).strip().splitlines()[-1])
            # as `%reset -f`, which would also collect garbage, for half of the time of a build
            await client.execute("%reset_selective -f .", silent=True, reply=True)
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
    return done


def outdated(app, env, added, changed, removed):
    """Pages whose source is the same but whose outputs are new."""
    return sorted(env.medq_changed & env.found_docs)


# --- directives and roles -----------------------------------------------------------------------------------


class Plot(SphinxDirective):
    """A figure from an SVG: for light and dark pages, and for a phone where it was drawn narrow, too.

    CSS shows one of them. Numbered if it has a name.
    """

    required_arguments, has_content = 1, True
    option_spec = {"alt": directives.unchanged_required, "name": directives.unchanged, "narrow": directives.unchanged}

    def run(self):
        uri, narrow, images = self.arguments[0], self.options.get("narrow"), []
        for source, css in ((uri, ["medq-wide"] if narrow else []), (narrow, ["medq-narrow"])):
            if source:
                _, light = self.env.relfn2path(source)
                dark, dark_uri = book.asset(source.replace(f"/{book.ASSETS}/", "dark/"))
                dark.write_text(darkened(Path(light).read_text(encoding="utf-8")), encoding="utf-8")
                for place, theme in ((source, "only-light"), (dark_uri, "only-dark")):
                    images.append(nodes.image(uri=place, alt=self.options["alt"], classes=[theme, *css]))
        kind = nodes.figure if self.options.get("name") else nodes.container
        return [captioned(self, kind, "medq-figure", nodes.container("", *images, classes=["medq-scroll"]))]


class tabular(nodes.General, nodes.Element):
    """A numbered table whose rows are ready-made HTML."""


class Tabular(SphinxDirective):
    """A table from an HTML file that `medq_book` wrote. Numbered if it has a name."""

    required_arguments, has_content = 1, True
    option_spec = {"name": directives.unchanged}

    def run(self):
        _, path = self.env.relfn2path(self.arguments[0])
        rows = nodes.raw("", Path(path).read_text(encoding="utf-8"), format="html")
        if not self.content:
            return [rows]
        return [captioned(self, tabular if self.options.get("name") else nodes.container, "medq-tabular", rows)]


class Interactive(SphinxDirective):
    """A plotly figure from an HTML file that `medq_book` wrote; its library is loaded on such pages only."""

    required_arguments = 1
    option_spec = {"alt": directives.unchanged_required}

    def run(self):
        _, path = self.env.relfn2path(self.arguments[0])
        html = Path(path).read_text(encoding="utf-8")
        label = escape(self.options["alt"], quote=True)
        return [nodes.raw("", f'<figure class="medq-interactive" aria-label="{label}">{html}</figure>', format="html")]


def captioned(directive, kind, css, content):
    """A node of `kind` with `content` and the directive's text as its caption; with a name it has a label
    and a number.
    """
    node = kind(classes=[css])
    texts, messages = directive.state.inline_text(" ".join(directive.content), directive.lineno)
    caption = nodes.caption if directive.options.get("name") else nodes.paragraph
    caption = caption("", "", *texts, classes=[] if directive.options.get("name") else ["medq-caption"])
    above = kind is tabular or css == "medq-tabular"  # a table's caption stands above it
    node.extend([caption, content, *messages] if above else [content, caption, *messages])
    if directive.options.get("name"):
        directive.add_name(node)
    return node


def visit_tabular(writer, node):
    writer.body.append(writer.starttag(node, "div"))


def depart_tabular(writer, node):
    writer.body.append("</div>\n")


class Repo(SphinxRole):
    """{repo}`path` or {repo}`text <path>`: a file of the repository on its host."""

    def run(self):
        match = re.fullmatch(r"(.+?)\s*<(.+)>", self.text)
        title, path = match.groups() if match else (self.text, self.text)
        if not in_repository(path):
            LOG.warning("no such file in the repository: %s", path, location=self.get_location())
        text = nodes.Text(title) if match else nodes.literal("", title)
        return [nodes.reference("", "", text, refuri=repository_url(path))], []


# --- HTML ---------------------------------------------------------------------------------------------------


def mathml(latex, display):
    from latex2mathml.converter import convert

    return convert(latex, display="block" if display else "inline")


def visit_math(writer, node):
    writer.body.append(mathml(node.astext(), False))
    raise nodes.SkipNode


def visit_displaymath(writer, node):
    writer.body.append(writer.starttag(node, "div", CLASS="math medq-scroll"))
    if node["number"]:
        writer.body.append(f'<span class="eqno">({get_node_equation_number(writer, node)})</span>')
    writer.body.append(mathml(node.astext(), True) + "</div>\n")
    raise nodes.SkipNode


def page(app, name, template, context, doctree):
    """Sizes of images, the interactive library where it is used, and the notebook that Colab opens."""
    if "body" in context:
        context["body"] = re.sub(r"<img [^>]*>", lambda tag: sized(tag[0], app), context["body"])
        # docutils gives a bibliography roles that are deprecated or do not fit each other
        context["body"] = re.sub(r' role="(doc-biblioentry|doc-backlink|list)"', "", context["body"])
        if "plotly-graph-div" in context["body"]:
            app.add_js_file("plotly.min.js", priority=400)
        if "medq-sortable" in context["body"]:
            app.add_js_file("datatables.js", priority=400)
            app.add_css_file("datatables.css", priority=400)
    stage = (app.env.metadata.get(name) or {}).get("notebook")
    for group in context.get("header_buttons") or []:
        for button in group.get("buttons", []):
            if button.get("text") in ICONS:  # the theme's logos come without a size
                button["icon"] = ICONS[button["text"]]
            if button.get("text") == "Colab":  # Colab opens .ipynb only: the stage behind the page
                button["url"] = colab_url(stage or "notebooks/collect.ipynb")


def sized(tag, app):
    """An <img> tag with the width and height of its figure, so that a page does not jump while it loads."""
    source = re.search(r'src="([^"]+)"', tag)
    file = source and unquote(Path(source[1]).name)
    original = next((path for path, (_, name) in app.env.images.items() if name == file), None)
    if not str(original).endswith(".svg"):
        return tag
    head = (Path(app.srcdir) / original).read_text(encoding="utf-8")[:2000]
    points = re.search(r'<svg [^>]*width="([\d.]+)pt" height="([\d.]+)pt"', head)
    width, height = (round(float(side) * 4 / 3) for side in points.groups())  # CSS pixels
    return re.sub(r"\s*/?>$", f' width="{width}" height="{height}" />', tag)


def copy_files(app, error):
    """Put beside the pages what they load or link to: plotly's and DataTables' scripts, the cells' CSV files.

    DataTables comes (in itables) as a module, which browsers refuse to load from files; a plain script works.
    """
    if error is not None or app.builder.format != "html":
        return
    import itables
    import plotly.offline

    static, bundle = Path(app.outdir) / "_static", Path(itables.__file__).parent / "html"
    static.joinpath("plotly.min.js").write_text(plotly.offline.get_plotlyjs(), encoding="utf-8")
    script = (bundle / "dt_bundle.js").read_text(encoding="utf-8")
    script = re.sub(
        r"export\{([^}]*)\}",
        lambda names: (
            "window.medqTables={"
            + ",".join("{1}:{0}".format(*pair.split(" as ")) for pair in names[1].split(","))
            + "}"
        ),
        script,
    )
    static.joinpath("datatables.js").write_text("(()=>{" + script + "\n})();", encoding="utf-8")
    shutil.copyfile(bundle / "dt_bundle.css", static / "datatables.css")
    cells = Path(app.srcdir) / book.ASSETS / "files"
    if cells.is_dir():
        shutil.copytree(cells, Path(app.outdir) / "files", dirs_exist_ok=True)


def darkened(svg):
    """An SVG's text for a dark page: greys change places with their opposites, colours stay.

    A colour is grey where its channels differ by less than 12 of 255.
    """

    def swap(match):
        digits = match[1] if len(match[1]) == 6 else "".join(2 * d for d in match[1])
        channels = [int(digits[i : i + 2], 16) for i in (0, 2, 4)]
        if max(channels) - min(channels) >= 12:
            return match[0]
        return "#" + "".join(f"{round(230 - 212 * c / 255):02x}" for c in channels)

    swapped = re.sub(r"#([0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b(?![0-9a-zA-Z_-])", swap, svg)
    return re.sub(r"<svg ", '<svg fill="#e6e6e6" ', swapped, count=1)  # what names no colour is black


def fingerprint(*folders):
    """Hash of result folders and of the code that reads them; it changes when a page's output may."""
    digest = hashlib.sha256()
    code = [*(paths.ROOT / "medq").rglob("*.py"), *Path(__file__).parent.glob("*.py"), *paths.PARAMS.glob("*.yaml")]
    for path in sorted([*code, *(path for folder in folders for path in Path(folder).rglob("*"))]):
        if path.is_file():
            facts = path.stat()
            digest.update(f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def setup(app):
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    app.add_enumerable_node(tabular, "table", html=(visit_tabular, depart_tabular))
    app.add_directive("plot", Plot)
    app.add_directive("tabular", Tabular)
    app.add_directive("interactive", Interactive)
    app.add_role("repo", Repo())
    app.connect("builder-inited", prepare, priority=900)
    app.connect("env-get-outdated", outdated)
    app.connect("html-page-context", page, priority=900)
    app.connect("build-finished", copy_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
