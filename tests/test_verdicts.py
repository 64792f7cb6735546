import itertools
import json
import math
import random

import pytest
from scipy import stats

from xai_lib import verdicts
from xai_lib.verdicts import Summary, combine, judge, summarize

ONE_TO_FIVE = {"0": 1.0, "1": 2.0, "2": 3.0, "3": 4.0, "4": 5.0}


def rule(kind, value=None, **more):
    return {"value": value, "rule": {"kind": kind, "text": "", **more}}


def seeds(*numbers):
    return summarize({str(k): x for k, x in enumerate(numbers)})


def draws(count=60):
    """Seeded samples of two to seven numbers around means near the thresholds."""
    source = random.Random(0)
    for _ in range(count):
        mean, sd, n = source.uniform(-1.5, 1.5), source.choice([0.05, 0.3, 1.0]), source.randint(2, 7)
        yield [source.gauss(mean, sd) for _ in range(n)]


# summaries


def test_summary_of_one_to_five_by_hand():
    summary = summarize(ONE_TO_FIVE)
    assert (summary.mean, summary.n) == (3.0, 5)
    assert summary.sd == pytest.approx(math.sqrt(10 / 4), rel=1e-15), "squares 4 + 1 + 0 + 1 + 4, over n - 1"


def test_summary_does_not_depend_on_the_order_of_seeds_and_cancels_exactly():
    numbers = [1e16, 1.0, -1e16, 0.5]
    found = {json.dumps(vars(seeds(*order))) for order in itertools.permutations(numbers)}
    assert len(found) == 1
    assert seeds(1e16, 1.0, -1e16).mean == 1 / 3


def test_summary_of_one_value_has_no_spread():
    assert summarize({"7": 4.5}) == Summary(4.5, None, 1)


def test_summary_of_nothing_is_refused():
    with pytest.raises(ValueError, match="values must hold at least one seed"):
        summarize({})


def test_by_part():
    assert verdicts.by_part({"0": 1.0, "1": 2.0}) == {"": {"0": 1.0, "1": 2.0}}
    assert verdicts.by_part({"a": {"0": 1.0}, "b": {}}) == {"a": {"0": 1.0}, "b": {}}
    assert verdicts.by_part({}) == {"": {}}, "a figure"


# Quantiles of Student's t from the printed tables (for instance Fisher & Yates): 0.975 and 0.95 at n - 1 degrees.
T_TWO_SIDED = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 8: 2.365}
T_ONE_SIDED = {2: 6.314, 3: 2.920, 4: 2.353, 5: 2.132, 8: 1.895}


@pytest.mark.parametrize("n", T_TWO_SIDED)
@pytest.mark.parametrize(("sides", "table"), [(2, T_TWO_SIDED), (1, T_ONE_SIDED)])
def test_bounds_are_those_of_the_t_tables(n, sides, table):
    low, high = Summary(10.0, 2.0, n).bounds(sides)
    half = table[n] * 2 / math.sqrt(n)
    assert (low, high) == pytest.approx((10 - half, 10 + half), rel=1e-3)


def test_bounds_are_scipys():
    for numbers in draws():
        summary = seeds(*numbers)
        test = stats.ttest_1samp(numbers, 0).confidence_interval(0.95)
        assert summary.bounds(2) == pytest.approx((test.low, test.high), rel=1e-9)
        low = stats.ttest_1samp(numbers, 0, alternative="greater").confidence_interval(0.95).low
        high = stats.ttest_1samp(numbers, 0, alternative="less").confidence_interval(0.95).high
        assert summary.bounds(1) == pytest.approx((low, high), rel=1e-9)


def test_bounds_of_one_value_are_infinite_and_of_equal_values_a_point():
    assert Summary(3.0, None, 1).bounds(1) == Summary(3.0, None, 1).bounds(2) == (-math.inf, math.inf)
    assert Summary(3.0, 0.0, 4).bounds(1) == Summary(3.0, 0.0, 4).bounds(2) == (3.0, 3.0)


# verdicts by hand. 1 to 5: 95% interval 3 +- 1.963, one-sided bounds 3 +- 1.507


@pytest.mark.parametrize(
    ("value", "tolerance", "verdict"),
    [
        (3.0, 2.0, "reproduced"),  # 1 to 5 holds 1.04 to 4.96
        (3.0, 1.96, "inconclusive"),  # a hair too narrow
        (3.2, 2.0, "inconclusive"),  # 1.2 to 5.2
        (6.0, 1.0, "not reproduced"),  # 5 to 7 lies above
        (6.0, 1.1, "inconclusive"),  # 4.9 to 7.1 overlaps
        (0.0, 1.0, "not reproduced"),  # -1 to 1 lies below
        (0.0, 1.1, "inconclusive"),
        (3.0, 0.0, "inconclusive"),  # no spread is small enough for a tolerance of nothing
    ],
)
def test_level_with_tolerance(value, tolerance, verdict):
    assert judge(rule("level", value, tolerance=tolerance), summarize(ONE_TO_FIVE)) == verdict


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (3.0, "reproduced"),
        (1.04, "reproduced"),
        (1.03, "not reproduced"),
        (4.96, "reproduced"),
        (4.97, "not reproduced"),
    ],
)
def test_level_without_tolerance(value, verdict):
    assert judge(rule("level", value), summarize(ONE_TO_FIVE)) == verdict


@pytest.mark.parametrize(
    ("margin", "verdict"),
    [
        (0, "reproduced"),
        (1.49, "reproduced"),
        (1.50, "inconclusive"),  # the lower bound is 1.4926
        (3.0, "inconclusive"),
        (4.50, "inconclusive"),
        (4.51, "not reproduced"),  # the upper bound is 4.5074
        (-0.5, "reproduced"),
    ],
)
def test_order_with_margin(margin, verdict):
    assert judge(rule("order", margin=margin), summarize(ONE_TO_FIVE)) == verdict
    assert judge(rule("qualitative", above=margin), summarize(ONE_TO_FIVE)) == verdict, "the same arithmetic"


def test_order_without_margin_is_against_zero():
    assert judge(rule("order"), seeds(0.1, 0.2, 0.15)) == "reproduced"
    assert judge(rule("order"), seeds(-0.1, -0.2, -0.15)) == "not reproduced"
    assert judge(rule("order"), seeds(-0.1, 0.2, 0.15)) == "inconclusive"


def test_a_negative_margin_allows_what_zero_does_not():
    close = seeds(-0.1, -0.2, -0.15)
    assert judge(rule("order", margin=-0.5), close) == "reproduced"


def test_qualitative_is_measured_against_above_not_against_zero():
    """A rule's margin has no meaning there."""
    numbers = seeds(0.6, 0.62, 0.61)
    assert judge(rule("qualitative", above=0.5), numbers) == "reproduced"
    assert judge(rule("qualitative", above=0.9), numbers) == "not reproduced"
    assert judge(rule("qualitative", above=0.61), numbers) == "inconclusive"


def test_order_is_scipys_one_sided_test():
    found = set()
    for numbers in draws():
        verdict = judge(rule("order", margin=0.25), seeds(*numbers))
        found.add(verdict)
        above = stats.ttest_1samp(numbers, 0.25, alternative="greater").pvalue < 0.05
        below = stats.ttest_1samp(numbers, 0.25, alternative="less").pvalue < 0.05
        assert verdict == ("reproduced" if above else "not reproduced" if below else "inconclusive")
    assert len(found) == 3, "the samples reach every verdict"


def test_level_without_tolerance_is_scipys_two_sided_test():
    found = set()
    for numbers in draws():
        verdict = judge(rule("level", 0.25), seeds(*numbers))
        found.add(verdict)
        assert verdict == ("not reproduced" if stats.ttest_1samp(numbers, 0.25).pvalue < 0.05 else "reproduced")
    assert len(found) == 2


def test_level_with_tolerance_is_two_scipy_tests():
    """Wholly inside: both ends of the tolerance rejected, each at 2.5%; wholly outside: one, from the other side."""
    found = set()
    for numbers in draws(200):
        verdict = judge(rule("level", 0.25, tolerance=0.5), seeds(*numbers))
        found.add(verdict)

        def beyond(end, side, numbers=numbers):
            return stats.ttest_1samp(numbers, end, alternative=side).pvalue < 0.025

        if beyond(-0.25, "greater") and beyond(0.75, "less"):
            assert verdict == "reproduced"
        elif beyond(-0.25, "less") or beyond(0.75, "greater"):
            assert verdict == "not reproduced"
        else:
            assert verdict == "inconclusive"
    assert len(found) == 3


RULES = [
    rule("level", 3.0, tolerance=1e9),
    rule("level", 3.0),
    rule("order"),
    rule("order", margin=-1e9),
    rule("qualitative", above=-1e9),
]


@pytest.mark.parametrize("claim", RULES)
@pytest.mark.parametrize("value", [3.0, -1e12, 1e12])
def test_one_seed_decides_nothing(claim, value):
    assert judge(claim, summarize({"0": value})) == "inconclusive"


@pytest.mark.parametrize(
    ("claim", "at", "above", "below"),
    [
        (rule("order"), "inconclusive", "reproduced", "not reproduced"),
        (rule("qualitative", above=0.0), "inconclusive", "reproduced", "not reproduced"),
        (rule("level", 0.0), "reproduced", "not reproduced", "not reproduced"),
        (rule("level", 0.0, tolerance=0.5), "reproduced", "reproduced", "reproduced"),
        (rule("level", 0.0, tolerance=0.1), "reproduced", "not reproduced", "not reproduced"),
        (rule("level", 0.0, tolerance=0.25), "reproduced", "reproduced", "reproduced"),  # the edge belongs to it
    ],
)
def test_seeds_that_agree_exactly(claim, at, above, below):
    assert [judge(claim, seeds(x, x, x)) for x in (0.0, 0.25, -0.25)] == [at, above, below]


def test_the_names_of_verdicts():
    assert verdicts.VERDICTS == ("reproduced", "partly", "not reproduced", "inconclusive", "shown", "not tested")
    assert verdicts.KINDS == ("order", "level", "qualitative", "figure", "none")


# parts

YES, NO, OPEN = "reproduced", "not reproduced", "inconclusive"


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ([YES], YES),
        ([NO], NO),
        ([OPEN], OPEN),
        ([YES, YES, YES], YES),
        ([NO, NO], NO),
        ([OPEN, OPEN], OPEN),
        ([YES, NO], "partly"),
        ([YES, OPEN], "partly"),
        ([YES, NO, OPEN], "partly"),
        ([NO, OPEN], OPEN),
    ],
)
def test_parts(given, verdict):
    assert {combine(list(order)) for order in itertools.permutations(given)} == {verdict}


# numbers as text


@pytest.mark.parametrize(
    ("summary", "text"),
    [
        (Summary(3.25, 0.42, 5), "3.25 ± 0.42"),  # two digits of the spread
        (Summary(3.25, 4.2, 5), "3.2 ± 4.2"),  # a tie goes to the even digit
        (Summary(31.5, 42.0, 5), "32 ± 42"),
        (Summary(123456.0, 1234.0, 5), "123456 ± 1234"),  # never rounded left of the point
        (Summary(0.61234, 0.0123, 5), "0.612 ± 0.012"),
        (Summary(99.2341, 0.0431, 5), "99.234 ± 0.043"),
        (Summary(99.2341, 0.0001, 5), "99.234 ± 0.000"),  # no more than a thousandth of the mean needs
        (Summary(0.0712345, 0.00012, 5), "0.0712 ± 0.0001"),  # four digits at most
        (Summary(-1.5, 0.2, 3), "−1.50 ± 0.20"),
        (Summary(10.0, 0.0, 3), "10 ± 0"),
        (Summary(0.0, 0.0, 3), "0 ± 0"),
        (Summary(0.0, None, 1), "0"),
        (Summary(0.71, None, 1), "0.71"),
        (Summary(3.25, None, 1), "3.25"),
        (Summary(99.2812, None, 1), "99.28"),  # one seed has no spread: four digits
        (Summary(13720.0, 0.0, 3), "13720 ± 0"),  # digits, no power of ten
        (Summary(1234567.0, None, 1), "1234567"),
        (Summary(0.5, 0.0999, 3), "0.500 ± 0.100"),
        (Summary(2.0, 1.0, 3), "2.0 ± 1.0"),  # a power of ten
        (Summary(0.2, 0.1, 3), "0.20 ± 0.10"),
    ],
)
def test_digits(summary, text):
    assert summary.text() == text
    assert summary.text("points") == f"{text} points"


def test_signs():
    assert Summary(0.5, 0.1, 3).text("points", signed=True) == "+0.50 ± 0.10 points"
    assert Summary(-0.5, 0.1, 3).text("points", signed=True) == "−0.50 ± 0.10 points"
    assert "-" not in Summary(-0.5, 0.1, 3).text(), "a minus sign, not a hyphen"
    assert Summary(-0.5, 0.1, 3).text("x-features") == "−0.50 ± 0.10 x-features", "a unit keeps its hyphen"
