"""Plots as inline SVG: a few dozen lines instead of a library, so that a report needs no extra, follows the page's
colours in light and dark, and can be read as text. Every series carries its figures in `data-points`."""

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

WIDTH, HEIGHT = 500, 310
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 44
Series = tuple[str, Sequence[tuple[float, float]]]  # its name, its points
Show = Callable[[float], str]


def lines(series: Sequence[Series], x_label: str, y_label: str, show_x: Show, show_y: Show) -> str:
    """Curves on logarithmic axes. All x and y must be positive; a tick for each x that some series has, but for those
    too close to the one before."""
    xs = sorted({x for _, points in series for x, _ in points})
    ys = [y for _, points in series for _, y in points]
    at_x = _log_scale(xs[0], xs[-1], LEFT, WIDTH - RIGHT)
    low, high = min(ys), max(ys)
    at_y = _log_scale(low / 1.3, high * 1.3, HEIGHT - BOTTOM, TOP)
    parts = []
    for tick in _ticks(low / 1.3, high * 1.3):
        parts += [_line(LEFT, at_y(tick), WIDTH - RIGHT, at_y(tick), "grid")]
        parts += [_text(LEFT - 6, at_y(tick) + 4, show_y(tick), "end")]
    shown = -math.inf
    for x in xs:
        if at_x(x) - shown >= 46:
            parts += [_line(at_x(x), HEIGHT - BOTTOM, at_x(x), HEIGHT - BOTTOM + 4, "axis")]
            parts += [_text(at_x(x), HEIGHT - BOTTOM + 17, show_x(x), "middle")]
            shown = at_x(x)
    parts += [_line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "axis")]
    parts += [_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "middle")]
    for n, (name, points) in enumerate(series):
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="curve s{n}" points="{path}" {_data(name, points)}/>')
        for x, y in points:
            parts.append(_dot(n, at_x(x), at_y(y), 'r="3.5"', f"{name}, {show_x(x)}: {show_y(y)}"))
    return _figure(y_label, "".join(parts), HEIGHT, [name for name, _ in series])


def stacked(rows: Sequence[tuple[str, str, Sequence[float]]], parts: Sequence[str], title: str, show: Show) -> str:
    """A bar for each row (label, note, values), of equal length: what share each part has."""
    out, height, left = [], 34 * len(rows) + 8, 104
    for i, (label, note, values) in enumerate(rows):
        y, x, total = 6 + 34 * i, float(left), sum(values)
        out += [_text(left - 8, y + 11, label, "end"), _text(left - 8, y + 23, note, "end", "note")]
        for n, (part, value) in enumerate(zip(parts, values, strict=True)):
            width = (WIDTH - RIGHT - left) * value / total
            hint = escape(f"{label}, {part}: {show(value)} ({value / total:.1%})")
            out.append(
                f'<rect class="bar s{n}" x="{x:.1f}" y="{y}" width="{width:.2f}" height="22" '
                f"{_data(f'{label}: {part}', [(0, value)])}><title>{hint}</title></rect>"
            )
            if width > 34:
                out.append(_text(x + width / 2, y + 15, f"{value / total:.0%}", "middle", "inside"))
            x += width
    return _figure(title, "".join(out), height, parts)


def spans(rows: Sequence[tuple[str, float, float]], names: tuple[str, str], title: str, show: Show) -> str:
    """A chart of rows (label, less, more): both values of each on one logarithmic axis, joined."""
    left, step = 104, 34
    height = step * len(rows) + BOTTOM - 8
    low, high = min(r[1] for r in rows) / 1.5, max(r[2] for r in rows) * 1.5
    at = _log_scale(low, high, left, WIDTH - RIGHT - 30)
    out = []
    for tick in _ticks(low, high):
        out += [_line(at(tick), 4, at(tick), height - 30, "grid"), _text(at(tick), height - 14, show(tick), "middle")]
    for i, (label, less, more) in enumerate(rows):
        y = 18 + step * i
        out += [_text(left - 8, y + 4, label, "end"), _line(at(less), y, at(more), y, "join")]
        for n, value in enumerate((less, more)):
            name = f"{label}: {names[n]}"
            out.append(_dot(n, at(value), y, f'r="6" {_data(name, [(0, value)])}', f"{name} {show(value)}"))
        out.append(_text(at(more) + 11, y + 4, f"{less / more:.0%}" if less < more else "all", "start", "note"))
    return _figure(title, "".join(out), height, names)


def interval(ratio: float, low: float, high: float, counted: float | None, start: float, end: float) -> str:
    """A ratio and what it may be, on an axis from `start` to `end`; a line where nothing is gained, a ring at what was
    counted."""
    width, height = 150, 18
    at = _log_scale(start, end, 8, width - 8)
    out = [_line(at(1), 0, at(1), height, "even"), _line(at(low), 9, at(high), 9, "range")]
    if counted:
        out.append(f'<circle class="counted" cx="{at(counted):.1f}" cy="9" r="5"/>')
    out.append(f'<circle class="dot s0" cx="{at(ratio):.1f}" cy="9" r="4" {_data("ratio", [(0, ratio)])}/>')
    return f'<svg class="interval" viewBox="0 0 {width} {height}" aria-hidden="true">{"".join(out)}</svg>'


# ------------------------------------------------------------------------------------------------------- pieces


def _log_scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """A function from values to coordinates on a logarithmic axis; a value outside lands on the border."""
    low, high = math.log(low), math.log(high)
    width = high - low or 1.0
    return lambda value: start + (end - start) * min(max((math.log(value) - low) / width, 0.0), 1.0)


def _ticks(low: float, high: float) -> Iterator[float]:
    """1, 10, 100 and so on; with 2 and 5 where there are few of them."""
    decades = math.log10(high / low)
    steps = (1,) if decades > 2.5 else (1, 3) if decades > 1.5 else (1, 2, 5)
    for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        yield from (step * 10.0**exponent for step in steps if low <= step * 10.0**exponent <= high)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _dot(n: int, x: float, y: float, attributes: str, hint: str) -> str:
    circle = f'<circle class="dot s{n}" cx="{x:.1f}" cy="{y:.1f}" {attributes}>'
    return f"{circle}<title>{escape(hint)}</title></circle>"


def _text(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _data(name: str, points: Sequence[tuple[float, float]]) -> str:
    text = " ".join(f"{x:g},{y:.9g}" for x, y in points)
    return f'data-series="{escape(name, quote=True)}" data-points="{text}"'


def _figure(title: str, drawing: str, height: int, names: Sequence[str]) -> str:
    key = "".join(f'<span class="key"><i class="s{n}"></i>{escape(name)}</span>' for n, name in enumerate(names))
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{drawing}</svg><div class="keys">{key}</div></figure>'
    )
