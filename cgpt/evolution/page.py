"""What was found, as one HTML file: no script, no font, no picture from anywhere else."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from cgpt.analysis.info import plural
from cgpt.evolution import charts
from cgpt.evolution.report import extremes, fact_text, pair, ratio, rooflines
from cgpt.evolution.units import shown
from cgpt.evolution.verdict import CONTRADICTED, HOLDS, NONE, NOTED, PARTLY, UNCLEAR, times

CLASSES = {HOLDS: "holds", PARTLY: "partly", CONTRADICTED: "against", NONE: "none", UNCLEAR: "none", NOTED: "none"}
Found = Mapping[str, Any]


def render(result: Found) -> str:
    """The dictionary of cgpt.evolution.session.run as a page."""
    return Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8")).substitute(
        css=Path(__file__).with_name("report.css").read_text(encoding="utf-8"),
        machine=_machine(result),
        glance="".join(map(_glance, result["steps"])),
        steps="".join(_step(step, result) for step in result["steps"]),
        version=escape(result["cgpt_version"]),
    )


def _machine(result: Found) -> str:
    s, (reads, peaks) = result["setting"], rooflines(result)
    facts = {
        "CPU": result["cpu_info"],
        "level": f"{result['level']}, {plural(result['threads'], 'thread')}",
        "memory read": f"{reads} GB/s",
        "products": f"{peaks} GFLOP/s {result['rooflines'][0]['dtype']}",
        "width": f"{s['width']:,}, {s['heads']} query heads on {s['kv_heads']} key/value heads of 64",
        "contexts": ", ".join(f"{n:,}" for n in s["contexts"]) + f"; prompts of {s['prompt']}",
        "measured": result["test_time"].replace("T", " ").replace("Z", " UTC"),
    }
    return "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items())


def _glance(step: Found) -> str:
    number = step["number"]
    return (
        f'<tr><td class="number">{number}</td><td><a href="#step-{number}">{escape(step["title"])}</a></td>'
        f"<td>{_chip(step['verdict'])}</td><td>{escape(extremes(step))}</td></tr>"
    )


def _step(step: Found, result: Found) -> str:
    note = f'<p class="note">{escape(step["note"])}</p>' if step["note"] else ""
    noisy = "".join(f'<p class="warning">Noisy: {escape(text)}.</p>' for text in step["warnings"])
    facts = "".join(f"<li>{escape(fact_text(fact).replace('->', '→'))}</li>" for fact in step["facts"])
    return (
        f'<section id="step-{step["number"]}"><h2><span class="number">{step["number"]}</span>{escape(step["title"])} '
        f'{_chip(step["verdict"])}</h2><p class="claim">Claimed: {escape(step["claim"])}.</p>'
        f'<p class="line">{escape(step["line"])}.</p>{_charts(step, result)}{_table(step)}'
        f'<ul class="facts">{facts}</ul>{note}{noisy}</section>'
    )


def _table(step: Found) -> str:
    if not step["cases"]:
        return ""
    ends = [end for case in step["cases"] for end in (case["low"], case["high"], case["counted"] or 1, 1)]
    low, high = min(ends) / 1.1, max(ends) * 1.1
    head = ("measured", "", "ratio", "", "counted", "old way", "new way", "bytes", "operations", "of them cache")
    rows = [head, *(_cells(case, low, high) for case in step["cases"])]
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    first, *others = zip(*columns, strict=True)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in others)
    return (
        f'<div class="wide"><table><thead><tr>{"".join(f"<th>{cell}</th>" for cell in first)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cells(case: Found, low: float, high: float) -> tuple[str, ...]:
    old, new = case["old"], case["new"]
    is_ratio = case["claim"] not in ("share", "portion")
    figures = (case["ratio"], case["low"], case["high"], case["counted"], low, high)
    return (
        escape(case["label"]),
        _chip(case["verdict"]),
        f'<span title="{escape(case["text"], quote=True)}">{escape(ratio(case))}</span>'
        + (f"<small>{case['low']:.2f} to {case['high']:.2f}</small>" if is_ratio else "<small>of the whole</small>"),
        charts.interval(*figures) if is_ratio else "",
        times(case["counted"]) if case["counted"] else "",
        *(f"{_time(way['median_s'])}<small>{escape(way['name'])}</small>" for way in (old, new)),
        *(
            pair(old[key], new[key], unit).replace(" > ", "<br>")
            for key, unit in (("bytes", "B"), ("flops", "FLOP"), ("cache_bytes", "B"))
        ),
    )


def _chip(verdict: str) -> str:
    return f'<span class="chip {CLASSES[verdict]}">{escape(verdict)}</span>'


# -------------------------------------------------------------------------------------------------------- charts


def _charts(step: Found, result: Found) -> str:
    draw = {4: _model_charts, 5: _attention_charts, 6: _cache_chart}.get(step["number"])
    found = draw(result) if draw else []
    return f'<div class="charts">{"".join(found)}</div>' if found else ""


def _attention_charts(result: Found) -> list[str]:
    """One layer's time against the context: decoding, and a prompt's last tokens."""
    by_number = {step["number"]: step["cases"] for step in result["steps"]}
    drawn = []
    prompt = result["setting"]["prompt"]
    for phase, title in (("decode", "One token, one layer"), ("prompt", f"{prompt} tokens, one layer")):
        series: dict[str, list[tuple[float, float]]] = {}
        for number in (5, 6):
            for case in by_number.get(number, ()):
                ways = (case["old"], case["new"]) if number == 5 else (case["new"],)
                if case["context"] is not None and case["phase"].startswith(phase):
                    for way in ways:
                        layers = 1 if number == 5 else 6 if "5 windows" in way["name"] else 2
                        name = way["name"] if number == 5 else f"{way['name']}: mean of {layers} layers"
                        series.setdefault(name, []).append((case["context"], way["median_s"] / layers))
        drawn.append(charts.lines(list(series.items()), "positions", title, _positions, _time))
    return drawn


def _cache_chart(result: Found) -> list[str]:
    title, curves = "Keys and values of a sequence, f16, in gpt-oss-20b's shape", list(result["caches"].items())
    return [charts.lines(curves, "positions", title, _positions, lambda y: shown(y, "B"))]


def _model_charts(result: Found) -> list[str]:
    models = {name: model["parameters"] for name, model in result["models"].items()}
    parts = ("embedding", "attention", "mlp", "norms", "unembedding")
    rows = [(name, _parameters(m["total"]), [m["parts"].get(part, 0) for part in parts]) for name, m in models.items()]
    met = [(name, model["active"], model["total"]) for name, model in models.items()]
    return [
        charts.stacked(rows, parts, "Where the parameters are", _parameters),
        charts.spans(met, ("active", "total"), "Parameters that a token meets, of all", _parameters),
    ]


def _time(seconds: float) -> str:
    return shown(seconds, "s").replace("us", "µs")


def _parameters(value: float) -> str:
    return shown(value, "parameters")


def _positions(x: float) -> str:
    return f"{x / 1024:g}k" if x >= 1024 and x % 1024 == 0 else f"{x:g}"
