"""The first cases of fuzz.py, and its undamaged checkpoints."""

from collections import Counter

import pytest

from support.fuzz import BASES, drive, run_case

CASES = 600  # of each base


@pytest.mark.parametrize("base", BASES)
def test_undamaged(base, tmp_path):
    for name, content in BASES[base].items():
        (tmp_path / name).write_bytes(content)
    drive(tmp_path)


@pytest.mark.parametrize("base", BASES)
def test_damaged(base, tmp_path):
    outcomes = Counter(run_case(seed, base, tmp_path / "case") for seed in range(CASES))
    # Damage that is never noticed, or always, would test nothing.
    for outcome in ("loaded", "ConfigError", "CheckpointError"):
        assert outcomes[outcome] > CASES / 50, outcomes
