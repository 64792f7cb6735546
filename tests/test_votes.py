"""Files of votes: what fits is combined, what does not is refused in one line that names the file."""

import json
import math

import pytest

from xai_lib.widgets import votes

MODULE = "0123456789ab"


def entry(category="crow", feature=1, name="", vote="trust"):
    return {"category": category, "feature": feature, "name": name, "vote": vote}


def file(voter="Ada", *features, **changes):
    given = {"format": votes.FORMAT, "version": 1, "module": MODULE, "voter": voter, "features": list(features)}
    return {**given, **changes}


def test_combines_by_hand():
    """Two of three distrust the first, one names it alone, nobody votes on the third, and one voter stands aside."""
    files = [
        file("Ada", entry(vote="distrust", name="beak"), entry("jay", 2)),
        file("Bob", entry(vote="distrust"), entry("crow", 3, name="tail", vote=None)),
        file("Cy", entry(vote="trust", name="red beak")),
        file("Di"),
    ]
    crow, tail, jay = votes.combine(files)
    assert (crow.category, crow.feature, crow.trust, crow.distrust, crow.names) == (
        "crow",
        1,
        1,
        2,
        ("beak", "red beak"),
    )
    assert crow.voters == 3
    assert crow.agreement == pytest.approx(2 / 3)
    assert (tail.feature, tail.voters, tail.names) == (3, 0, ("tail",))
    assert math.isnan(tail.agreement)
    assert (jay.category, jay.feature, jay.agreement) == ("jay", 2, 1.0)
    assert votes.combine([]) == []
    assert votes.combine(iter(files[::-1]))[0].voters == 3, "the order of the files decides nothing"


def test_a_tie_agrees_by_half():
    assert votes.combine([file("Ada", entry()), file("Bob", entry(vote="distrust"))])[0].agreement == 0.5


def test_files_of_other_x_features_or_one_voter_twice_are_refused():
    with pytest.raises(ValueError, match=f"^files are about different x-features: {MODULE} and ffff$"):
        votes.combine([file("Ada"), file("Bob", module="ffff")])
    with pytest.raises(ValueError, match='^votes of " ada" come twice$'):
        votes.combine([file("Ada"), file("Bob"), file(" ada")])


HTML = '<img src=x onerror="alert(1)">'
REFUSED = {
    "a list": ([], "it is no file of x-feature votes"),
    "other format": (file(format="notes"), "it is no file of x-feature votes"),
    "other version": (file(version=2), "version is 2, this library reads 1"),
    "version true": (file(version=True), "version is true, this library reads 1"),
    "unknown field": (file(extra=1), 'the file has an unknown field "extra"'),
    "prototype": (json.loads(json.dumps(file())[:-1] + ', "__proto__": {"x": 1}}'), 'unknown field "__proto__"'),
    "no voter": (file("  "), "voter is empty"),
    "voter is a number": (file(7), "voter is no text: 7"),
    "long voter": (file("a" * 61), 'voter is longer than 60 letters: "aaa'),
    "features are an object": (file(features={}), "features is no list: {}"),
    "feature is a text": (file("Ada", "crow"), 'features[0] is no object: "crow"'),
    "no name": (file("Ada", {"category": "crow", "feature": 1, "vote": None}), 'features[0] has no field "name"'),
    "inner prototype": (file("Ada", {**entry(), "__proto__": 1}), 'features[0] has an unknown field "__proto__"'),
    "x-feature 0": (file("Ada", entry(), entry(feature=0)), "features[1]: there is no x-feature 0"),
    "x-feature 1.5": (file("Ada", entry(feature=1.5)), "features[0]: there is no x-feature 1.5"),
    "other vote": (file("Ada", entry(vote="perhaps")), 'features[0]: vote is "perhaps", not trust, distrust or null'),
    "vote is a list": (file("Ada", entry(vote=[])), "features[0]: vote is [], not trust"),
    "long name": (file("Ada", entry(name="n" * 61)), "features[0]: name is longer than 60 letters"),
    "name with a line": (file("Ada", entry(name="a\nb")), "features[0]: name holds control characters"),
    "name turned around": (file("Ada", entry(name="a\u202eb")), "features[0]: name holds control characters"),
    "half a letter": (file("Ada", entry(name="\ud800")), "features[0]: name holds control characters"),
    "twice": (file("Ada", entry(), entry(vote=None)), 'features[1]: x-feature 1 of "crow" comes twice'),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(name, tmp_path):
    given, message = REFUSED[name]
    path = tmp_path / "ada.json"
    path.write_text(json.dumps(given))
    with pytest.raises(ValueError, match="^ada.json: ") as error:
        votes.read(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 160


@pytest.mark.parametrize("text", ["", "{", "NaN", '{"format": NaN}', "[" * 200_000, "\udcff"])
def test_what_is_no_json_is_refused(text, tmp_path):
    (tmp_path / "ada.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="^ada.json: it is no JSON$"):
        votes.read(tmp_path / "ada.json")


def test_a_large_file_is_refused_unread(tmp_path, monkeypatch):
    (tmp_path / "big.json").write_text(" " * 10_000_000)
    monkeypatch.setattr(json, "loads", None)
    with pytest.raises(ValueError, match="^big.json: 10.0 MB is more than 1 MB$"):
        votes.read(tmp_path / "big.json")


def test_reads_what_fits_as_it_is(tmp_path):
    """Names are texts, HTML too; a byte-order mark, letters of two halves and 60 of them are no trouble."""
    given = file("Zoë", entry(name=HTML), entry(feature=2, name="🐦" * 60, vote=None))
    (tmp_path / "zoe.json").write_text(json.dumps(given), encoding="utf-8-sig")
    assert votes.read(tmp_path / "zoe.json") == given
    assert votes.combine([given])[0].names == (HTML,)
