"""bench/expert_hits.py: its caches, on sequences worked out by hand; and how often synth's skewed routers hit."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import cgpt
from cgpt.checkpoint.sizes import published_config
from cgpt.models import synth

from support.synth_cases import SMALL

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import expert_hits  # noqa: E402
from expert_hits import lru_hits, popular, repeated  # noqa: E402

# Widths for which MXFP4's scales, powers of two, make the residual stream grow as at the published ones.
MODEL = published_config("gpt-oss-120b") | SMALL | dict(hidden_size=704, intermediate_size=160, vocab_size=16384)
MODEL["num_local_experts"] = 128
MODEL["layer_types"] = ["sliding_attention", "full_attention"] * 2


def test_the_least_recently_used_goes_first():
    choices = np.array([[1, 2], [1, 3], [2, 1]])  # 3 takes the place of 2, and then 2 that of 3, not of 1
    assert lru_hits(choices, 2).tolist() == [[False, False], [True, False], [False, False]]
    assert lru_hits(choices, 3).tolist() == [[False, False], [True, False], [True, True]]
    assert not lru_hits(np.arange(12).reshape(4, 3) % 6, 5).any()  # less than what comes before the next use


def test_repeated_and_popular():
    choices = np.array([[1, 2], [2, 3], [2, 3], [4, 5]])
    assert repeated(choices) == pytest.approx((0.5 + 1 + 0) / 3)
    assert popular(choices, 1) == 3 / 8
    assert popular(choices, 2) == 5 / 8


def test_choices_are_numbered_through_the_layers(tmp_path):
    synth.write(MODEL, tmp_path / "model")
    with cgpt.load(tmp_path / "model") as model:
        ids = [5, 6, 7]
        choices = expert_hits.choices_of(model, ids)
        seen = model.inspect(ids, "router_choices")["router_choices"]
    assert choices.shape == (3, 16)
    assert choices[1, 4:8].tolist() == (128 + seen[1, 1]).tolist()


def test_skewed_routers(tmp_path, monkeypatch, capsys):
    """Even choices hit as often as the cache is large; skewed ones more often, most where the text is generated."""
    found = {}
    for skew in 0, 1:
        synth.write(MODEL, tmp_path / f"{skew}", routing_skew=skew)
        for ids in "generated", "random":
            argv = f"expert_hits.py {tmp_path / str(skew)} --ids {ids} --new 400 --shares 0.3 --json"
            monkeypatch.setattr(sys, "argv", argv.split())
            expert_hits.main()
            found[skew, ids] = json.loads(capsys.readouterr().out)["lru_hits"]["0.3"]
    assert found[0, "generated"] == pytest.approx(0.3, abs=0.06) == found[0, "random"]
    assert 0.6 < found[1, "random"] < found[1, "generated"] - 0.03 < 0.82
