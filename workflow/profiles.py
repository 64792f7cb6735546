"""Profiles: the parameters of every notebook, checked by name and type before anything runs."""

import difflib
from collections.abc import Mapping
from pathlib import Path

import yaml

from xai_lib import data, ledger, provenance

NOTEBOOKS, WIDGETS = Path("notebooks"), Path("xai_lib") / "widgets"


def read(profile: str, only: str | None = None, seeds: str | None = None) -> dict[str, dict]:
    """Return {notebook: {"minutes", "after", "parameters"}} of a profile.

    Parameters
    ----------
    profile : str
        One of `ledger.PROFILES`.
    only : str, optional
        Keep this notebook and those that it comes after.
    seeds : str, optional
        Seeds in place of the profile's for `only`, for instance ``0,1,2``.

    Raises
    ------
    ValueError
        The profile, a notebook, a parameter's name or its type is wrong; says which.
    """
    if profile not in ledger.PROFILES:
        raise ValueError(f"PROFILE must be one of {', '.join(ledger.PROFILES)}; got {profile!r}")
    path = Path("profiles") / f"{profile}.yml"
    plan = yaml.safe_load(path.read_text(encoding="utf-8"))["notebooks"]
    if only is not None and only not in plan:
        raise ValueError(f"NOTEBOOK must be one of {', '.join(plan)}; got {only!r}{_near(only, plan)}")
    if seeds is not None:
        if only is None:
            raise ValueError(f"SEEDS={seeds} needs NOTEBOOK=...")
        plan[only]["parameters"]["seeds"] = _seeds(seeds)
    checked = {name: _checked(f"{path}: {name}", name, entry, plan) for name, entry in plan.items()}
    if only is None:
        return checked
    wanted, waiting = set(), [only]
    while waiting:
        wanted.add(name := waiting.pop())
        waiting += checked[name]["after"]
    return {name: entry for name, entry in checked.items() if name in wanted}


def state(name: str, entry: Mapping) -> dict:
    """Return what decides whether a notebook must run again: its code, its slice of the profile, its data."""
    sets = [value.removeprefix("auto:") for value in entry["parameters"].values() if isinstance(value, str)]
    files = [data.root() / file for one in sets for file in data.REAL_FILES.get(one, {})]
    notebook = NOTEBOOKS / f"{name}.ipynb"
    code = provenance.code_hashes(notebook, presentation=True)
    if "xai_lib.widgets" in provenance.notebook_code(notebook):  # run records leave them out: they mostly show
        code |= {str(path): provenance.digest(provenance.source_code(path)) for path in sorted(WIDGETS.glob("*.py"))}
    return {
        "code": code,
        "parameters": entry["parameters"],
        "data": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.exists()],
    }


def _checked(where: str, name: str, entry: Mapping, plan: Mapping) -> dict:
    notebook = NOTEBOOKS / f"{name}.ipynb"
    if not notebook.exists():
        raise ValueError(f"{where}: there is no {notebook}")
    unknown = entry.keys() - {"minutes", "after", "parameters"}
    if unknown:
        raise ValueError(f"{where}: unknown field {', '.join(sorted(unknown))}; known: minutes, after, parameters")
    defaults = provenance.notebook_parameters(notebook)
    parameters = entry.get("parameters") or {}
    for key, value in parameters.items():
        if key not in defaults:
            raise ValueError(f"{where}: the notebook has no parameter {key!r}{_near(key, defaults)}")
        if not _same_type(value, defaults[key]):
            kind = type(defaults[key]).__name__
            raise ValueError(f"{where}: {key} must be of type {kind} as in the notebook; got {value!r}")
    after = entry.get("after") or []
    missing = [one for one in after if one not in plan]
    if missing:
        raise ValueError(
            f"{where}: after names {missing[0]!r}, which the profile does not run{_near(missing[0], plan)}"
        )
    return {"minutes": float(entry.get("minutes", 1)), "after": after, "parameters": parameters}


def _same_type(value: object, default: object) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list) and isinstance(value, list):
        return all(_same_type(one, default[0]) for one in value) if default else True
    return type(value) is type(default)


def _seeds(text: str) -> list[int]:
    try:
        found = [int(one) for one in text.split(",")]
    except ValueError:
        raise ValueError(f"SEEDS must be whole numbers with commas between them; got {text!r}") from None
    if len(set(found)) != len(found) or min(found) < 0:
        raise ValueError(f"SEEDS must be different and 0 or above; got {text!r}")
    return found


def _near(name: str, known: Mapping) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""
