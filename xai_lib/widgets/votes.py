"""Names of x-features and votes whether to trust them, as the explorer exports them: read, check, combine.

A file is one voter's: ``{"format": "x-feature votes", "version": 1, "module": ..., "voter": ..., "features": [...]}``
with ``{"category", "feature", "name", "vote"}`` for each x-feature: `feature` counts from 1, `vote` is ``trust``,
``distrust`` or null. `module` tells which x-features it is about. What does not fit is refused, here as in
``xfeatures.js``::

    for row in votes.combine(votes.read(path) for path in sorted(folder.glob("*.json"))):
        print(row.category, row.feature, row.names, row.voters, row.agreement)
"""

import json
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FORMAT, VERSION = "x-feature votes", 1
CHOICES = ("trust", "distrust")
BYTES, LETTERS = 1_000_000, 60
TURNING = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # turn the direction of a text


@dataclass(frozen=True)
class Row:
    """What all voters say of one x-feature.

    Attributes
    ----------
    category : str
    feature : int, from 1
    trust, distrust : int, numbers of voters
    names : tuple of str, in the order of the files
    """

    category: str
    feature: int
    trust: int
    distrust: int
    names: tuple[str, ...]

    @property
    def voters(self) -> int:
        """Return how many voted; a name alone is no vote."""
        return self.trust + self.distrust

    @property
    def agreement(self) -> float:
        """Return the share of the voters who vote as most do, 0.5 to 1; NaN without a vote."""
        return max(self.trust, self.distrust) / self.voters if self.voters else float("nan")


def read(path: str | os.PathLike) -> dict:
    """Return one voter's file, checked.

    Raises
    ------
    ValueError
        It is too large, no JSON, or does not fit (see `check`); says which file.
    """
    path = Path(path)
    if path.stat().st_size > BYTES:
        raise ValueError(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB is more than {BYTES / 1e6:g} MB")
    try:
        given = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ValueError(f"{path.name}: it is no JSON") from None
    try:
        return check(given)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def check(given: object) -> dict:
    """Return one voter's votes as a new dict of known fields.

    Raises
    ------
    ValueError
        A field is missing, unknown or of another type, a text too long or with control characters, an x-feature comes
        twice.
    """
    if not isinstance(given, dict) or given.get("format") != FORMAT:
        raise ValueError(f"it is no file of {FORMAT}")
    if type(given.get("version")) is not int or given["version"] != VERSION:
        raise ValueError(f"version is {_short(given.get('version'))}, this library reads {VERSION}")
    _fields(given, "the file", ("format", "version", "module", "voter", "features"))
    _text(given["module"], "module")
    if not _text(given["voter"], "voter").strip():
        raise ValueError("voter is empty")
    if not isinstance(given["features"], list):
        raise ValueError(f"features is no list: {_short(given['features'])}")
    found = [_feature(one, f"features[{at}]") for at, one in enumerate(given["features"])]
    seen = set()
    for at, one in enumerate(found):
        key = one["category"], one["feature"]
        if key in seen:
            raise ValueError(f"features[{at}]: x-feature {key[1]} of {_short(key[0])} comes twice")
        seen.add(key)
    return {**{name: given[name] for name in ("format", "version", "module", "voter")}, "features": found}


def combine(files: Iterable[dict]) -> list[Row]:
    """Return what all voters say of each x-feature that any of them named or voted on, in order.

    Parameters
    ----------
    files : iterable of dict
        One of each voter, from `read`.

    Raises
    ------
    ValueError
        They are about different x-features, or a voter comes twice: which of two files counts is for people to say.
    """
    files = [check(one) for one in files]
    for at, one in enumerate(files):
        if one["module"] != files[0]["module"]:
            raise ValueError(f"files are about different x-features: {files[0]['module']} and {one['module']}")
        if any(_alike(one["voter"]) == _alike(other["voter"]) for other in files[:at]):
            raise ValueError(f"votes of {_short(one['voter'])} come twice")
    said: dict[tuple[str, int], list[dict]] = {}
    for one in (one for file in files for one in file["features"]):
        said.setdefault((one["category"], one["feature"]), []).append(one)
    return [
        Row(*key, *(sum(one["vote"] == vote for one in ones) for vote in CHOICES), _named(ones))
        for key, ones in sorted(said.items())
    ]


def _named(ones: list[dict]) -> tuple[str, ...]:
    return tuple(one["name"] for one in ones if one["name"])


def _feature(given: object, what: str) -> dict:
    _fields(given, what, ("category", "feature", "name", "vote"))
    if type(given["feature"]) is not int or given["feature"] < 1:
        raise ValueError(f"{what}: there is no x-feature {_short(given['feature'])}")
    if given["vote"] is not None and given["vote"] not in CHOICES:
        raise ValueError(f"{what}: vote is {_short(given['vote'])}, not trust, distrust or null")
    _text(given["category"], f"{what}: category", most=BYTES)
    return {**given, "name": _text(given["name"], f"{what}: name")}


def _fields(given: object, what: str, names: tuple[str, ...]) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{what} is no object: {_short(given)}")
    if unknown := [name for name in given if name not in names]:
        raise ValueError(f"{what} has an unknown field {_short(unknown[0])}")
    if missing := [name for name in names if name not in given]:
        raise ValueError(f'{what} has no field "{missing[0]}"')


def _text(value: object, what: str, most: int = LETTERS) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is no text: {_short(value)}")
    if len(value) > most:
        raise ValueError(f"{what} is longer than {most} letters: {_short(value)}")
    if any(unicodedata.category(one) in ("Cc", "Cs") or one in TURNING for one in value):
        raise ValueError(f"{what} holds control characters: {_short(value)}")
    return value


def _short(value: object) -> str:
    """Return a value as JSON, 40 letters of it, and nothing in it that could break a line."""
    return json.dumps(value)[:40]


def _alike(text: str) -> str:
    """Return what "Ada" and "ada " have in common."""
    return unicodedata.normalize("NFC", text).strip().lower()


def _refuse(name: str) -> None:
    raise ValueError(name)
