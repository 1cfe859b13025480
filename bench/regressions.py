"""What fell: the newest figure of each kind against the median of those before it on the same kind of machine.

    python bench/regressions.py [SPEED.jsonl] [--by 0.1]

Figures are of a kind where machine, what and unit are the same; in seconds and bytes less is better, else more. Prints
a line for each that is worse by more than --by, and ends with status 1 where there is one. Speed on a shared machine
changes by the minute: look at the bandwidth of both runs, then measure the two trees in turns (two_checkouts.py).
"""

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

LESS_IS_BETTER = {"s", "ms", "us", "GB", "MB", "off"}


def fallen(lines: Iterable[str], by: float) -> Iterator[str]:
    """A sentence for each kind of figure whose newest is worse than the median before by more than a share of it."""
    kinds: dict[tuple[str, str, str], list[dict]] = defaultdict(list)
    for line in lines:
        if line.strip():
            one = json.loads(line)
            kinds[one["machine"], one["what"], one["unit"]].append(one)
    for (machine, what, unit), figures in kinds.items():
        *before, newest = sorted(figures, key=lambda one: one["date"])  # of one day as they were appended
        if not before:
            continue
        median = statistics.median(one["value"] for one in before)
        worse = newest["value"] / median - 1 if unit in LESS_IS_BETTER else 1 - newest["value"] / median
        if worse > by:
            yield (
                f"{what}: {newest['value']:g} {unit} ({newest['date']}, {newest['tree']}), {worse:.0%} worse than "
                f"{median:g}, the median of {len(before)} before; {machine}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).with_name("SPEED.jsonl"))
    parser.add_argument("--by", type=float, default=0.1, help="the share that counts")
    a = parser.parse_args()
    found = list(fallen(a.file.read_text().splitlines(), a.by))
    print("\n".join(found) or "nothing fell")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
