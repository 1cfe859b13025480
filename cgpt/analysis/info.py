"""What cgpt.models.description.describe() found, as text for a terminal: for `cgpt info`."""

from collections.abc import Callable, Mapping
from typing import Any

from cgpt.generation.sampling import checkpoint_defaults
from cgpt.models.streaming_speed import said


def render(facts: Mapping[str, Any]) -> str:
    """What describe() found, as text for a terminal."""
    shape, parameters, memory, here = (facts[key] for key in ("shape", "parameters", "memory", "here"))
    per_token = facts["bytes"]["per_token"]
    read = {part: n for part, n in per_token.items() if part != "cache"}
    parts = {part: memory[part] for part in ("weights", "cache", "runtime")}
    active = f"{count(parameters['active'])} of them active per token"
    cache = f"{memory['kv_cache_dtype']} cache"
    published = "" if facts["source"] == "files" else " (as published)"
    lines = [
        ("architecture", _architecture(facts["architecture"], shape)),
        ("parameters", f"{count(parameters['total'])}, {active}"),
        ("", _list(parameters["parts"], count)),
        ("on disk", size(facts["bytes"]["disk"]) + published),
        ("read per token", f"{size(sum(read.values()))}: {_list(read, size)}"),
        ("", f"and {size(per_token['cache'])} of {cache} at the end of {memory['context']:,} positions"),
        ("memory", f"{size(memory['total'])} at a context of {memory['context']:,}: {_list(parts, size)}"),
        ("sampling", _sampling(facts["generation_config"])),
        ("here", _verdict(here, shape["context"])),
        *([("streamed", _streamed(facts["streaming"]))] if facts["streaming"] else []),
    ]
    return "\n".join([facts["name"], *(f"  {label:<16}{text}" for label, text in lines)])


def _sampling(generation_config: Mapping[str, Any]) -> str:
    given = checkpoint_defaults(generation_config)
    defaults = {"temperature": 0} | {name: value for name, value in given.items() if value is not None}
    return ", ".join(f"{name} {value:g}" for name, value in defaults.items()) + (
        " (generation_config.json)" if given else ""
    )


def _architecture(name: str, shape: Mapping[str, int]) -> str:
    shared = f" on {shape['kv_heads']} key/value heads" if shape["kv_heads"] != shape["heads"] else ""
    mlp = f"MLP of {shape['mlp_width']:,}"
    if "experts" in shape:
        mlp = f"{shape['experts_per_token']} of {shape['experts']} experts of {shape['mlp_width']:,}"
    text = f"{name}, {shape['layers']} layers, width {shape['width']:,}, {shape['heads']} heads{shared}"
    text += f" of {shape['head_dim']}, {mlp}, vocabulary {shape['vocabulary']:,}, context {shape['context']:,}"
    if shape["sliding_layers"]:
        text += f" ({shape['sliding_layers']} layers see {shape['window']:,})"
    return text


def _verdict(here: Mapping[str, Any], limit: int) -> str:
    if here["available"] is None:
        return "how much memory is available cannot be told on this system"
    text = f"{size(here['available'])} available: "
    if here["fits"]:
        text += "fits"
    elif here["max_context"]:
        text += "does not fit"
    else:
        return text + "does not fit at any context"
    return text + f"; longest context that fits: {here['max_context']:,} of {limit:,}"


def _streamed(streaming: Mapping[str, Any]) -> str:
    """How the model runs with its experts on the disk."""
    least = f"the least memory that works is {size(streaming['least'])}"
    if streaming["memory"] is None:
        return f"experts read from the files as they are chosen: {least}"
    rates, hits, read = streaming["rates"], streaming["hit_rates"], streaming["disk_bytes_per_token"]
    lines = [f"{streaming['resident']:.0%} of the experts in memory within {size(streaming['memory'])}; {least}"]
    if streaming["resident"] < 1:
        lines += [
            f"{hits[kind]:.0%} of the choices hit and {size(round(read[kind]))} per token come from the disk {when}"
            for kind, when in {
                "uniform": "if all are equally likely",
                "text": "if they are as skewed as on text",
            }.items()
        ]
    if rates:
        source = "measured" if rates["measured"] else "assumed, since there are no files to measure"
        speed = said(streaming["tokens_per_second"])
        lines.insert(0, f"{speed} from a disk of {size(round(rates['disk']))}/s ({source})")
    return f"\n{'':18}".join(lines)


def _list(numbers: Mapping[str, int], show: Callable[[int], str]) -> str:
    """The numbers by name, without those below a thousandth of their sum."""
    least = sum(numbers.values()) / 1000
    return ", ".join(f"{name} {show(number)}" for name, number in numbers.items() if number >= least)


def plural(number: int, what: str) -> str:
    """A number of things: "1 thread", "2 threads"."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def count(number: int) -> str:
    """A number with its unit of thousands, millions or billions: "20.91 B"."""
    return scaled(number, "")


def size(number: int) -> str:
    """Bytes, such as "13.76 GB"."""
    return scaled(number, "B")


def scaled(number: int, unit: str) -> str:
    """A number of a unit, in thousands, millions or billions of it: "3.11 GFLOP"."""
    for power, prefix in ((9, "G" if unit else "B"), (6, "M"), (3, "k" if unit else "K")):
        if number >= 10**power:
            return f"{number / 10**power:.2f} {prefix}{unit}"
    return f"{number} {unit}".strip()
