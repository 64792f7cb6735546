"""Keep the results table of the README equal to the ledger: ``python -m workflow.readme`` (`make publish` calls it)."""

import re
from collections import Counter
from pathlib import Path

from workflow.claim_pages import number
from xai_lib import figures, ledger, records
from xai_lib.verdicts import VERDICTS

README = Path("README.md")


def results() -> str:
    """Return what published runs have decided, in Markdown: how many claims, and those with a number or an abstract.

    The book and `make results` have all of them; a README has to stay short.
    """
    rows = ledger.table()
    decided = [row for row in rows if row.verdict not in ("not tested", "shown")]
    header = ["claim", "paper", "ours", "n", "run", "verdict"]
    lines = [
        [
            f"{row.paper}, {row.where}: {row.title}",
            number(row.paper_value, row.unit),
            row.ours_text,
            row.seeds,
            f"{row.profile}, {row.data}, {row.device}",
            row.verdict,
        ]
        for row in decided
        if row.paper_value is not None or "abstract" in row.where
    ]
    found = Counter(row.verdict for row in decided)
    counts = ", ".join(f"{found[verdict]} {verdict}" for verdict in VERDICTS if found[verdict])
    count = (
        f"{len(rows)} claims are written down, {len(decided)} have a verdict: {counts}. "
        "Those with a number in the paper, or in an abstract (`make results` shows all):"
    )
    return f"{count}\n\n{figures.Table(header, lines)}"


def filled(text: str) -> str:
    """Return the README's text with the table put between its two marks."""
    block = f"<!-- results -->\n{results()}\n<!-- /results -->"
    return re.sub("<!-- results -->.*<!-- /results -->", lambda _: block, text, flags=re.DOTALL)


if __name__ == "__main__":
    records.write_text(README, filled(README.read_text(encoding="utf-8")))
