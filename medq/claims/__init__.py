"""The paper's empirical claims (params/claims.yaml) and their verdicts on a result folder.

A verdict is computed from the results alone. It reads `not testable` where their intervals, or gaps, leave the claim
open, and `outside this protocol's reach` where models like these cannot decide it.
"""

from typing import Any, Literal

import pandas as pd

from medq import config, paths
from medq.claims import decisions
from medq.claims.evidence import CONTRADICTED, OPEN, OUTSIDE, SUPPORTED, Finding, both, exists, judge
from medq.results import companions, title
from medq.tables import comparable

VERDICTS = (SUPPORTED, CONTRADICTED, OPEN, OUTSIDE)
COLUMNS = "id claim section quotation_short test evidence value low high verdict results".split()


class _Entry(config.Model):
    claim: str
    section: str
    says: str
    test: str
    needs: Literal["any", "pretrained"]
    decide: dict[str, Any] | list[dict[str, Any]]


class Claim(_Entry):
    """One claim: `says` paraphrases the paper, `test` is the rule in words, `decide` holds its tests as data."""

    id: str

    def find(self, results) -> Finding:
        """The finding of these results; outside their reach if the claim needs another protocol."""
        found = both(
            *(_tested(results, **t) for t in ([self.decide] if isinstance(self.decide, dict) else self.decide))
        )
        return found if self.needs == "any" or comparable(results) else found._replace(verdict=OUTSIDE)


def _tested(results, *, by, low=float("-inf"), high=float("inf"), exceeds=None, unit="points", **arguments):
    found = getattr(decisions, by)(results, **arguments)
    if isinstance(found, Finding):
        return found
    return judge(found, low=low, high=high, unit=unit) if exceeds is None else exists(found, above=exceeds, unit=unit)


CLAIMS = tuple(Claim(id=k, **e.model_dump()) for k, e in config.catalogue(paths.PARAMS / "claims.yaml", _Entry).items())


def evaluate(results):
    """Every claim with its verdict: a DataFrame of COLUMNS, in the order of `CLAIMS`.

    A claim is decided by the first folder that can: for `reference` that is `pretrained` beside it, if it exists; its name
    is in `results`, and the evidence names its backbones. `value`, `low`, `high` are the number that decides and its 95 %
    interval (fractions, seconds or ratios, as the evidence says; missing where no single number decides).
    """
    rows = []
    for claim in CLAIMS:
        for source in reversed(companions(results)):
            found = claim.find(source)
            if found.verdict in (SUPPORTED, CONTRADICTED):
                break
        about = claim.id, claim.claim, claim.section, claim.says, claim.test
        models = f" Models: {', '.join(map(title, source.backbones))}." if source is not results else ""
        rows.append((*about, found.evidence + models, found.value, found.low, found.high, found.verdict, source.name))
    return pd.DataFrame(rows, columns=COLUMNS)
