"""Results explorer: the ledger as a table to filter, search and sort, with a dot for each seed of each claim.

On a strip of dots, a line marks the paper's value where the rule compares our number with it, and a dashed line the
threshold where the rule has one. Every number comes from the rows and the records that they were made from.
"""

import math
from collections.abc import Mapping, Sequence

from xai_lib import ledger, records
from xai_lib.verdicts import VERDICTS, by_part, summarize
from xai_lib.widgets import base

LABEL = "results explorer"
SHOWN = ("id", "paper", "where", "title", "unit", "seeds", "data", "profile", "device", "rule", "verdict", "reason")


class Explorer(base.Widget):
    """The claims with what was found, to filter by paper, verdict, notebook and text, and to sort by any column.

    Parameters
    ----------
    rows : sequence of ledger.Row
        As `ledger.table` returns them.
    values : mapping, optional
        {claim id: {seed: number}} or {claim id: {part: {seed: number}}}; default: `values_of` the rows.
    claims : mapping, optional
        As `ledger.read_claims` returns them, the default.

    Raises
    ------
    ValueError
        There is no row, a row is no claim's or stands there twice, its verdict is unknown, or the values are not those
        that the rows were made from.
    """

    _esm = base.source("explorer")
    _css = base.style()

    def __init__(
        self, rows: Sequence[ledger.Row], values: Mapping | None = None, *, claims: Mapping[str, dict] | None = None
    ) -> None:
        super().__init__(packed(rows, values, claims=claims), LABEL)


def packed(
    rows: Sequence[ledger.Row],
    values: Mapping | None = None,
    *,
    claims: Mapping[str, dict] | None = None,
    papers: Mapping[str, str] | None = None,
    links: Mapping[str, Mapping[str, str]] | None = None,
) -> dict:
    """Return what the widget shows, ready for JSON.

    Parameters
    ----------
    rows, values, claims
        As `Explorer` takes them.
    papers : mapping, optional
        {paper: its name}; default: the paper's id.
    links : mapping, optional
        {claim id: {text: address seen from the page}}. With links the widget stands on a page of its own site, whose
        address then keeps the filters.

    Raises
    ------
    ValueError
        See `Explorer`.
    """
    claims = ledger.read_claims() if claims is None else claims
    _check(rows, claims)
    values = values_of(rows) if values is None else values
    spread = {row.id: _spread(row, values.get(row.id, {})) for row in rows}
    if strange := values.keys() - spread.keys():
        raise ValueError(f"values: no row has the id {min(strange)!r}")
    shown = [
        _shown(row, claims[row.id], spread[row.id]) | {"links": dict((links or {}).get(row.id, {}))} for row in rows
    ]
    names = {row.paper: (papers or {}).get(row.paper, row.paper) for row in rows}
    return {"rows": shown, "papers": names, "verdicts": list(VERDICTS), "address": links is not None}


def values_of(rows: Sequence[ledger.Row]) -> dict[str, dict]:
    """Return the values that rows were made from, read from their records: {claim id: {part: {seed: number}}}.

    Raises
    ------
    ValueError
        No record of a row's profile holds its numbers.
    """
    runs = {(row.profile, row.published) for row in rows if row.profile}
    held = {run: list(records.read_records(_folder(*run)).values()) for run in runs}
    found = {}
    for row in rows:
        for record in held.get((row.profile, row.published), []):
            values = record["results"]["values"].get(row.id)
            if values is not None and _means(_defined(values)) == row.ours:
                found[row.id] = _defined(values)
                break
        else:
            if row.profile:
                place = _folder(row.profile, row.published)
                raise ValueError(f"rows: no record in {place} holds the numbers of claim {row.id!r}; pass values")
    return found


def _folder(profile: str, published: bool):
    return records.project() / "results" / profile if published else records.folder(profile) / "runs"


def _check(rows: Sequence[ledger.Row], claims: Mapping[str, dict]) -> None:
    if not rows:
        raise ValueError("rows must hold at least one claim; got none")
    seen = set()
    for row in rows:
        if row.id in seen:
            raise ValueError(f"rows: claim {row.id!r} stands there twice")
        if row.id not in claims:
            raise ValueError(f"rows: claims holds no {row.id!r}")
        if row.verdict not in VERDICTS:
            raise ValueError(f"rows: claim {row.id!r} has the verdict {row.verdict!r}, which is none of {VERDICTS}")
        seen.add(row.id)


def _defined(values: Mapping) -> dict[str, dict]:
    return {part: dict(seeds) for part, seeds in by_part(values).items() if seeds}


def _means(parts: Mapping[str, Mapping]) -> float | dict | None:
    """Return the means as a row holds them: one number, one for each part, or None for a figure."""
    means = {part: summarize(seeds).mean for part, seeds in parts.items()}
    return means[""] if set(means) == {""} else means or None


def _spread(row: ledger.Row, values: Mapping) -> dict[str, dict]:
    """Return {part: {seed: number}} in six digits, after a look whether these are the row's numbers."""
    parts = _defined(values)
    if parts and not all(math.isfinite(x) for seeds in parts.values() for x in seeds.values()):
        raise ValueError(f"values[{row.id!r}] must be finite numbers; got {values!r}")
    means, ours = (one if isinstance(one, Mapping) else {"": one} for one in (_means(parts), row.ours))
    if means.keys() != ours.keys() or not all(_same(means[part], ours[part]) for part in means):
        raise ValueError(f"values[{row.id!r}] average to {_means(parts)}, the row says {row.ours}")
    return {part: {str(seed): float(f"{x:.6g}") for seed, x in seeds.items()} for part, seeds in parts.items()}


def _same(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


def _shown(row: ledger.Row, claim: Mapping, spread: Mapping) -> dict:
    """Return one claim as the widget takes it. Of several parts, the least mean and the greatest deviation sort it."""
    rule = claim["rule"]
    means, deviations = (
        [x for x in (one.values() if isinstance(one, Mapping) else [one]) if x is not None]
        for one in (row.ours, row.sd)
    )
    return {name: getattr(row, name) for name in SHOWN} | {
        "claim": " ".join(claim["claim"].split()),
        "notebook": row.notebook,
        "stale": list(row.stale),
        "kind": rule["kind"],
        "paper_value": row.paper_value,
        "paper_text": "" if row.paper_value is None else f"{row.paper_value:g} {row.unit}".strip().replace("-", "−"),
        "ours": min(means, default=None),
        "ours_text": row.ours_text,
        "sd": max(deviations, default=None),
        "values": spread,
        "line": row.paper_value if rule["kind"] == "level" else None,  # else the paper's is another quantity
        "threshold": {"order": rule.get("margin", 0), "qualitative": rule.get("above")}.get(rule["kind"]),
    }
