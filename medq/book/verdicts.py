"""What the book concludes: verdicts on the paper's claims, ticks of checklists, which precision to ship."""

from html import escape

import pandas as pd

from medq.book.pages import DATA
from medq.book.show import html_table, in_repository, repository_url, table_of, text, unfolding
from medq.results import title

VERDICTS = {
    "supported": "✓ supported",
    "contradicted": "✗ contradicted",
    "not testable": "? not testable",
    "outside this protocol's reach": "– outside this protocol's reach",
}
STATES = {"yes": "✓ yes", "partly": "◐ partly", "no": "✗ no"}


# --- claims -------------------------------------------------------------------------------------------------


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
    fell = f"\n\nContradicted: {'; '.join(names)}." if names else ""
    return text(f"Of {len(claims)} claims: {badges}.{fell}")


def claims_table(claims):
    """All claims with their tests and verdicts; the evidence unfolds."""
    heads = [("Claim and its test", "text"), ("Section", "text"), ("Verdict", "text")]
    rows = [
        [
            (
                f"<strong>{escape(c['claim'])}</strong><br>{escape(c['test'])}"
                f"{unfolding('Evidence', c['evidence'].split(';'))}",
                "text",
            ),
            (escape(c["section"]), "text"),
            (VERDICTS.get(c["verdict"], escape(c["verdict"])), "text verdict"),
        ]
        for c in claims.to_dict("records")
    ]
    caption = "The paper's claims, tested on these results."
    return table_of(html_table(heads, rows, "Claims"), "claims", caption, claims, sortable=True)


def experiments(results, published):
    """Markdown: what each experiment of these results says, a computed paragraph and the page behind it."""
    from medq import reading

    parts = {
        "beyond/collapse": reading.collapse(results, published),
        "beyond/relu6": reading.engine_check(results),
        "beyond/remedies": reading.remedies(results),
        "beyond/longer-training": reading.qat_control(results),
        "beyond/leakage": reading.leak(results),
        "beyond/silent-failures": reading.silent(results),
        "results/table4": reading.table4(results, published),
        "beyond/runtimes": reading.peers(results),
    }
    return text("\n\n".join(f"{{doc}}`/{page}`\n: {said}" for page, said in parts.items()))


# --- checklists ---------------------------------------------------------------------------------------------


def checks(name):
    """A checklist of `book/_data/checklists.yaml` as a table, each item with its state and what proves it."""
    import yaml

    lines = ["| state | asked for | what proves it |", "| --- | --- | --- |"]
    for item in yaml.safe_load((DATA / "checklists.yaml").read_text(encoding="utf-8"))[name]:
        proof = [f"[{p}]({repository_url(p)})" if in_repository(p) else f"{{doc}}`/{p}`" for p in item.get("proof", [])]
        because = " ".join(filter(None, [", ".join(proof), item.get("note")]))
        lines.append(f"| {STATES[item['state']]} | {item['item']} | {because} |")
    return text("\n".join(lines))


# --- what to ship -------------------------------------------------------------------------------------------

ADVICE = {
    "p50_ms": ("p50 (ms)", "{:.2f}"),
    "speedup": ("Speed-up", "{:.2f}×"),
    "auprc_loss_pp": ("AUPRC loss (points)", "{:+.2f}"),
    "brier_rise": ("Brier rise", "{:+.4f}"),
}


def advice(results, limits=None):
    """`medq.advise.decide` in one row per dataset and backbone.

    Columns: dataset, backbone, ship, p50_ms, speedup (over eager FP32), auprc_loss_pp, brier_rise, refused
    (candidates that are faster, and why they were passed over, a line each).
    """
    from medq import advise

    rows = []
    for key, group in advise.decide(results, limits).groupby(["dataset", "backbone"], sort=False):
        chosen = group[group["ship"]]
        row = chosen.iloc[0].to_dict() if len(chosen) else {"candidate": advise.nothing(group)}
        refused = [
            f"{title(c['candidate'])}: {c['why']}"
            for c in group.to_dict("records")
            if not c["passes"]
            and not c["speedup"] <= row.get("speedup", float("nan"))
            and c["why"] != advise.NOT_MEASURED
        ]
        rows.append(
            {
                **dict(zip(("dataset", "backbone"), key)),
                "ship": title(row["candidate"]),
                **{c: row.get(c, float("nan")) for c in ADVICE},
                "refused": "\n".join(refused),
            }
        )
    return pd.DataFrame(rows, columns=["dataset", "backbone", "ship", *ADVICE, "refused"])


def advice_table(results):
    """The advice as a table whose refusals unfold."""
    frame = advice(results)
    heads = [(h, "text") for h in ("Dataset", "Backbone", "Ship")]
    heads += [(h, "number") for h, _ in ADVICE.values()]
    rows = []
    for r in frame.to_dict("records"):
        ship = f"<strong>{escape(r['ship'])}</strong>{unfolding('why not faster', r['refused'].splitlines())}"
        numbers = [
            "–" if pd.isna(r[name]) else form.format(round(r[name], 6) + 0.0) for name, (_, form) in ADVICE.items()
        ]
        rows.append(
            [
                (escape(title(r["dataset"])), "text"),
                (escape(title(r["backbone"])), "text"),
                (ship, "text"),
                *((number, "number") for number in numbers),
            ]
        )
    caption = "The precision to ship for each dataset and backbone, at the default limits."
    return table_of(html_table(heads, rows, "Advice"), "advice", caption, frame, sortable=True)


def advice_reading(results):
    """Markdown: how often each candidate is the one to ship."""
    frame = advice(results)
    if frame.empty:
        return text("These results hold no cells, so nothing can be advised.")
    said = ", ".join(f"{name} in {n}" for name, n in frame["ship"].value_counts().items())
    gain = frame["speedup"].median()
    gain = "" if pd.isna(gain) else f" The median speed-up of what is advised over eager FP32 is {gain:.2f}."
    return text(
        f"Of {len(frame)} pairs of dataset and backbone the advice is: {said}.{gain} A candidate "
        "whose bound reaches over a limit is refused even where its estimate lies within: with few "
        "images, caution is what the numbers allow."
    )
