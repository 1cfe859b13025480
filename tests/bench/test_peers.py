"""bench/peers.py without any peer: what is skipped and why, the order of turns, the table, the GGUF repacking."""

import sys
from pathlib import Path

import numpy as np
import pytest

from cgpt.kernels._kernels import mxfp4_dequantize

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import peers  # noqa: E402
from peer_engines import ENGINES, engine_class, gguf_file  # noqa: E402
from peer_engines.base import Engine, Skip  # noqa: E402

VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def decode_gguf(data):
    """GGUF's block_mxfp4 in float64, [.., K]: 17 bytes a group, the scale first; low nibbles are elements 0 to 15."""
    groups = data.reshape(*data.shape[:-1], -1, 17)
    codes = np.concatenate((groups[..., 1:] & 15, groups[..., 1:] >> 4), -1)
    values = VALUES[codes] * np.exp2(groups[..., :1].astype(np.float64) - 127)
    return values.reshape(*data.shape[:-1], -1)


def test_mxfp4_blocks_hold_the_values_of_the_checkpoint():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (3, 5, 4, 16), np.uint8)
    scales = rng.integers(100, 140, (3, 5, 4), np.uint8)
    packed = gguf_file.mxfp4_blocks(blocks, scales)
    assert packed.shape == (3, 5, 4 * 17)
    np.testing.assert_array_equal(decode_gguf(packed), mxfp4_dequantize(blocks, scales))


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_is_importable_without_its_packages_and_has_settings(name):
    cls = engine_class(name)
    assert issubclass(cls, Engine) and cls.packages and cls.settings["gpt2"]


def test_an_absent_package_is_a_skip():
    class Absent(Engine):
        packages = ("numpy", "no-such-package-as-this")

    with pytest.raises(Skip, match="not installed: no-such-package-as-this"):
        Absent.versions()


def test_settings_are_chosen_by_engine_and_precision():
    assert [s.name for s in peers.choose("gpt2", "cgpt,llama.cpp", "f32")] == ["cgpt f32", "llama.cpp f32"]
    assert {s.engine for s in peers.choose("gpt2", "", "")} == set(ENGINES)
    with pytest.raises(SystemExit, match="no grep"):
        peers.choose("gpt2", "grep", "")


def test_prepare_asks_versions_once_and_says_why_something_is_skipped():
    asked = []

    def job(setting, what):
        asked.append((what, setting.name))
        if setting.engine == "c":
            return {"skipped": "not installed: c"}
        if what == "versions":
            return {"versions": "1.2"}
        return {"skipped": "no f32"} if setting.name == "a f32" else {"path": "p", "seconds": 0}

    settings = [peers.Setting(*pair) for pair in (("a", "f32"), ("a", "int8"), ("c", "f32"), ("c", "int8"))]
    ready, lines = peers.prepare(settings, job)
    assert [(s.name, s.path) for s in ready] == [("a int8", "p")]
    assert lines == ["a: 1.2", "a f32: skipped: no f32", "c: skipped: not installed: c"]
    assert asked == [("versions", "a f32"), ("prepare", "a f32"), ("prepare", "a int8"), ("versions", "c f32")]


def test_rounds_interleave_and_a_failure_leaves():
    order = []

    def job(setting):
        order.append(setting.engine)
        return {"skipped": "gone"} if order.count("b") == 2 and setting.engine == "b" else {"turn": len(order)}

    a, b, c = (peers.Setting(name, "f32") for name in "abc")
    lines = peers.interleave([a, b, c], 3, job, lambda: order.append("|"))
    assert "".join(order) == "|abc|abc|ac|"
    assert lines == ["b f32: skipped: gone"]
    assert [len(s.turns) for s in (a, b, c)] == [3, 1, 3]


def test_the_table_has_medians_with_spread_over_all_turns():
    a, silent = peers.Setting("a", "f32"), peers.Setting("b", "f32")
    a.turns = [
        {"prefill": [900.0, 1100.0], "decode": [50.0, 51.0], "first": 0.5, "peak": 1.0},
        {"prefill": [1200.0, 1000.0], "decode": [49.0, 60.0], "first": 0.7, "peak": 1.25},
    ]
    rows = peers.table([a, silent], lambda turns: ("1e-6", f"{len(turns)}/16")).splitlines()
    assert [cell.strip() for cell in rows[2].strip("|").split("|")] == [
        "a",
        "f32",
        "1050 (900-1200)",
        "50.5 (49-60)",
        "0.6 (0.5-0.7)",
        "1.25",
        "1e-6",
        "2/16",
    ]
    assert len(rows) == 3 and len(set(map(len, rows))) == 1


def test_agreement_is_measured_in_deviations_of_the_logits(tmp_path):
    exact = np.array([2.0, -2.0, 2.0, -2.0], np.float32)
    np.save(tmp_path / "reference.npy", exact)
    np.save(tmp_path / "a.npy", exact + np.float32(0.02))
    reference = {"greedy": [1, 2, 3], "logits": "reference.npy"}
    checked = {"greedy": [1, 2, 4], "logits": "a.npy"}
    assert peers.agreement([{}, checked], reference, tmp_path) == ("1.0e-02", "2/3")
    assert peers.agreement([{"greedy": [1, 2, 3]}], reference, tmp_path) == ("-", "3/3")
    assert peers.agreement([{}], reference, tmp_path) == peers.agreement([checked], None, tmp_path) == ("-", "-")
