"""What a checkpoint's generation_config.json says of sampling holds until a call says otherwise."""

import json
import shutil

import pytest

import cgpt
from cgpt.cli import main as cli
from cgpt.generation.sampling import checkpoint_defaults


@pytest.mark.parametrize(
    "config, expected",
    [
        ({}, {}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": True, "temperature": None, "top_k": None}, {"temperature": 1.0}),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}),
        ({"do_sample": False, "temperature": 0.6, "top_k": 7}, {"top_k": 7}),
        ({"temperature": 0.6, "repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"max_new_tokens": 9, "max_length": 50, "num_beams": 4, "eos_token_id": 3}, {"max_new_tokens": 9}),
    ],
)
def test_what_the_file_means(config, expected):
    assert checkpoint_defaults(config) == expected


@pytest.mark.parametrize("name, value", [("top_p", 1.5), ("temperature", "hot"), ("max_new_tokens", 0), ("min_p", [])])
def test_a_value_without_meaning_is_left_out(name, value):
    config = {"do_sample": True, "temperature": 0.5, "top_k": 3}
    with pytest.warns(UserWarning, match=f"generation_config.json: {name} must be"):
        found = checkpoint_defaults(config | {name: value})
    assert found == {key: kept for key, kept in (("temperature", 0.5), ("top_k", 3)) if key != name}


@pytest.fixture
def with_config(tmp_path):
    """Loads a model of the package with another generation_config.json."""

    def load(name, **config):
        directory = shutil.copytree(cgpt.locate(name), tmp_path / name)
        (directory / "generation_config.json").write_text(json.dumps(config))
        return cgpt.load(directory, threads=1)

    return load


def test_what_a_call_leaves_out_comes_from_the_file(with_config):
    model = with_config("demo-gpt2", do_sample=True, temperature=0.8, top_k=5, max_new_tokens=12)
    plain = cgpt.load("demo-gpt2", threads=1)
    options = {"temperature": 0.8, "top_k": 5, "max_new_tokens": 12, "seed": 3}
    expected = plain.generate("ROMEO:", **options)
    assert model.generate("ROMEO:", seed=3).ids == expected.ids and len(expected.ids) == 12
    assert model.generate(["ROMEO:"] * 2, seed=3)[1].ids == expected.ids
    assert "".join(model.stream("ROMEO:", seed=3)) == expected.text
    assert expected.ids != plain.generate("ROMEO:", max_new_tokens=12).ids


def test_what_a_call_passes_wins(with_config):
    model = with_config("demo-gpt2", do_sample=True, temperature=5.0, top_k=500, max_new_tokens=12)
    plain = cgpt.load("demo-gpt2", threads=1)
    greedy = plain.generate("ROMEO:", max_new_tokens=8).ids
    assert model.generate("ROMEO:", temperature=0, max_new_tokens=8).ids == greedy
    assert model.generate("ROMEO:", temperature=5.0, top_k=1, max_new_tokens=8).ids == greedy


def test_a_temperature_brings_the_files_top_k(with_config):
    """As do_sample=True does in transformers."""
    model = with_config("demo-gpt2", do_sample=False, top_k=1)
    assert model.generate("ROMEO:", temperature=5.0, max_new_tokens=8, seed=1).ids == (
        model.generate("ROMEO:", max_new_tokens=8).ids
    )


def test_a_chat_too(with_config):
    text = "What is 17 + 25?"
    model = with_config("demo-gpt-oss", do_sample=True, temperature=3.0, max_new_tokens=20)
    hot = cgpt.load("demo-gpt-oss", threads=1).chat().send(text, temperature=3.0, max_new_tokens=20, seed=5)
    assert model.chat().send(text, seed=5).raw_text == hot.raw_text and hot.completion_tokens == 20
    assert model.chat().send(text, temperature=0, max_new_tokens=100).text == "42"
    assert "".join(delta.text for delta in model.chat().run_stream(text, temperature=0, max_new_tokens=100))


def test_as_published():
    assert cgpt.load("demo-gpt-oss").sampling_defaults == {"temperature": 1.0}
    assert cgpt.load("demo-gpt2").sampling_defaults == {}


def test_verbose_says_what_was_chosen(with_config, capsys):
    directory = with_config("demo-gpt2", do_sample=True, top_p=0.5).directory
    command = ["generate", "--model", str(directory), "--max-new-tokens", "1", "--verbose", "ROMEO:"]
    assert cli.main(command) == 0
    assert capsys.readouterr().err == (
        "cgpt: sampling: max_new_tokens 1, temperature 1, top_p 0.5 (temperature, top_p from generation_config.json)\n"
    )
    assert cli.main([*command, "--temperature", "0", "--top-p", "1"]) == 0
    assert capsys.readouterr().err == "cgpt: sampling: max_new_tokens 1, temperature 0, top_p 1\n"
