"""Figures as people read them."""

from cgpt.evolution.verdict import percent


def shown(value: float, unit: str) -> str:
    """value in `unit`: "s" (seconds), "B" (bytes), "GiB", "parameters", "share", "" and others, which follow it."""
    if unit == "s":
        return _scaled(value, "s", ((1, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n")))
    if unit in ("B", "FLOP"):
        return _scaled(value, unit, ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")))
    if unit == "parameters":
        return _scaled(value, "", ((1e9, "B"), (1e6, "M"), (1e3, "K"), (1, ""))).rstrip()
    if unit == "share":
        return percent(value)
    text = f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    return f"{text} {unit}".rstrip()


def _scaled(value: float, unit: str, prefixes: tuple[tuple[float, str], ...]) -> str:
    if not value:
        return f"0 {unit}".rstrip()
    scale, prefix = next((p for p in prefixes if value >= p[0]), prefixes[-1])
    number = round(value / scale, 6)
    digits = 0 if number >= 100 or number == int(number) else 1 if number >= 10 else 2
    return f"{number:.{digits}f} {prefix}{unit}".rstrip()
