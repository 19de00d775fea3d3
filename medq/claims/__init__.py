"""The paper's empirical claims (params/claims.yaml) and their verdicts on a result folder.

A verdict is computed from the results alone. It reads `not testable` where their intervals, or gaps, leave the claim
open, and `outside this protocol's reach` where models like these, or so few of the paper's backbones, cannot decide it.
"""

import math
from typing import Any, Literal

import pandas as pd

from medq import config, paths
from medq.claims import decisions
from medq.claims.evidence import CONTRADICTED, MOST, OPEN, OUTSIDE, SUPPORTED
from medq.claims.evidence import Finding, both, exists, is_published, judge
from medq.results import companions, published, title
from medq.tables import comparable

VERDICTS = (SUPPORTED, CONTRADICTED, OPEN, OUTSIDE)
DECIDING = ("pretrained-qat", "pretrained")  # folders beside `reference` that are asked before it, the last one first
COLUMNS = "id claim section quotation_short test evidence value low high verdict results".split()


class Claim(config.Model):
    """One claim: `says` paraphrases the paper, `test` is the rule in words, `decide` holds its tests as data."""

    claim: str
    section: str
    says: str
    test: str
    needs: Literal["any", "pretrained"]
    over: Literal["mean", "every", "some", "named"]
    numbers: Literal["metrics", "latency", "calibration_size"] = "metrics"
    decide: dict[str, Any] | list[dict[str, Any]]

    def find(self, results) -> Finding:
        """The finding of these results; outside their reach if the claim needs another protocol or more backbones."""
        tests = [self.decide] if isinstance(self.decide, dict) else self.decide
        found = both(*(_tested(results, **t) for t in tests))
        decisive = {"mean": (), "every": (CONTRADICTED,), "some": (SUPPORTED,), "named": VERDICTS}[self.over]
        paper = published().backbones
        measured = len(set(_measured(results, self.numbers)) & set(paper))
        if measured < MOST and found.verdict not in decisive:
            note = f" Measured on {measured} of the paper's {len(paper)} backbones."
            return found._replace(verdict=OUTSIDE, evidence=found.evidence + note)
        return found if self.needs == "any" or comparable(results) else found._replace(verdict=OUTSIDE)


def _tested(results, *, by, low=float("-inf"), high=float("inf"), exceeds=None, unit="points", **arguments):
    found = getattr(decisions, by)(results, **arguments)
    if isinstance(found, Finding):
        return found
    return judge(found, low=low, high=high, unit=unit) if exceeds is None else exists(found, above=exceeds, unit=unit)


CLAIMS = config.catalogue(paths.PARAMS / "claims.yaml", Claim)


def _measured(results, numbers="metrics"):
    """Backbones that the results hold numbers of, not those that their profile only plans."""
    if is_published(results):
        return results.backbones
    table = results.status.query("status == 'done'") if numbers == "metrics" else getattr(results, numbers)
    return list(table["backbone"].unique())


def _rank(found, source, results):
    """Order in which findings are preferred: decided, open, out of reach, without a number (then the results' own)."""
    if found.verdict in (SUPPORTED, CONTRADICTED):
        return 0
    if math.isnan(found.value):
        return 3 + (source is not results)
    return 1 if found.verdict == OPEN else 2


def evaluate(results):
    """Every claim with its verdict: a DataFrame of COLUMNS, in the order of `CLAIMS`.

    A claim is decided by the first folder that can: for `reference` those of DECIDING beside it, if they exist. Where none
    can, the first that has a number shows what is known. The folder's name is in `results`, and the evidence names its
    backbones. `value`, `low`, `high` are the number that decides and its 95 % interval (fractions, seconds or ratios, as
    the evidence says; missing where no single number decides).
    """
    rows = []
    for name, claim in CLAIMS.items():
        tried = [(claim.find(source), source) for source in reversed(companions(results, DECIDING))]
        found, source = min(tried, key=lambda pair: _rank(*pair, results))
        models = f" Models: {', '.join(map(title, _measured(source)))}." if source is not results else ""
        told = claim.claim, claim.section, claim.says, claim.test, found.evidence + models
        rows.append((name, *told, found.value, found.low, found.high, found.verdict, source.name))
    return pd.DataFrame(rows, columns=COLUMNS)
