"""What pairs of times say about a claim. Nothing here knows which claim, or hopes for an answer."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

HOLDS, PARTLY, CONTRADICTED, NONE = "holds", "holds in part", "contradicted", "no difference"
UNCLEAR, NOTED = "too noisy", "noted"
MIN_DIFFERENCE = 0.03  # a smaller difference is none: where memory happens to lie makes as much
NEAR = 0.10  # an interval within so much of 1 shows that there is no difference; a wider one shows nothing
ENOUGH = 0.75  # of the gain that bytes and operations promise
DOUBT = 40  # one in so many on each side: 95 % confidence


@dataclass(frozen=True)
class Verdict:
    """ratio: the median of old time / new time, so above 1 the new way is faster; low, high: between them it lies with
    95 % confidence, or with what the pairs allow. text: a few words with the figures."""

    kind: str
    ratio: float
    low: float
    high: float
    text: str


def judge(
    claim: str, old: Sequence[float], new: Sequence[float], counted: float | None = None, within: float = 0.05
) -> Verdict:
    """The verdict on seconds measured in pairs, old[i] beside new[i].

    claim: "faster", the new way is; `counted`: the ratio that bytes and operations promise, of which less than ENOUGH
    is only a part. "free": the new way takes at most the share `within` more. "share": `old`, a part, takes at most
    `within` of `new`, the whole. "portion" and "none": no claim; that share, or the ratio, is noted.
    """
    ratios = [a / b for a, b in zip(old, new, strict=True)]
    ratio, (low, high) = statistics.median(ratios), interval(ratios)
    rules = {"faster": _faster, "free": _free, "share": _share, "portion": _portion, "none": _none}
    kind, text = rules[claim](ratio, low, high, counted, within)
    return Verdict(kind, ratio, low, high, text)


def disturbed(found: Verdict, taken: float) -> Verdict:
    """The same figures, of which nothing follows: others had the share `taken` of the CPUs meanwhile."""
    return replace(found, kind=UNCLEAR, text=f"{times(found.ratio)}, while others used {percent(taken)} of the CPUs")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Two of the values, between which the median of their distribution lies with at least 95 % confidence, whatever
    the distribution; the outermost where even those are less sure (fewer than 6). The sign test, inverted."""
    ordered, n = sorted(values), len(values)
    cut, ways, tail = 0, n, 1  # of the 2^n: those with cut + 1 below the median, with at most cut
    while DOUBT * (tail + ways) <= 2**n:
        cut, tail = cut + 1, tail + ways
        ways = ways * (n - cut) // (cut + 1)
    return ordered[cut], ordered[n - 1 - cut]


def faster(ratio: float) -> str:
    """A ratio of times in words."""
    return f"{times(ratio)} faster" if ratio >= 1 else f"{times(1 / ratio)} slower"


def times(ratio: float) -> str:
    return f"{ratio:,.0f} x" if ratio >= 99.5 else f"{ratio:.1f} x" if ratio >= 9.95 else f"{ratio:.2f} x"


def _faster(ratio: float, low: float, high: float, counted: float | None, within: float) -> tuple[str, str]:
    if low > 1 + MIN_DIFFERENCE:
        if counted is not None and high < 1 + ENOUGH * (counted - 1):
            return PARTLY, f"{faster(ratio)}, {times(counted)} counted"
        return HOLDS, faster(ratio)
    if high < 1 - MIN_DIFFERENCE:
        return CONTRADICTED, faster(ratio)
    near = 1 - NEAR <= low and high <= 1 + NEAR
    return NONE if near else UNCLEAR, _no_difference(ratio, low, high)


def _free(ratio: float, low: float, high: float, counted: float | None, within: float) -> tuple[str, str]:
    cost, min_cost, max_cost = 1 / ratio - 1, 1 / high - 1, 1 / low - 1
    if min_cost > within:
        return CONTRADICTED, f"{percent(cost)} more time"
    if max_cost > within:
        return UNCLEAR, f"takes {1 / ratio:.2f} of the old time, {1 / high:.2f} to {1 / low:.2f}"
    if max_cost < -MIN_DIFFERENCE:
        return HOLDS, f"costs nothing: {faster(ratio)}"
    return HOLDS, "costs nothing measurable" if min_cost <= 0 else f"{percent(cost)} more time"


def _share(ratio: float, low: float, high: float, counted: float | None, within: float) -> tuple[str, str]:
    text = f"{percent(ratio)} of it"
    if high <= within:
        return HOLDS, text
    return (CONTRADICTED, text) if low > within else (UNCLEAR, f"{text}, {percent(low)} to {percent(high)}")


def _portion(ratio: float, low: float, high: float, counted: float | None, within: float) -> tuple[str, str]:
    return NOTED, f"{percent(ratio)} of it"


def _none(ratio: float, low: float, high: float, counted: float | None, within: float) -> tuple[str, str]:
    if low <= 1 <= high or max(abs(low - 1), abs(high - 1)) <= MIN_DIFFERENCE:
        return NOTED, _no_difference(ratio, low, high)
    return NOTED, faster(ratio)


def _no_difference(ratio: float, low: float, high: float) -> str:
    return f"no difference beyond the noise ({ratio:.2f} x, {low:.2f} to {high:.2f})"


def percent(share: float) -> str:
    digits = next((n for n, low in enumerate((0.095, 0.0095, 0.00095, 0.000095)) if abs(share) >= low), 0)
    if share and not digits and abs(share) < 0.095:
        return "less than 0.01 %"
    return f"{100 * share:.{digits}f} %"


# ------------------------------------------------------------------------------------------------- of a whole step

_HEADS = ((HOLDS, "holds"), (PARTLY, "holds, but by less than counted"), (NONE, "makes no difference here"),
          (CONTRADICTED, "this CPU contradicts it"), (UNCLEAR, "too noisy to tell"), (NOTED, "beside it"))  # fmt: skip


def of_step(kinds: Iterable[str], facts: Sequence[bool | None]) -> str:
    """One word for the verdicts on a step's measurements and on its figures (None: nothing was claimed of one). All
    must agree, but for those that show nothing."""
    kinds = set(kinds)
    found = kinds - {NOTED, UNCLEAR}
    if not found:
        return UNCLEAR if UNCLEAR in kinds else NOTED
    if False in facts:
        found.add(CONTRADICTED)
    if len(found) == 1:
        return found.pop()
    return PARTLY if found & {HOLDS, PARTLY} else CONTRADICTED


def line(cases: Sequence[tuple[str, Verdict]], facts: Sequence[tuple[str, bool | None]]) -> str:
    """One sentence of a step: where its claim holds, and by how much; where not."""
    parts = []
    for kind, head in _HEADS:
        found = [f"{label} ({verdict.text})" for label, verdict in cases if verdict.kind == kind]
        if kind == CONTRADICTED:
            found += [label for label, holds in facts if holds is False]
        if found:
            parts.append(f"{head}: {', '.join(found)}")
    checked = [holds for _, holds in facts if holds is not None]
    if checked and all(checked):
        which = {1: "the figure is", 2: "both figures are"}.get(len(checked), f"all {len(checked)} figures are")
        parts.append(f"{which} as claimed")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]
