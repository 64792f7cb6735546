"""What the book says of claims: badges and tables in the prose, a page for each paper, what the explorer shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from workflow import downloads, widgets
from xai_lib import figures, ledger
from xai_lib.widgets import explorer

PAPERS = {
    "xcnn": ("XCNN", "{cite:t}`tavanaei2020`"),
    "srae": ("Explanation module", "{cite:t}`qi2017`"),
    "cvae": ("Concept VAE", "{cite:t}`vengalil2021`"),
}
BADGES = {
    "reproduced": "success",
    "partly": "warning",
    "not reproduced": "danger",
    "inconclusive": "muted",
    "shown": "info",
    "not tested": "light",
}


def badge(verdict: str) -> str:
    """Return a verdict as a coloured badge in MyST."""
    return f"{{bdg-{BADGES[verdict]}}}`{verdict}`"


def number(value: float | None, unit: str) -> str:
    """Return a number of the paper with its unit, a dash where the paper prints none."""
    return "–" if value is None else f"{value:g} {unit}".strip().replace("-", "−")


def side_by_side(rows: Sequence[ledger.Row], own: Sequence[ledger.Row]) -> str:
    """Return a table of claims: paper, published run, verdict, and this machine's own run where there is one."""
    mine = {row.id: row for row in own if row.profile}
    header = ["claim", "paper", "ours", "n", "verdict"] + (["your run"] if mine else [])
    lines = []
    for row in rows:
        verdict = badge(row.verdict) + (f" {row.reason}" if row.reason else "")
        line = [claim_link(row), number(row.paper_value, row.unit), row.ours_text, row.seeds or "", verdict]
        lines.append(line + ([_own_cell(mine.get(row.id))] if mine else []))
    return str(figures.Table(header, lines))


def _own_cell(row: ledger.Row | None) -> str:
    return "" if row is None else f"{row.ours_text} ({row.data})"


def claim_link(row: ledger.Row) -> str:
    """Return a link to a claim's entry in the results."""
    return f"[{row.title}](#{row.id})"


def counts(rows: Sequence[ledger.Row]) -> dict[str, str]:
    """Return how many claims there are, and how many of each verdict."""
    return {"all": str(len(rows))} | {
        verdict.replace(" ", "_"): str(sum(row.verdict == verdict for row in rows)) for verdict in BADGES
    }


def write_pages(
    folder: Path, rows: Sequence[ledger.Row], claims: Mapping[str, dict], published: Mapping[str, Path]
) -> None:
    """Write a page for each paper with every claim: verdict, numbers, rule, links to the run and its record."""
    for paper, (name, cite) in PAPERS.items():
        mine = [row for row in rows if row.paper == paper]
        decided = [row for row in mine if row.profile]
        lines = [f"# {name}: all claims", "", f"{len(mine)} claims of {cite}; {len(decided)} have a published run.", ""]
        lines += [block for row in mine for block in _claim_block(row, claims[row.id], published)]
        (folder / f"{paper}.md").write_text("\n".join(lines), encoding="utf-8")


def write_explorer(
    file: Path, rows: Sequence[ledger.Row], claims: Mapping[str, dict], published: Mapping[str, Path]
) -> None:
    """Write what the explorer on ``results/index`` shows."""
    names = {paper: name for paper, (name, _) in PAPERS.items()}
    links = {row.id: _claim_links(row, published) for row in rows}
    data = explorer.packed(rows, claims=claims, papers=names, links=links)
    value = {"state": {"data": data, "kept": {}, "label": explorer.LABEL}}
    file.write_text(widgets.script("results", value), encoding="utf-8")


def _claim_links(row: ledger.Row, published: Mapping[str, Path]) -> dict[str, str]:
    """Return {text: address seen from ``results/``} of what there is to a claim."""
    links = {"this claim's entry": f"{row.paper}.html#{row.id}"}
    if row.profile and row.notebook in published:
        links["figures and code"] = f"../runs/published/{row.notebook}/{row.notebook}.html"
        links["run record (JSON)"] = f"../{downloads.FOLDER}/{row.notebook}/{row.notebook}.json"
    return links


def _claim_block(row: ledger.Row, claim: Mapping, published: Mapping[str, Path]) -> list[str]:
    needs = " or ".join(claim["needs"]["data"]) or "no data"
    number_of = f", n = {row.seeds}" if row.seeds else ""  # seeds, or species; a figure has none
    facts = [
        f"- Paper: {row.where}" + ("" if row.paper_value is None else f", {number(row.paper_value, row.unit)}"),
        *([f"- Ours: {row.ours_text}{number_of}, {row.profile} run, {row.data}"] if row.profile else []),
        f"- Verdict: {row.verdict}" + (f" ({row.reason})" if row.reason else ""),
        f"- Rule ({claim['rule']['kind']}): {row.rule}",
        f"- Needs: {needs}, profile {claim['needs']['profile']} or above",
    ]
    if row.profile and row.notebook in published:
        base = f"/runs/published/{row.notebook}/{row.notebook}"
        facts.append(f"- Run: [figures and code]({base}.ipynb), {{download}}`record <{base}.json>`")
    if row.stale:
        facts.append(f"- Stale: since this run, {', '.join(row.stale)} changed")
    colour = BADGES[row.verdict]
    return [
        f":::{{dropdown}} {row.title} {badge(row.verdict)}",
        f":color: {colour}",
        "",
        f"({row.id})=",  # inside, so that a browser which follows a link to it opens the entry
        " ".join(claim["claim"].split()),
        "",
        *facts,
        ":::",
        "",
    ]
