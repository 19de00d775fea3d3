"""Numbers in prose: pages are written by people, their numbers come from results, and a page says when it no longer holds.

- `{about} NAME` shows its content only where it is true of what the book shows: the result folder `reference`, say.
  Those of `TOLD` are there as soon as their folder is, beside `reference`; `no pretrained` where that is not.
- `{facts}` holds Python that gives names to numbers; `r` is the result folder of the block that it stands in.
- the role {medq}`NAME as FORMAT` prints one; a minus sign becomes typographic.
- `{holds} CONDITION` guards a statement: where the condition is false, the build warns and the page shows the text of
  the option `otherwise` in its place.
- `{banner}` says which results these are in one line, which opens into the rest.
- `{checks} NAME` prints a checklist of `_data/checklists.yaml`.
"""

from functools import cache
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from medq_links import in_repository, repository_url
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from medq import claims, results, tables

LOG = logging.getLogger(__name__)
TOLD = ("pretrained", "pretrained-qat")  # folders beside `reference` that pages tell about
SHARED = {}  # folder: its namespace, for all pages of a build
STATES = {"yes": "✓ yes", "partly": "◐ partly", "no": "✗ no"}
WEIGHTS = {"none": "trained from scratch", "imagenet": "ImageNet weights", None: "weights not recorded"}


def namespace(r):
    """What `{facts}` and conditions may use: the results `r`, the tables, and a few questions asked often."""

    @cache
    def table(name, **options):
        return tables.data(name, r, **options)

    @cache
    def differences(form):
        return tables.changes(r, form=form)

    def changes(metric, regime, backbone=None, dataset=None, form="converted"):
        """Rows of `tables.changes` of one metric and regime; single backbones unless `mean` is asked for."""
        frame = differences(form)
        frame = frame[(frame["metric"] == metric) & frame["regime"].str.startswith(regime)]
        frame = frame[frame["dataset"] == dataset] if dataset else frame
        return frame[frame["backbone"] == backbone] if backbone else frame[frame["backbone"] != "mean"]

    def runtimes(dataset, backbone, metric="brier", of=r):
        """A metric of one model in each runtime, as a Series by (runtime, precision); `of` other results."""
        frame = of.peers[(of.peers["dataset"] == dataset) & (of.peers["backbone"] == backbone)]
        return frame.drop_duplicates(["runtime", "precision"]).set_index(["runtime", "precision"])[metric]

    @cache
    def tally():
        """How many claims of the paper got which verdict, in words."""
        found = claims.evaluate(r)["verdict"].value_counts()
        return ", ".join(f"{found.get(v, 0)} {v}" for v in claims.VERDICTS)

    known = {"r": r, "np": np, "pd": pd, "title": results.title, "scores": results.scores, "means": results.means}
    known |= {f.__name__: f for f in (table, changes, runtimes, tally)}
    return known | {"parameters": r.provenance.get("parameters", {})}


def formatted(expression, names):
    """The value of `EXPRESSION as FORMAT` (or of an expression alone, as text)."""
    code, _, form = expression.rpartition(" as ") if " as " in expression else (expression, "", "")
    value = eval(code, names)  # pages are code as much as their cells are
    if isinstance(value, float) and not np.isfinite(value):
        raise ValueError("it is not a number")
    return format(value, form.strip()).replace("-", "−") if form else str(value)


def names_of(env):
    """The names that hold where the page is being read: those of the innermost `{about}`, else of the results shown."""
    stack = env.temp_data.setdefault("medq", [])
    if not stack:
        stack.append(of_page(env, results.current()))
    return stack[-1]


def of_page(env, r):
    """The names of one page about one result folder; what is computed from the folder is shared by all pages."""
    if r.path not in SHARED:
        SHARED[r.path] = namespace(r)
    return env.temp_data.setdefault("medq_page", {}).setdefault(r.path, dict(SHARED[r.path]))


class Number(SphinxRole):
    def run(self):
        try:
            return [nodes.inline("", formatted(self.text, names_of(self.env)), classes=["medq-number"])], []
        except Exception as error:  # whatever an expression of a page may raise
            LOG.warning("%s: %s (%s)", self.text, error, type(error).__name__, location=self.get_location())
            return [nodes.inline("", "(missing)")], []


class Block(SphinxDirective):
    """A directive whose content is parsed as part of the page."""

    has_content, required_arguments, final_argument_whitespace = True, 1, True

    def parsed(self, lines=None):
        node = nodes.container(classes=["medq-text"])
        self.state.nested_parse(self.content if lines is None else StringList(lines), self.content_offset, node)
        return node.children


class About(Block):
    def run(self):
        there, name = {r.name: r for r in results.companions(results.current(), TOLD)}, self.arguments[0]
        if name.startswith("no "):
            return self.parsed() if "reference" in there and name[3:] not in there else []
        if name not in there:
            return []
        names_of(self.env)
        self.env.temp_data["medq"].append(of_page(self.env, there[name]))
        try:
            return self.parsed()
        finally:
            self.env.temp_data["medq"].pop()


class Facts(SphinxDirective):
    has_content = True

    def run(self):
        try:
            exec("\n".join(self.content), names_of(self.env))
        except Exception as error:
            LOG.warning("facts: %s (%s)", error, type(error).__name__, location=self.get_location())
        return []


class Holds(Block):
    option_spec = {"otherwise": directives.unchanged}

    def run(self):
        try:
            true = bool(eval(self.arguments[0], names_of(self.env)))
        except Exception as error:
            true, why = False, f"{error} ({type(error).__name__})"
        else:
            why = "it is false"
        if true:
            return self.parsed()
        LOG.warning("no longer holds: %s: %s", self.arguments[0], why, location=self.get_location())
        return self.parsed([self.options["otherwise"]]) if self.options.get("otherwise") else []


class Banner(Block):
    required_arguments, has_content = 0, False

    def run(self):
        ours = results.current()
        html = f'<details class="medq-banner"><summary>{escape(summary(ours))}</summary>'
        return [
            nodes.raw("", html, format="html"),
            *self.parsed(ours.banner().splitlines()),
            nodes.raw("", "</details>", format="html"),
        ]


def summary(ours):
    """Which results these are, in one line: profile, weights, pixels, seeds, date."""
    p = ours.provenance
    if "source" in p:
        return p["source"]
    given, phantoms = p.get("parameters", {}), any(d.startswith("phantom-") for d in ours.datasets)
    weights, seeds = given.get("weights"), given.get("seeds") or [given.get("seed")]
    facts = [
        f"results/{ours.name}",
        "generated phantoms, not medical images" if phantoms else "",
        WEIGHTS.get(weights) or f"weights from {Path(weights).name}",
        f"{given['image_size']} pixels" if given.get("image_size") else "",
        f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}" if seeds[0] is not None else "",
        (p.get("written") or "")[:10],
    ]
    return "These results: " + ", ".join(filter(None, facts))


class Checks(Block):
    has_content = False

    def run(self):
        import yaml

        lists = yaml.safe_load((Path(self.env.srcdir) / "_data" / "checklists.yaml").read_text(encoding="utf-8"))
        lines = ["| state | asked for | what proves it |", "| --- | --- | --- |"]
        for item in lists[self.arguments[0]]:
            proof = [
                f"[{p}]({repository_url(p)})" if in_repository(p) else f"{{doc}}`/{p}`" for p in item.get("proof", [])
            ]
            because = " ".join(filter(None, [", ".join(proof), item.get("note")]))
            lines.append(f"| {STATES[item['state']]} | {item['item']} | {because} |")
        return self.parsed(lines)


def setup(app):
    app.add_role("medq", Number())
    for name, directive in {"about": About, "facts": Facts, "holds": Holds, "banner": Banner, "checks": Checks}.items():
        app.add_directive(name, directive)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
