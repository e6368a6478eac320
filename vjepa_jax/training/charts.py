"""Line charts of a report as inline SVG: readable without a script, with values under the pointer with one.

A chart is a <figure> whose legend shows the last values; the page's script (report_page.SCRIPT) replaces them by the
values at the pointer, for all charts at once, from the numbers embedded in each figure.
"""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 380, 190
LEFT, RIGHT, TOP, BOTTOM = 42, 12, 8, 22
_BUCKETS = 240  # points of a drawn line; more would be finer than a pixel


@dataclass(frozen=True)
class Line:
    """A line of a chart. steps ascend; values are finite. low and high are the extremes where points were merged."""

    label: str
    steps: list[int]
    values: list[float]
    low: list[float]
    high: list[float]
    last: float  # as logged, not merged
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """What to draw: `keys` are (metric, label, dashed); `limits` are (label, value) as dotted lines."""

    title: str
    keys: tuple[tuple[str, str, bool], ...]
    percent: bool = False
    digits: int = 4  # significant digits of values
    zero: bool = False  # the linear axis starts at 0
    scale: str = "linear"  # linear; either (a button switches, linear first); log (a button switches, log first)
    note: str = ""


def number(value: float | None, digits: int = 4) -> str:
    """A value with so many significant digits: 1234567 -> 1,234,567; 0.51234 -> 0.5123; 0.000123 -> 1.23e-4."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        text = f"{value:.{digits}g}"
        return f"{value:.0f}" if "e" in text else text
    if 1e4 <= abs(value) < 1e7 or (abs(value) < 1e15 and value == int(value)):
        return f"{value:,.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent):+d}"


def line(records: Sequence[Mapping[str, Any]], key: str, label: str, dashed: bool = False) -> Line | None:
    """The finite values of a metric over the steps, merged to at most 240 points; None if there are none."""
    points = [(r["step"], r[key]) for r in records if isinstance(r.get(key), (int, float)) and math.isfinite(r[key])]
    if not points:
        return None
    size = max(math.ceil(len(points) / _BUCKETS), 1)
    buckets = [points[i : i + size] for i in range(0, len(points), size)]
    return Line(
        label,
        [bucket[-1][0] for bucket in buckets],
        [math.fsum(v for _, v in bucket) / len(bucket) for bucket in buckets],
        [min(v for _, v in bucket) for bucket in buckets],
        [max(v for _, v in bucket) for bucket in buckets],
        points[-1][1],
        dashed,
    )


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers within [low, high]."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    if high < 3 * low:
        return _ticks(low, high, 4)
    a, b = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if b - a <= 2 else (1,)
    every = max((b - a) // 5, 1)
    ticks = [m * 10.0**p for p in range(a, b + 1) if (p - a) % every == 0 for m in factors]
    return [t for t in ticks if low * 0.999 <= t <= high * 1.001] or [low, high]


def short(value: float) -> str:
    """Few characters, for axes: 20000 -> 20k, 3840000 -> 3.84M."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / {'G': 1e9, 'M': 1e6, 'k': 1e3}[letter]:.4g}{letter}"
    return f"{value:.4g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def _range(lines: Sequence[Line], limits: Sequence[tuple[str, float]], zero: bool) -> tuple[float, float]:
    # Limits far away (the feature dimension, often) would flatten the lines: they are drawn if they happen to fit.
    low, high = min(min(x.low) for x in lines), max(max(x.high) for x in lines)
    near = [v for _, v in limits if low - 2 * (high - low) <= v <= high + 2 * (high - low)]
    low, high = min([low, *near]), max([high, *near])
    if high - low <= 1e-9 * max(abs(high), 1e-12):
        low, high = low - max(abs(low), 1e-6) * 0.5, high + max(abs(high), 1e-6) * 0.5
    pad = 0.05 * (high - low)
    low = 0.0 if zero and low >= 0 else low - pad
    return low, high + pad


def _plot(
    lines: Sequence[Line],
    limits: Sequence[tuple[str, float]],
    x: Any,
    span: tuple[float, float],
    log: bool,
    percent: bool,
) -> str:
    """Axis labels, grid and lines for one scale."""
    low, high = span
    if log:
        low, high = math.log10(low), math.log10(high)

    def y(value: float) -> float:
        position = ((math.log10(value) if log else value) - low) / (high - low)
        return HEIGHT - BOTTOM - position * (HEIGHT - TOP - BOTTOM)

    out = []
    for tick in _log_ticks(*span) if log else _ticks(*span, 4):
        label = f"{tick * 100:.4g}%" if percent else short(tick)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        out.append(f'<text class="ytick" x="{LEFT - 6}" y="{y(tick) + 3.5:.1f}">{label}</text>')
    for label, value in limits:
        if span[0] <= value <= span[1]:
            out.append(
                f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
                f'<text class="limit" x="{WIDTH - RIGHT}" y="{y(value) - 4:.1f}">{html.escape(label)}</text>'
            )
    for i, one in enumerate(lines):
        if one.low != one.high:
            upper = [f"{x(s):.1f} {y(v):.1f}" for s, v in zip(one.steps, one.high, strict=True)]
            lower = [f"{x(s):.1f} {y(v):.1f}" for s, v in zip(one.steps, one.low, strict=True)]
            out.append(f'<path class="band s{i + 1}" d="M{"L".join(upper + lower[::-1])}Z"/>')
    for i, one in reversed(list(enumerate(lines))):
        dashed = " dashed" if one.dashed else ""
        points = [f"{x(s):.1f} {y(v):.1f}" for s, v in zip(one.steps, one.values, strict=True)]
        if len(points) == 1:
            out.append(f'<circle class="dot s{i + 1}" cx="{x(one.steps[0]):.1f}" cy="{y(one.values[0]):.1f}" r="3"/>')
        else:
            out.append(f'<path class="line s{i + 1}{dashed}" d="M{"L".join(points)}"/>')
    return "".join(out)


def render(
    chart: Chart,
    records: Sequence[Mapping[str, Any]],
    steps: tuple[int, int],
    limits: Sequence[tuple[str, float]] = (),
) -> str:
    """HTML of a chart over steps [first, last], or '' if none of its metrics was logged."""
    lines = [x for key, label, dashed in chart.keys if (x := line(records, key, label, dashed)) is not None]
    if not lines:
        return ""
    first, last = steps if steps[1] > steps[0] else (steps[0] - 1, steps[0] + 1)

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    low, high = _range(lines, limits, chart.zero)
    smallest = min(min(one.low) for one in lines)
    can_log = smallest > 0 and chart.scale != "linear"
    use_log = chart.scale == "log" and can_log
    plots = f'<g class="lin"{" hidden" if use_log else ""}>' + (
        _plot(lines, limits, x, (low, high), False, chart.percent) + "</g>"
    )
    if can_log:
        largest = max(max(one.high) for one in lines)
        ratio = max((largest / smallest) ** 0.05, 1.02)
        span = (smallest / ratio, largest * ratio)
        plots += f'<g class="log"{"" if use_log else " hidden"}>'
        plots += _plot(lines, limits, x, span, True, chart.percent) + "</g>"
    ticks = "".join(
        f'<text class="xtick" x="{x(t):.1f}" y="{HEIGHT - 6}">{short(t)}</text>'
        for t in _ticks(first, last, 5)
        if first <= t <= last and t == int(t)
    )
    return _figure(chart, lines, plots + ticks, (first, last), can_log, use_log)


def _figure(
    chart: Chart, lines: Sequence[Line], drawing: str, steps: tuple[int, int], can_log: bool, use_log: bool
) -> str:
    def text(value: float) -> str:
        return f"{value * 100:.3g}%" if chart.percent else number(value, chart.digits)

    title = html.escape(chart.title)
    legend = "".join(
        f'<li><i class="s{i + 1}{" dashed" if one.dashed else ""}"></i>{html.escape(one.label)} '
        f"<output>{text(one.last)}</output></li>"
        for i, one in enumerate(lines)
    )
    button = f'<button type="button" aria-pressed="{str(use_log).lower()}">log</button>' if can_log else ""
    spoken = "; ".join(
        f"{one.label} from {text(one.values[0])} to {text(one.last)} at step {one.steps[-1]}" for one in lines
    )
    data = {
        "x": [LEFT, WIDTH - RIGHT],
        "steps": steps,
        "percent": chart.percent,
        "digits": chart.digits,
        "series": [{"s": one.steps, "v": [float(f"{v:.{chart.digits + 1}g}") for v in one.values]} for one in lines],
    }
    embedded = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    note = f"<p>{html.escape(chart.note)}</p>" if chart.note else ""
    return (
        f'<figure class="chart"><figcaption><h3>{title}</h3><span class="at"></span>{button}</figcaption>'
        f'<ul class="legend">{legend}</ul>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{title}: {html.escape(spoken)}">'
        f'{drawing}<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" hidden></line></svg>{note}'
        f'<script type="application/json">{embedded}</script></figure>'
    )
