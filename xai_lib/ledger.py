"""The ledger: what the papers claim, what our runs found, and the verdict that the rule gives.

``claims.yml`` holds the claims with their rules, written before the runs. A notebook ends with `record`, which keeps
its values per claim and seed. `table` puts both together. On the command line::

    python -m xai_lib.ledger [--json] [--profile quick]     the table of paper and ours
    python -m xai_lib.ledger compare A.json B.json          are two records the same, and if not, how far apart

A verdict is one of `verdicts.VERDICTS`.
"""

import argparse
import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from xai_lib import data, provenance
from xai_lib.records import (
    circumstances,
    compare,
    edited_since_start,
    folder,
    project,
    read_record,
    read_records,
    write_text,
)
from xai_lib.verdicts import KINDS, by_part, combine, judge, summarize

EDITED = "edited during the run"  # stands where the hash of a text would, which is then unknown
PROFILES = ("smoke", "quick", "desk", "paper")  # from the least to the most that a run can decide


def read_claims(path: Path | None = None) -> dict[str, dict]:
    """Read the claims, {id: claim}.

    Raises
    ------
    ValueError
        A row lacks a field, names an unknown kind of rule or profile, or repeats an id.
    """
    path = path or project() / "claims.yml"
    claims: dict[str, dict] = {}
    for row in yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["claims"]:
        one = row.get("id", "without id")
        missing = {"id", "paper", "where", "title", "claim", "value", "unit", "needs", "rule", "notebook"} - row.keys()
        if missing:
            raise ValueError(f"{path.name}: claim {one} lacks {', '.join(sorted(missing))}")
        if one in claims:
            raise ValueError(f"{path.name}: claim {one} stands there twice")
        if row["rule"].get("kind") not in KINDS:
            raise ValueError(f"{path.name}: claim {one}: rule.kind {row['rule'].get('kind')!r} is none of {KINDS}")
        if row["needs"].get("profile") not in PROFILES:
            raise ValueError(f"{path.name}: claim {one}: needs.profile {row['needs'].get('profile')!r} is unknown")
        claims[one] = row
    return claims


def rule_hash(claim: Mapping) -> str:
    """Return a hash of what decides a claim: the paper's value, what it needs and its rule, without its wording."""
    rule = {key: value for key, value in claim["rule"].items() if key != "text"}
    return provenance.digest(json.dumps([claim["value"], claim["unit"], claim["needs"], rule], sort_keys=True))


# ---------------------------------------------------------------------------------------------------------------------
# Records


def record(
    notebook: str,
    *,
    parameters: Mapping,
    sets: Sequence[data.ImageSet],
    values: Mapping[str, Mapping],
    measures: Mapping[str, Mapping],
) -> Path:
    """Keep the results of a run as ``build/<profile>/runs/<notebook>.json``, in one step.

    Parameters
    ----------
    notebook : str
        Name of the notebook without ending.
    parameters : mapping
        ``globals()`` of the notebook, of which the names of its parameters cell are kept. ``profile`` among them is
        one of `PROFILES`, or any other name for a run by hand, which never gives a verdict.
    sets : sequence of ImageSet
        The data that it used.
    values : mapping
        {claim id: {seed: number}}, or {claim id: {part: {seed: number}}} for a rule with parts; {} for a figure.
    measures : mapping
        {name: {seed: number}}, other numbers that the book or a precondition uses.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        A value belongs to no claim, or is no finite number; `parameters` lacks one of the parameters cell.
    """
    source = project() / "notebooks" / f"{notebook}.ipynb"
    names = provenance.notebook_parameters(source).keys() | {"profile"}
    if missing := sorted(names - parameters.keys()):
        raise ValueError(f"parameters must hold those of {source.name} (hand globals() over); got no {missing[0]!r}")
    claims = read_claims()
    for one, value in values.items():
        if one not in claims:
            raise ValueError(f"values: no claim has the id {one!r}")
        _check_shape(f"values[{one!r}]", value, claims[one]["rule"]["kind"] not in ("figure", "none"))
        _check_finite(f"values[{one!r}]", value)
    _check_finite("measures", measures)
    new_rules = edited_since_start(project() / "claims.yml")
    named = {name: parameters[name] for name in names}
    profile = named.pop("profile")
    results = {
        "notebook": notebook,
        "parameters": named,
        "threads": torch.get_num_threads(),
        "data": {one.name: one.checksum for one in sets},
        "values": _with_text_keys(values),
        "measures": _with_text_keys(measures),
        "rules": {one: EDITED if new_rules else rule_hash(claims[one]) for one in values},
        "code": _code_that_ran(source),
    }
    content = {"schema": 1, "profile": profile, "results": results, "circumstances": circumstances()}
    path = folder(profile) / "runs" / f"{notebook}.json"
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")
    return path


def _code_that_ran(notebook: Path) -> dict[str, str]:
    """Return the code hashes of a notebook; a file that was edited while it ran has none."""
    files = {file.name: file for file in [notebook, *provenance.imported_modules(notebook)]}
    hashes = provenance.code_hashes(notebook).items()
    return {name: EDITED if edited_since_start(files[name]) else value for name, value in hashes}


def _check_shape(name: str, value: object, measured: bool) -> None:
    has_parts = isinstance(value, Mapping) and any(isinstance(one, Mapping) for one in value.values())
    parts = value.values() if has_parts else [value]
    for part in parts:
        deep = isinstance(part, Mapping) and any(isinstance(one, Mapping) for one in part.values())
        if not isinstance(part, Mapping) or deep or (measured and not part):
            raise ValueError(f"{name} must be {{seed: number}} or {{part: {{seed: number}}}}; got {value!r}")


def _with_text_keys(value: object) -> object:
    return {str(key): _with_text_keys(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def _check_finite(name: str, value: object) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_finite(f"{name}[{key!r}]", inner)
    elif not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number; got {value!r}")


# ---------------------------------------------------------------------------------------------------------------------
# The table


@dataclass(frozen=True)
class Row:
    """One claim with what was found: a row of the table. Numbers are those of the run of `profile`."""

    id: str
    paper: str
    where: str
    title: str
    paper_value: float | int | None
    unit: str
    ours: float | dict | None
    sd: float | dict | None
    seeds: int
    ours_text: str
    data: str
    profile: str
    device: str
    rule: str
    verdict: str
    reason: str
    stale: list[str]
    notebook: str
    published: bool


def table(runs: Sequence[tuple[Path, bool]] | None = None, *, claims: Mapping[str, dict] | None = None) -> list[Row]:
    """Return a row per claim, in the order of ``claims.yml``.

    Parameters
    ----------
    runs : sequence of (folder, published), optional
        Folders of records; default: all of ``results/`` (published).
    claims : mapping, optional
        As `read_claims` returns them.

    Notes
    -----
    Of several records that hold a claim, one that can decide it comes first, then the one of the highest profile;
    never the one with the better number.
    """
    claims = read_claims() if claims is None else claims
    runs = published_runs() if runs is None else runs
    records = [(one, public) for where, public in runs for one in read_records(where).values()]
    code = functools.cache(provenance.code_hashes)  # of each notebook once, not for each of its claims
    return [_row(claim, records, code) for claim in claims.values()]


def published_runs() -> list[tuple[Path, bool]]:
    """Return the folders of the published records, ``results/<profile>``."""
    return [(project() / "results" / profile, True) for profile in PROFILES]


def own_runs(profile: str) -> list[tuple[Path, bool]]:
    """Return the folder of this machine's own records of a profile."""
    return [(folder(profile) / "runs", False)]


def _row(claim: Mapping, records: Sequence[tuple[dict, bool]], code: Callable[[Path], Mapping[str, str]]) -> Row:
    holding = [(one, public) for one, public in records if claim["id"] in one["results"]["values"]]

    def rank(pair):
        profile = pair[0]["profile"]
        return not unmet_needs(claim, pair[0]), PROFILES.index(profile) if profile in PROFILES else -1

    best, public = max(holding, key=rank, default=(None, False))
    about = {
        "id": claim["id"],
        "paper": claim["paper"],
        "where": claim["where"],
        "title": claim["title"],
        "paper_value": claim["value"],
        "unit": claim["unit"],
        "rule": " ".join(claim["rule"]["text"].split()),
        "notebook": claim["notebook"],
        "published": public,
    }
    if best is None:
        nothing = {"ours": None, "sd": None, "seeds": 0, "ours_text": "", "data": "", "profile": "", "device": ""}
        reason = claim.get("reason", "not yet run")
        return Row(**about, **nothing, verdict="not tested", reason=reason, stale=[])
    values = best["results"]["values"][claim["id"]]
    verdict, reason = verdict_of(claim, best)
    return Row(
        **about,
        **_numbers(values, claim["unit"], signed=claim["rule"]["kind"] == "order" or claim["unit"] == "points"),
        data=", ".join(sorted({name.split("/")[0] for name in best["results"]["data"]})),
        profile=best["profile"],
        device=best["circumstances"]["device"],
        verdict=verdict,
        reason=reason,
        stale=stale_parts(claim, best, code),
    )


def _numbers(values: Mapping, unit: str, signed: bool) -> dict:
    parts = {name: summarize(part) for name, part in by_part(values).items() if part}
    if not parts:
        return {"ours": None, "sd": None, "seeds": 0, "ours_text": "drawn"}
    text = "; ".join(f"{name + ': ' if name else ''}{one.text(unit, signed)}" for name, one in parts.items())
    seeds = min(one.n for one in parts.values())
    mean = {name: one.mean for name, one in parts.items()}
    sd = {name: one.sd for name, one in parts.items()}
    if set(parts) == {""}:
        return {"ours": mean[""], "sd": sd[""], "seeds": seeds, "ours_text": text}
    return {"ours": mean, "sd": sd, "seeds": seeds, "ours_text": text}


def unmet_needs(claim: Mapping, run: Mapping) -> str:
    """Return why a run cannot decide a claim, empty where it can."""
    needs, results, profile = claim["needs"], run["results"], run["profile"]
    sets = {name.split("/")[0] for name in results["data"]}
    if needs["data"] and not sets <= set(needs["data"]):
        return f"stand-in: {', '.join(sorted(sets))} for {' or '.join(needs['data'])}"
    if profile not in PROFILES:
        return f"run by hand, profile {profile}"
    if PROFILES.index(profile) < PROFILES.index(needs["profile"]):
        return f"budget: profile {profile}, needs {needs['profile']}"
    for need in needs.get("preconditions") or []:
        values = results["measures"].get(need["measure"])
        if not values:
            return f"{need.get('reason', 'precondition')}: {need['measure']} was not measured"
        mean = summarize(values).mean
        if mean < need.get("at_least", -math.inf) or mean > need.get("at_most", math.inf):
            return f"{need.get('reason', 'precondition')}: {need['measure']} is {mean:.4g}"
    return ""


def verdict_of(claim: Mapping, run: Mapping) -> tuple[str, str]:
    """Return the verdict of one claim by one run, and the reason where there is none."""
    unmet = unmet_needs(claim, run)
    if unmet:
        return "not tested", unmet
    if claim["rule"]["kind"] == "none":
        return "not tested", claim["reason"]
    if claim["rule"]["kind"] == "figure":
        return "shown", ""
    parts = by_part(run["results"]["values"][claim["id"]])
    named = claim["rule"].get("parts") or [""]
    missing = [part for part in named if part not in parts]
    if missing:
        return "not tested", f"the run holds no value for {', '.join(missing)}"
    subset = "on a subset" if any("[" in name for name in run["results"]["data"]) else ""
    summaries = [summarize(parts[part]) for part in named]
    few = "one seed: no interval" if min(one.n for one in summaries) == 1 else ""
    return combine([judge(claim, one) for one in summaries]), "; ".join(one for one in (few, subset) if one)


def stale_parts(
    claim: Mapping, run: Mapping, code: Callable[[Path], Mapping[str, str]] = provenance.code_hashes
) -> list[str]:
    """Return what has changed since a run: names of files of its code, and ``rule``; empty where nothing has.

    `code` gives the hashes of a notebook's code as they are now.
    """
    source = project() / "notebooks" / f"{run['results']['notebook']}.ipynb"
    now = code(source) if source.exists() else {}
    then = run["results"]["code"]
    changed = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    rule = run["results"]["rules"].get(claim["id"])
    return changed + (["rule"] if rule != rule_hash(claim) else [])


def _print_table(rows: Sequence[Row]) -> None:
    from textwrap import shorten

    for paper in dict.fromkeys(row.paper for row in rows):
        mine = [row for row in rows if row.paper == paper]
        tested = [row for row in mine if row.profile]
        print(f"\n{paper}: {len(mine)} claims, {len(mine) - len(tested)} not yet run")
        for row in tested:
            value = "" if row.paper_value is None else f"{row.paper_value:g} {row.unit}".strip()
            verdict = row.verdict + (f" ({row.reason})" if row.reason else "") + (", stale" if row.stale else "")
            print(f"  {shorten(row.title, 58, placeholder=' ...'):58}  paper {value or '-':>12}  ours {row.ours_text}")
            print(f"  {'':58}  {verdict}; {row.profile} run, {row.data}, n = {row.seeds}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m xai_lib.ledger", description="Paper and ours.")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--profile", choices=PROFILES, help="this machine's own runs of a profile")
    commands = parser.add_subparsers(dest="command")
    pair = commands.add_parser("compare", help="compare two run records")
    pair.add_argument("records", nargs=2, type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "compare":
            same, lines = compare(*(read_record(path) for path in options.records))
            print("\n".join(lines))
            return 0 if same else 1
        rows = table(own_runs(options.profile) if options.profile else None)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        _print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
