import copy
import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from xai_lib import data, ledger, provenance, records, verdicts

ROOT = Path(__file__).resolve().parent.parent

# ---------------------------------------------------------------------------------------------------------------------
# A project of a few claims


def claim(one, kind, value=None, *, needs=None, **rule):
    return {
        "id": one,
        "paper": "toy",
        "where": "table 1",
        "title": f"Title of {one}",
        "claim": "What the paper says.",
        "value": value,
        "unit": "points",
        "needs": {"data": ["mnist"], "profile": "desk", **(needs or {})},
        "rule": {"kind": kind, "text": "Which number\n  is recorded.", **rule},
        "notebook": "toy",
        "reason": "not yet run",
    }


STRONG = {"preconditions": [{"measure": "plain_accuracy", "at_least": 99.0, "reason": "network too weak"}]}
CLAIMS = [
    claim("toy-level", "level", 0.5, tolerance=0.25),
    claim("toy-order", "order"),
    claim("toy-parts", "order", parts=["a", "b"]),
    claim("toy-seen", "qualitative", above=0.9),
    claim("toy-strong", "order", needs=STRONG),
    claim("toy-figure", "figure"),
    claim("toy-none", "none") | {"reason": "holds by construction"},
]
NOTEBOOK = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {},
    "cells": [
        {
            "cell_type": "code",
            "metadata": {"tags": ["parameters"]},
            "source": 'profile = "lab"\nepochs = 3\nseeds = [0, 1, 2]\nrate = 0.1\n',
            "outputs": [],
            "execution_count": None,
        },
        {
            "cell_type": "code",
            "metadata": {},
            "source": "from xai_lib import figures, ledger, losses\n",
            "outputs": [],
            "execution_count": None,
        },
    ],
}
PARAMETERS = {"profile": "desk", "epochs": 4, "seeds": [0, 1], "rate": 0.1, "torch": torch, "other": object()}


@pytest.fixture
def top(tmp_path, monkeypatch):
    """A small project, with a package of its own to hash, that is the working directory."""
    monkeypatch.setattr(
        ledger, "edited_since_start", lambda path: False
    )  # the project is written after this process began
    folder = tmp_path / "project"
    (folder / "notebooks").mkdir(parents=True)
    write_claims(folder, CLAIMS)
    (folder / "notebooks" / "toy.ipynb").write_text(json.dumps(NOTEBOOK))
    package = folder / "xai_lib"
    package.mkdir()
    for name, code in [
        ("losses", "from xai_lib import metrics\n\n\ndef loss(x):\n    return x\n"),
        ("metrics", "def metric(x):\n    return x\n"),
        ("figures", "def draw(x):\n    return x\n"),
        ("ledger", "from xai_lib import records\n"),
        ("records", "def read():\n    pass\n"),
        ("unused", "def nothing():\n    pass\n"),
    ]:
        (package / f"{name}.py").write_text(code)
    monkeypatch.setattr(provenance, "PACKAGE", package)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    return folder


def write_claims(folder, rows):
    (folder / "claims.yml").write_text(yaml.safe_dump({"claims": rows}, sort_keys=False))


def images(name="mnist/test"):
    return data.ImageSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"), name)


def three(low, middle, high):
    return {0: low, 1: middle, 2: high}


VALUES = {
    "toy-level": three(0.45, 0.5, 0.55),
    "toy-order": three(1.0, 2.0, 1.5),
    "toy-parts": {"a": three(1.0, 2.0, 1.5), "b": three(-1.0, -2.0, -1.5)},
    "toy-seen": three(0.95, 0.96, 0.97),
    "toy-strong": three(1.0, 2.0, 1.5),
    "toy-figure": {},
}
MEASURES = {"plain_accuracy": three(99.1, 99.2, 99.3)}


def keep(values=VALUES, measures=MEASURES, sets=None, **parameters):
    """Record a run of the toy notebook."""
    return ledger.record(
        "toy",
        parameters={**PARAMETERS, **parameters},
        sets=[images("mnist/train"), images()] if sets is None else sets,
        values=values,
        measures=measures,
    )


def verdicts_of(rows):
    return {row.id: (row.verdict, row.reason) for row in rows}


def row(one, runs=None):
    rows = ledger.table(ledger.own_runs("desk") if runs is None else runs)
    return next(row for row in rows if row.id == one)


# ---------------------------------------------------------------------------------------------------------------------
# Claims


def test_claims_keep_their_order_and_content(top):
    assert list(ledger.read_claims().values()) == CLAIMS
    assert list(ledger.read_claims(top / "claims.yml")) == [one["id"] for one in CLAIMS]


@pytest.mark.parametrize("field", ["paper", "where", "title", "claim", "value", "unit", "needs", "rule", "notebook"])
def test_a_claim_that_lacks_a_field_is_named(top, field):
    broken = copy.deepcopy(CLAIMS)
    del broken[2][field]
    write_claims(top, broken)
    with pytest.raises(ValueError, match=f"claims.yml: claim toy-parts lacks {field}"):
        ledger.read_claims()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "toy-order"}, "claim toy-order stands there twice"),
        ({"rule": {"kind": "guess", "text": ""}}, r"claim toy-level: rule.kind 'guess' is none of"),
        ({"rule": {"text": ""}}, "claim toy-level: rule.kind None"),
        ({"needs": {"data": [], "profile": "fast"}}, "claim toy-level: needs.profile 'fast' is unknown"),
        ({"needs": {"data": []}}, "claim toy-level: needs.profile None is unknown"),
    ],
)
def test_a_wrong_claim_is_named(top, change, message):
    write_claims(top, [{**CLAIMS[0], **change}, *CLAIMS[1:]])
    with pytest.raises(ValueError, match=message):
        ledger.read_claims()


def test_a_claim_without_id_is_said(top):
    write_claims(top, [{key: value for key, value in CLAIMS[0].items() if key != "id"}])
    with pytest.raises(ValueError, match="claim without id lacks id"):
        ledger.read_claims()


def test_rule_hash_sees_what_decides_and_not_the_wording():
    base = claim("toy", "level", 0.5, tolerance=0.25, needs=STRONG)
    weaker = {"preconditions": [{**STRONG["preconditions"][0], "at_least": 98.0}]}
    told_otherwise = copy.deepcopy(base) | {
        "claim": "Other words.",
        "title": "Other",
        "where": "abstract",
        "id": "other",
    }
    told_otherwise["rule"]["text"] = "Other words."
    assert ledger.rule_hash(told_otherwise) == ledger.rule_hash(base)
    decided_otherwise = [
        claim("toy", "level", 0.6, tolerance=0.25, needs=STRONG),
        claim("toy", "level", None, tolerance=0.25, needs=STRONG),
        claim("toy", "level", 0.5, tolerance=0.26, needs=STRONG),
        claim("toy", "level", 0.5, needs=STRONG),
        claim("toy", "order", 0.5, needs=STRONG),
        claim("toy", "level", 0.5, tolerance=0.25, needs=STRONG, parts=["a"]),
        claim("toy", "level", 0.5, tolerance=0.25, needs=weaker),
        claim("toy", "level", 0.5, tolerance=0.25),
        claim("toy", "level", 0.5, tolerance=0.25, needs={**STRONG, "data": ["mnist", "digits"]}),
        claim("toy", "level", 0.5, tolerance=0.25, needs={**STRONG, "profile": "paper"}),
    ]
    hashes = {ledger.rule_hash(one) for one in [base, *decided_otherwise]}
    assert len(hashes) == 1 + len(decided_otherwise)


# ---------------------------------------------------------------------------------------------------------------------
# Records


def test_record_holds_what_the_contract_names(top):
    path = keep()
    assert path == top / "build" / "desk" / "runs" / "toy.json"
    content = json.loads(path.read_text())
    assert content.keys() == {"schema", "profile", "results", "circumstances"}
    assert (content["schema"], content["profile"]) == (1, "desk")
    results = content["results"]
    assert results["notebook"] == "toy"
    assert results["parameters"] == {"epochs": 4, "seeds": [0, 1], "rate": 0.1}, "of the parameters cell, no more"
    assert results["threads"] == torch.get_num_threads()
    assert results["data"] == {"mnist/train": images("mnist/train").checksum, "mnist/test": images().checksum}
    assert results["values"]["toy-level"] == {"0": 0.45, "1": 0.5, "2": 0.55}
    assert results["values"]["toy-parts"]["b"] == {"0": -1.0, "1": -2.0, "2": -1.5}
    assert results["values"]["toy-figure"] == {}
    assert results["measures"] == {"plain_accuracy": {"0": 99.1, "1": 99.2, "2": 99.3}}
    assert results["rules"] == {one["id"]: ledger.rule_hash(one) for one in CLAIMS if one["id"] in VALUES}
    assert results["code"].keys() == {"toy.ipynb", "losses.py", "metrics.py"}, "no presentation, nothing unused"
    assert content["circumstances"].keys() == records.circumstances().keys()
    assert os.listdir(path.parent) == ["toy.json"]


def test_numbers_come_back_bit_for_bit(top):
    numbers = {0: 0.1 + 0.2, 1: 1 / 3, 2: -5e-324, 3: 1.7e308, 4: 7}
    kept = records.read_record(keep({"toy-order": numbers}))["results"]["values"]["toy-order"]
    assert kept == {str(seed): value for seed, value in numbers.items()}


def test_two_runs_have_the_same_results_under_other_circumstances(top, monkeypatch):
    def block(path, name):
        """The text of a block as it stands in the file."""
        return json.dumps(json.loads(path.read_text())[name])

    path = keep()
    first = block(path, "results"), block(path, "circumstances")
    monkeypatch.setattr(records, "_STARTED", records._STARTED - 1000)
    backwards = {one: VALUES[one] for one in reversed(VALUES)}
    path = keep(backwards, sets=[images(), images("mnist/train")])
    assert block(path, "results") == first[0]
    assert block(path, "circumstances") != first[1]
    again = records.read_record(path)
    assert records.compare(again, json.loads(path.read_text()))[0]


BAD = [float("nan"), float("inf"), -float("inf"), None, "0.5"]


@pytest.mark.parametrize("bad", BAD)
def test_record_refuses_what_is_no_finite_number_and_says_where(top, bad):
    path = keep()
    before = path.read_bytes()
    for values, name in [
        ({"toy-order": {0: 1.0, 3: bad}}, "values['toy-order'][3]"),
        ({"toy-parts": {"a": {0: 1.0}, "b": {0: bad}}}, "values['toy-parts']['b'][0]"),
    ]:
        with pytest.raises(ValueError, match=re.escape(f"{name} must be a finite number; got {bad!r}")):
            keep(values)
    with pytest.raises(ValueError, match=re.escape(f"measures['m'][2] must be a finite number; got {bad!r}")):
        keep(measures={"m": {2: bad}})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["toy.json"]


def test_record_refuses_an_unknown_claim(top):
    with pytest.raises(ValueError, match="values: no claim has the id 'toy-ordre'"):
        keep({**VALUES, "toy-ordre": {0: 1.0}})
    assert not (top / "build").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"toy-order": {}},  # nothing measured
        {"toy-parts": {"a": {0: 1.0}, "b": {}}},
        {"toy-order": 0.5},  # no seed
        {"toy-parts": {"a": {0: 1.0}, "b": 0.5}},
        {"toy-order": {"a": {"x": {0: 1.0}}}},  # a level too many
    ],
)
def test_values_that_the_table_cannot_read_are_refused_or_say_so(top, plain, values):
    """One bad record must not take the whole table away."""
    [one] = values
    said = ""
    try:
        plain("ledger").record("toy", parameters=PARAMETERS, sets=[images()], values=values, measures={})
    except ValueError as error:
        said = str(error)
    if said:
        assert one in said
    else:
        verdict, reason = verdicts_of(ledger.table(ledger.own_runs("desk")))[one]
        assert verdict == "not tested"
        assert reason


@pytest.mark.parametrize("lost", ["profile", "seeds"])
def test_a_record_without_a_parameter_of_the_notebook_is_refused(top, lost):
    """Such a record could not be compared with another, nor run again."""
    parameters = {name: value for name, value in PARAMETERS.items() if name != lost}
    with pytest.raises(ValueError, match=f"parameters .*toy.ipynb.*'{lost}'"):
        ledger.record("toy", parameters=parameters, sets=[images()], values=VALUES, measures=MEASURES)


def test_a_failing_write_leaves_the_old_record_whole(top):
    path = keep()
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            keep(epochs=5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["toy.json"]
    keep(epochs=5)
    assert records.read_record(path)["results"]["parameters"]["epochs"] == 5


# ---------------------------------------------------------------------------------------------------------------------
# Verdicts of runs


def test_verdict_of_each_kind(top):
    keep()
    assert verdicts_of(ledger.table(ledger.own_runs("desk"))) == {
        "toy-level": ("reproduced", ""),
        "toy-order": ("reproduced", ""),
        "toy-parts": ("partly", ""),
        "toy-seen": ("reproduced", ""),
        "toy-strong": ("reproduced", ""),
        "toy-figure": ("shown", ""),
        "toy-none": ("not tested", "holds by construction"),
    }


def test_nothing_run_says_why(top):
    assert verdicts_of(ledger.table()) == {
        one["id"]: ("not tested", "holds by construction" if one["id"] == "toy-none" else "not yet run")
        for one in CLAIMS
    }
    bare = [{key: value for key, value in one.items() if key != "reason"} for one in CLAIMS]
    write_claims(top, bare)
    assert row("toy-order").reason == "not yet run"


def test_a_claim_that_no_run_decides_stays_so_beside_numbers(top):
    keep({"toy-none": three(1.0, 2.0, 3.0)})
    found = row("toy-none")
    assert (found.verdict, found.reason, found.ours) == ("not tested", "holds by construction", 2.0)


def test_numbers_of_a_row(top):
    keep()
    found = row("toy-order")
    assert (found.ours, found.sd, found.seeds) == (1.5, 0.5, 3)
    assert found.ours_text == "+1.50 ± 0.50 points"
    assert found.rule == "Which number is recorded."
    assert (found.profile, found.data, found.published) == ("desk", "mnist", False)
    assert found.device == records.circumstances()["device"]
    parts = row("toy-parts")
    assert (parts.ours, parts.sd, parts.seeds) == ({"a": 1.5, "b": -1.5}, {"a": 0.5, "b": 0.5}, 3)
    assert parts.ours_text == "a: +1.50 ± 0.50 points; b: −1.50 ± 0.50 points"
    figure = row("toy-figure")
    assert (figure.ours, figure.sd, figure.seeds, figure.ours_text) == (None, None, 0, "drawn")


def test_all_parts_must_be_there(top):
    keep({"toy-parts": {"a": three(1.0, 2.0, 1.5), "c": three(1.0, 2.0, 1.5)}})
    found = row("toy-parts")
    assert (found.verdict, found.reason) == ("not tested", "the run holds no value for b")
    keep({"toy-parts": three(1.0, 2.0, 1.5)})
    assert row("toy-parts").reason == "the run holds no value for a, b"


def test_parts_that_no_rule_names_do_not_count(top):
    good = three(1.0, 2.0, 1.5)
    keep({"toy-parts": {"a": good, "b": good, "c": three(-1.0, -2.0, -1.5)}})
    assert row("toy-parts").verdict == "reproduced"


def test_whole_numbers_are_numbers(top):
    """Counts come as int, from notebooks and from claims.yml."""
    write_claims(top, [claim("toy-level", "level", 7, tolerance=1)])
    keep({"toy-level": {0: 7, 1: 7, 2: 7}})
    assert (row("toy-level").verdict, row("toy-level").ours) == ("reproduced", 7)


def test_one_seed_is_inconclusive_and_says_so(top):
    keep({"toy-order": {0: 100.0}, "toy-level": {0: 0.5}, "toy-seen": {0: 1.0}})
    for one in ("toy-order", "toy-level", "toy-seen"):
        found = row(one)
        assert (found.verdict, found.reason, found.seeds, found.sd) == (
            "inconclusive",
            "one seed: no interval",
            1,
            None,
        )


# what a run needs


def test_other_data_is_a_stand_in(top):
    keep(sets=[images("digits/train[600]"), images("digits/test")])
    found = row("toy-order")
    assert (found.verdict, found.reason) == ("not tested", "stand-in: digits for mnist")
    assert (found.ours, found.data) == (1.5, "digits"), "the number stands beside it"
    figure = row("toy-figure")
    assert (figure.verdict, figure.reason) == ("not tested", "stand-in: digits for mnist")


def test_any_of_the_sets_that_a_claim_names_will_do(top):
    write_claims(top, [claim("toy-order", "order", needs={"data": ["birds", "cub"]})])
    keep({"toy-order": three(1.0, 2.0, 1.5)}, sets=[images("cub/test")])
    assert row("toy-order").verdict == "reproduced"
    keep({"toy-order": three(1.0, 2.0, 1.5)}, sets=[images("scenes/test")])
    assert row("toy-order").reason == "stand-in: scenes for birds or cub"


def test_a_claim_that_needs_no_data_takes_any(top):
    write_claims(top, [claim("toy-figure", "figure", needs={"data": []})])
    keep({"toy-figure": {}}, sets=[])
    assert row("toy-figure").verdict == "shown"


def test_a_folder_of_ones_own_called_mnist_is_not_mnist(top, own_data):
    for split in data.SPLITS:
        for k in (0, 1):
            folder = top / "mine" / "mnist" / split / f"class {k}"
            folder.mkdir(parents=True)
            Image.fromarray(np.full((8, 8), 40 * k, np.uint8)).save(folder / "one.png")
    mine = [data.load(str(top / "mine" / "mnist"), split, size=8, channels=1) for split in data.SPLITS]
    keep(sets=mine)
    found = row("toy-order")
    assert found.verdict == "not tested"
    assert "stand-in" in found.reason


@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_a_lower_profile_is_a_matter_of_budget(top, profile):
    keep(profile=profile)
    found = row("toy-order", ledger.own_runs(profile))
    assert (found.verdict, found.reason) == ("not tested", f"budget: profile {profile}, needs desk")
    assert (found.ours, found.profile) == (1.5, profile)


def test_a_higher_profile_may_decide(top):
    keep(profile="paper")
    assert row("toy-order", ledger.own_runs("paper")).verdict == "reproduced"


def test_a_run_by_hand_decides_nothing(top):
    keep(profile="lab")
    found = row("toy-order", ledger.own_runs("lab"))
    assert (found.verdict, found.reason, found.ours) == ("not tested", "run by hand, profile lab", 1.5)


@pytest.mark.parametrize(
    ("measures", "reason"),
    [
        ({"plain_accuracy": three(98.9, 99.0, 99.1)}, ""),  # 99.0 on average
        ({"plain_accuracy": three(98.9, 98.9, 99.1)}, "network too weak: plain_accuracy is 98.97"),
        ({"plain_accuracy": {}}, "network too weak: plain_accuracy was not measured"),
        ({}, "network too weak: plain_accuracy was not measured"),
    ],
)
def test_preconditions(top, measures, reason):
    keep(measures=measures)
    found = row("toy-strong")
    assert (found.verdict, found.reason) == ("not tested" if reason else "reproduced", reason)
    assert row("toy-order").verdict == "reproduced", "which has none"


def test_precondition_at_most(top):
    limit = {"preconditions": [{"measure": "loss", "at_most": 1.0, "reason": "not trained"}]}
    write_claims(top, [claim("toy-order", "order", needs=limit)])
    for loss, verdict in [(1.0, "reproduced"), (1.01, "not tested")]:
        keep({"toy-order": three(1.0, 2.0, 1.5)}, measures={"loss": {0: loss}})
        assert row("toy-order").verdict == verdict


def test_every_precondition_must_hold(top):
    both = {"preconditions": [*STRONG["preconditions"], {"measure": "other", "at_least": 5.0, "reason": "too few"}]}
    write_claims(top, [claim("toy-order", "order", needs=both)])
    for other, reason in [(5.0, ""), (4.0, "too few: other is 4")]:
        keep({"toy-order": three(1.0, 2.0, 1.5)}, measures={**MEASURES, "other": {"all": other}})
        assert row("toy-order").reason == reason


def test_a_subset_is_said(top):
    keep(sets=[images("mnist/train[3000]"), images()])
    assert verdicts_of(ledger.table(ledger.own_runs("desk")))["toy-order"] == ("reproduced", "on a subset")
    assert row("toy-none").reason == "holds by construction"


def test_a_subset_is_said_of_one_seed_too(top):
    keep({"toy-order": {0: 1.0}}, sets=[images("mnist/train[3000]"), images()])
    found = row("toy-order")
    assert found.verdict == "inconclusive"
    assert "one seed" in found.reason
    assert "on a subset" in found.reason


# which run counts

LOW, HIGH = three(-1.0, -2.0, -1.5), three(1.0, 2.0, 1.5)


@pytest.fixture
def publish(top):
    """Keep a run and publish it: ``publish(profile, values, ...)``."""

    def done(profile, values, **more):
        path = keep({"toy-order": values}, profile=profile, **more)
        target = top / "results" / profile / "toy.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)

    return done


@pytest.mark.parametrize(("desk", "paper"), [(LOW, HIGH), (HIGH, LOW)])
def test_the_highest_profile_counts_and_never_the_better_number(publish, desk, paper):
    publish("desk", desk)
    publish("paper", paper)
    found = ledger.table()[1]
    assert (found.profile, found.published) == ("paper", True)
    assert found.verdict == ("reproduced" if paper is HIGH else "not reproduced")
    backwards = ledger.table(ledger.published_runs()[::-1])
    assert backwards == ledger.table()


@pytest.mark.parametrize(("quick", "desk"), [(LOW, HIGH), (HIGH, LOW)])
def test_a_run_that_can_decide_counts_before_one_that_cannot(publish, quick, desk):
    publish("quick", quick)
    publish("desk", desk)
    publish("paper", quick, sets=[images("digits/test")])  # the highest profile, on a stand-in
    found = ledger.table()[1]
    assert (found.profile, found.data) == ("desk", "mnist")
    assert found.verdict == ("reproduced" if desk is HIGH else "not reproduced")


def test_among_runs_that_cannot_decide_the_highest_profile_is_shown(publish):
    publish("smoke", HIGH)
    publish("quick", LOW)
    found = ledger.table()[1]
    assert (found.profile, found.ours, found.verdict) == ("quick", -1.5, "not tested")


def test_a_run_by_hand_comes_last(top, publish):
    publish("smoke", LOW)
    keep({"toy-order": HIGH}, profile="lab")
    found = ledger.table([*ledger.own_runs("lab"), *ledger.published_runs()])[1]
    assert found.profile == "smoke"


def test_own_runs_stand_apart_from_published_ones(publish):
    publish("desk", LOW)
    keep({"toy-order": HIGH}, profile="desk")
    assert (row("toy-order").ours, row("toy-order").published) == (1.5, False)
    assert (ledger.table()[1].ours, ledger.table()[1].published) == (-1.5, True)


def test_claims_of_several_notebooks_find_their_records(top):
    (top / "notebooks" / "second.ipynb").write_text(json.dumps(NOTEBOOK))
    keep({"toy-order": HIGH})
    ledger.record("second", parameters=PARAMETERS, sets=[images()], values={"toy-seen": HIGH}, measures={})
    found = {one.id: one.ours for one in ledger.table(ledger.own_runs("desk"))}
    assert {one for one, ours in found.items() if ours is not None} == {"toy-order", "toy-seen"}


# stale


def test_nothing_changed_is_not_stale(top):
    keep()
    assert {tuple(one.stale) for one in ledger.table(ledger.own_runs("desk"))} == {()}


@pytest.mark.parametrize(
    ("name", "stale"),
    [
        ("losses", ["losses.py"]),
        ("metrics", ["metrics.py"]),  # imported by losses
        ("figures", []),  # presentation
        ("ledger", []),
        ("records", []),
        ("unused", []),
    ],
)
def test_a_changed_module_is_named(top, name, stale):
    keep()
    path = top / "xai_lib" / f"{name}.py"
    path.write_text("# a comment alone is no change\n" + path.read_text())
    assert row("toy-order").stale == []
    path.write_text(path.read_text() + "\n\nMORE = 1\n")
    found = row("toy-order")
    assert found.stale == stale
    assert found.verdict == "reproduced", "a stale verdict is shown as stale, not taken back"


def test_a_changed_notebook_is_named(top):
    keep()
    changed = copy.deepcopy(NOTEBOOK)
    changed["cells"].append({"cell_type": "markdown", "metadata": {}, "source": "Words."})
    (top / "notebooks" / "toy.ipynb").write_text(json.dumps(changed))
    assert row("toy-order").stale == []
    changed["cells"][1]["source"] += "x = 1\n"
    (top / "notebooks" / "toy.ipynb").write_text(json.dumps(changed))
    assert row("toy-order").stale == ["toy.ipynb"]


def test_modules_that_came_and_went_are_named(top):
    keep()
    changed = copy.deepcopy(NOTEBOOK)
    changed["cells"][1]["source"] = "from xai_lib import unused\n"
    (top / "notebooks" / "toy.ipynb").write_text(json.dumps(changed))
    assert row("toy-order").stale == ["losses.py", "metrics.py", "toy.ipynb", "unused.py"]


def test_a_notebook_that_is_gone_makes_stale(top):
    keep()
    (top / "notebooks" / "toy.ipynb").unlink()
    assert row("toy-order").stale == ["losses.py", "metrics.py", "toy.ipynb"]


def test_a_changed_rule_is_flagged_and_a_changed_wording_is_not(top):
    keep()
    changed = copy.deepcopy(CLAIMS)
    changed[0]["rule"]["text"] = changed[0]["claim"] = changed[0]["title"] = "Other words."
    write_claims(top, changed)
    assert row("toy-level").stale == []
    changed[0]["rule"]["tolerance"] = 0.5
    write_claims(top, changed)
    assert row("toy-level").stale == ["rule"]
    assert row("toy-order").stale == [], "whose rule is as it was"


def test_a_rule_may_be_stale_beside_code(top):
    keep()
    changed = copy.deepcopy(CLAIMS)
    changed[1]["rule"]["margin"] = -1
    write_claims(top, changed)
    (top / "xai_lib" / "metrics.py").write_text("MORE = 1\n")
    assert row("toy-order").stale == ["metrics.py", "rule"]


RUN = """
import json
from pathlib import Path
import torch
from xai_lib import data, ledger

images = data.ImageSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"), "mnist/test")
edits = {
    "notebooks/toy.ipynb": ("rate = 0.1", "rate = 0.2"),
    "claims.yml": ("kind: order", "kind: order\\n    margin: 1"),
}
for name, (old, new) in edits.items():
    path = Path(name)  # hours later, somebody edits what this run was started from
    path.write_text(path.read_text().replace(old, new))
parameters = {"profile": "desk", "epochs": 4, "seeds": [0, 1], "rate": 0.1}
values = {"toy-order": {0: 1.0, 1: 2.0}}
try:
    ledger.record("toy", parameters=parameters, sets=[images], values=values, measures={})
    print(json.dumps(next(row.stale for row in ledger.table(ledger.own_runs("desk")) if row.id == "toy-order")))
except ValueError:
    print(json.dumps("refused"))
"""


def test_what_is_edited_while_a_run_goes_on_does_not_pass_for_what_ran(top):
    """The hashes are of the code and the rules that a run began with, not of the files that it finds at its end."""
    write_claims(top, [claim("toy-order", "order")])
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", RUN], cwd=top, env=os.environ | more, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout)
    assert said == "refused" or {"rule", "toy.ipynb"} <= set(said)


# ---------------------------------------------------------------------------------------------------------------------
# The command line

CONTRACT = {
    "id",
    "paper",
    "where",
    "paper_value",
    "ours",
    "sd",
    "seeds",
    "data",
    "profile",
    "device",
    "rule",
    "verdict",
    "reason",
    "stale",
}


def strict(text):
    """JSON as it is written down: no NaN, no Infinity, no key twice."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    def once(pairs):
        assert len({key for key, _ in pairs}) == len(pairs)
        return dict(pairs)

    return json.loads(text, parse_constant=refuse, object_pairs_hook=once)


def test_json(publish, capsys):
    publish("desk", HIGH)
    assert ledger.main(["--json"]) == 0
    found = strict(capsys.readouterr().out)
    assert [one["id"] for one in found] == [one["id"] for one in CLAIMS]
    for one in found:
        assert one.keys() >= CONTRACT
        assert one.keys() == {field.name for field in dataclasses.fields(ledger.Row)}
        assert isinstance(one["seeds"], int)
        assert isinstance(one["stale"], list)
        assert one["verdict"] in verdicts.VERDICTS
        assert one["reason"] or one["verdict"] != "not tested"
    assert found[1]["ours"] == 1.5
    assert found[1]["sd"] == 0.5
    assert found[1]["paper_value"] is None
    assert found[0]["ours"] is None
    assert found[0]["paper_value"] == 0.5


def test_json_of_own_runs_with_parts_and_one_seed(top, capsys):
    keep({"toy-parts": {"a": HIGH, "b": LOW}, "toy-order": {0: 1.0}, "toy-figure": {}})
    assert ledger.main(["--json", "--profile", "desk"]) == 0
    found = {one["id"]: one for one in strict(capsys.readouterr().out)}
    assert found["toy-parts"]["ours"] == {"a": 1.5, "b": -1.5}
    assert (found["toy-order"]["ours"], found["toy-order"]["sd"], found["toy-order"]["seeds"]) == (1.0, None, 1)
    assert found["toy-figure"]["ours"] is None


def test_table_on_the_command_line(top, capsys):
    keep()
    (top / "xai_lib" / "metrics.py").write_text("MORE = 1\n")
    assert ledger.main(["--profile", "desk"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    where = next(k for k, line in enumerate(lines) if "Title of toy-level" in line)
    assert "paper   0.5 points" in lines[where]
    assert "ours +0.500 ± 0.050 points" in lines[where]
    assert "reproduced, stale; desk run, mnist, n = 3" in lines[where + 1]
    assert "toy: 7 claims, 1 not yet run" in out
    assert "a: +1.50 ± 0.50 points; b: −1.50 ± 0.50 points" in out


def test_table_without_runs(top, capsys):
    assert ledger.main([]) == 0
    assert "toy: 7 claims, 7 not yet run" in capsys.readouterr().out


def test_table_of_a_stand_in_says_so(top, capsys):
    keep(sets=[images("digits/test")])
    ledger.main(["--profile", "desk"])
    out = capsys.readouterr().out
    assert "not tested (stand-in: digits for mnist)" in out
    assert "+1.50 ± 0.50 points" in out


def test_compare_on_the_command_line(top, capsys):
    one = keep()
    two = one.with_name("two.json")
    two.write_bytes(one.read_bytes())
    assert ledger.main(["compare", str(one), str(two)]) == 0
    assert capsys.readouterr().out.startswith("identical")
    keep({**VALUES, "toy-order": three(1.1, 2.1, 1.6)})
    assert ledger.main(["compare", str(one), str(two)]) == 0
    assert capsys.readouterr().out == "toy-order: 1.6 and 1.5, within two standard errors (0.816)\n"
    keep({**VALUES, "toy-order": three(11.0, 12.0, 11.5)}, epochs=9)
    assert ledger.main(["compare", str(one), str(two)]) == 1
    out = capsys.readouterr().out
    assert "parameters differ: epochs\n" in out
    assert "toy-order: 11.5 and 1.5, beyond two standard errors (0.816)\n" in out


def one_line_of_error(capsys, path):
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert str(path) in said.err
    return True


def test_compare_with_what_is_not_there(top, capsys):
    one = keep()
    assert ledger.main(["compare", str(one), str(top / "none.json")]) == 2
    assert one_line_of_error(capsys, top / "none.json")


@pytest.mark.parametrize(
    "content", [b'{"schema": 1, "res', b'{"schema": 2}', b"\xff\xfe\x00", b'{"schema": 1, "results": {}}']
)
def test_an_unreadable_record_is_one_clear_line(publish, top, capsys, content):
    publish("desk", HIGH)
    path = top / "results" / "desk" / "toy.json"
    path.write_bytes(content)
    assert ledger.main([]) == 2
    assert one_line_of_error(capsys, path)
    good = keep()
    assert ledger.main(["compare", str(good), str(path)]) == 2
    assert one_line_of_error(capsys, path)


def test_a_wrong_claim_is_one_line_on_the_command_line(top, capsys):
    write_claims(top, [{**CLAIMS[0], "rule": {"kind": "guess", "text": ""}}])
    assert ledger.main(["--json"]) == 2
    assert one_line_of_error(capsys, "toy-level")


def test_as_a_program(publish, top):
    """From a sub-folder, with warnings as errors."""
    publish("desk", HIGH)
    command = [sys.executable, "-W", "error", "-m", "xai_lib.ledger"]
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--json"], cwd=top / "notebooks", env=os.environ | more, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert strict(done.stdout.decode())[1]["verdict"] == "reproduced"


# ---------------------------------------------------------------------------------------------------------------------
# The real claims


def test_the_table_of_this_project(monkeypatch):
    monkeypatch.chdir(ROOT)
    claims = ledger.read_claims()
    rows = ledger.table(claims=claims)
    assert [one.id for one in rows] == list(claims)
    strict(json.dumps([dataclasses.asdict(one) for one in rows]))
