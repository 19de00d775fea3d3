"""The paper's empirical claims (params/claims.yaml) and their verdicts on a result folder.

A verdict is computed from the results alone. It reads `not testable` where their intervals, or gaps, leave the claim
open, and `outside this protocol's reach` where models like these cannot decide it.
"""

from typing import Any, Literal

import pandas as pd

from medq import config, paths
from medq.claims import decisions
from medq.claims.evidence import CONTRADICTED, OPEN, OUTSIDE, SUPPORTED, Finding, is_published
from medq.results import PHANTOM, Results
from medq.results import published as paper_results

VERDICTS = (SUPPORTED, CONTRADICTED, OPEN, OUTSIDE)
COLUMNS = [
    "id",
    "claim",
    "section",
    "quotation_short",
    "test",
    "evidence",
    "value",
    "low",
    "high",
    "verdict",
    "results",
]
STRONGER = "pretrained"  # the results beside `reference` that are asked first


class _Entry(config.Model):
    claim: str
    section: str
    says: str
    test: str
    needs: Literal["any", "pretrained"]
    decide: str
    arguments: dict[str, Any] = {}


class Claim(_Entry):
    """One claim: `says` paraphrases the paper, `test` is the rule in words, `decide` names it in `decisions`."""

    id: str

    def find(self, results, published=None) -> Finding:
        """The finding of these results; outside their reach if the claim needs another protocol."""
        found = getattr(decisions, self.decide)(results, published or paper_results(), **self.arguments)
        return found if self.needs == "any" or is_pretrained(results) else found._replace(verdict=OUTSIDE)


CLAIMS = tuple(
    Claim(id=name, **entry.model_dump())
    for name, entry in config.catalogue(paths.PARAMS / "claims.yaml", _Entry).items()
)


def is_pretrained(results):
    """Whether the models are the paper's, or like them: fine-tuned from pretrained weights on real images of 224 pixels."""
    used = results.provenance.get("parameters", {})
    real = bool(results.datasets) and not any(d.startswith(PHANTOM) for d in results.datasets)
    return (
        is_published(results) or (used.get("weights") or "none") != "none" and used.get("image_size", 0) >= 224 and real
    )


def evaluate(results, published=None):
    """Every claim with its verdict: a DataFrame of COLUMNS, in the order of `CLAIMS`.

    A claim is decided by the first folder that can: for `reference` that is `pretrained` beside it, if it exists; its name
    is in `results`. `value`, `low`, `high` are the number that decides and its 95 % interval (fractions, seconds or
    ratios, as the evidence says; missing where no single number decides).
    """
    published, sources = published or paper_results(), [results]
    path = results.path.with_name(STRONGER)
    if results.name == "reference" and (path / "metrics.csv").is_file():
        sources.insert(0, Results(path.name, path))
    rows = []
    for claim in CLAIMS:
        for source in sources:
            found = claim.find(source, published)
            if found.verdict in (SUPPORTED, CONTRADICTED):
                break
        rows.append((claim.id, claim.claim, claim.section, claim.says, claim.test, *_row(found), source.name))
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame.attrs = {"caption": "The paper's claims and what these results say of them", "formats": {None: "{:.3g}"}}
    return frame


def _row(found):
    return found.evidence, found.value, found.low, found.high, found.verdict


def summary(verdicts):
    """How many claims have which verdict: {verdict: count}, of `evaluate`'s table."""
    counts = verdicts["verdict"].value_counts()
    return {v: int(counts.get(v, 0)) for v in VERDICTS}
