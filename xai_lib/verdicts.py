"""What numbers say about a claim: summaries over seeds, verdicts by a claim's rule, two runs side by side.

Intervals are Student's t over seeds at 95%. The rules are described in ``claims.yml``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

KINDS = ("order", "level", "qualitative", "figure", "none")
VERDICTS = ("reproduced", "partly", "not reproduced", "inconclusive", "shown", "not tested")
CONFIDENCE = 0.95


def by_part(values: Mapping) -> dict[str, Mapping[str, float | int]]:
    """Return {part: {seed: number}}; values of a claim without parts become the part ``""``."""
    return dict(values) if any(isinstance(value, Mapping) for value in values.values()) else {"": values}


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n - 1) and number of some values; sd is None for one value."""

    mean: float
    sd: float | None
    n: int

    def bounds(self, sides: int) -> tuple[float, float]:
        """Return the 95% t interval of the mean, or for ``sides=1`` both one-sided bounds; infinite for one value."""
        if self.sd is None:
            return -math.inf, math.inf
        quantile = 1 - (1 - CONFIDENCE) / sides
        half = stats.t.ppf(quantile, self.n - 1) * self.sd / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    def text(self, unit: str = "", signed: bool = False) -> str:
        """Return "mean ± sd unit", digits as the spread deserves."""
        if self.sd is None or self.sd <= 1e-12 * abs(self.mean):  # one number, or nothing but rounding
            form, spread = ".4g" if abs(self.mean) < 1e4 else ".0f", "" if self.sd is None else " ± 0"
        else:
            size = max(self.sd, abs(self.mean) / 1000)
            digits = min(4, max(0, 1 - math.floor(math.log10(size))))
            form, spread = f".{digits}f", f" ± {self.sd:.{digits}f}"
        number = f"{self.mean:{'+' if signed else ''}{form}}"
        return f"{number}{spread}".replace("-", "−") + (f" {unit}" if unit else "")


def summarize(values: Mapping[str, float | int]) -> Summary:
    """Return mean, standard deviation and number of {seed: value}.

    Raises
    ------
    ValueError
        There are no values.
    """
    numbers = list(values.values())
    if not numbers:
        raise ValueError("values must hold at least one seed; got none")
    mean = math.fsum(numbers) / len(numbers)
    if len(numbers) == 1:
        return Summary(mean, None, 1)
    return Summary(mean, math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1)), len(numbers))


def judge(claim: Mapping, summary: Summary) -> str:
    """Return the verdict of a claim's rule on one summary: reproduced, not reproduced or inconclusive."""
    rule = claim["rule"]
    if rule["kind"] == "level":
        low, high = summary.bounds(2)
        if summary.sd is None:
            return "inconclusive"
        if "tolerance" not in rule:
            return "reproduced" if low <= claim["value"] <= high else "not reproduced"
        least, most = claim["value"] - rule["tolerance"], claim["value"] + rule["tolerance"]
        if least <= low and high <= most:
            return "reproduced"
        return "not reproduced" if high < least or low > most else "inconclusive"
    threshold = rule["above"] if rule["kind"] == "qualitative" else rule.get("margin", 0)
    low, high = summary.bounds(1)
    if low > threshold:
        return "reproduced"
    return "not reproduced" if high < threshold else "inconclusive"


def combine(verdicts: Sequence[str]) -> str:
    """Return the verdict of a claim of several parts: partly where some hold and some do not."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return "partly" if "reproduced" in verdicts else "inconclusive"
