"""Keep the results table of the README equal to the ledger: ``python -m workflow.readme`` (`make publish` calls it)."""

import re
from pathlib import Path

from workflow.site import number
from xai_lib import figures, ledger, records

README = Path("README.md")


def results() -> str:
    """Return the table of all claims that a published run has decided, in Markdown."""
    rows = ledger.table()
    header = ["claim", "paper", "ours", "seeds", "run", "verdict"]
    lines = [
        [
            f"{row.paper}, {row.where}: {row.title}",
            number(row.paper_value, row.unit),
            row.ours_text,
            row.seeds,
            f"{row.profile}, {row.data}, {row.device}",
            row.verdict,
        ]
        for row in rows
        if row.verdict not in ("not tested", "shown")
    ]
    count = f"{len(rows)} claims are written down; these have been decided:"
    return f"{count}\n\n{figures.Table(header, lines)}"


def filled(text: str) -> str:
    """Return the README's text with the table put between its two marks."""
    block = f"<!-- results -->\n{results()}\n<!-- /results -->"
    return re.sub("<!-- results -->.*<!-- /results -->", lambda _: block, text, flags=re.DOTALL)


if __name__ == "__main__":
    records.write_text(README, filled(README.read_text(encoding="utf-8")))
