"""Scores: one number of one evaluation for one encoder, with its uncertainty. Every protocol gives a list of them.

A score is a plain dict, as it stands in scores.json and as `vjepa tables` reads it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

Score = dict[str, Any]
OnScore = Callable[[Score], None]


def score(
    benchmark: str,
    metric: str,
    encoder: str,
    values: Sequence[float],
    *,
    count: int,
    interval: tuple[float, float] | None = None,
    unit: str = "%",
    higher_is_better: bool = True,
    chance: float | None = None,
    note: str = "",
) -> Score:
    """One row.

    Args:
      benchmark, metric: say "davis2017" and "J&F"; a metric's name holds what it depends on ("skill at 4 tubelets").
      encoder: "trained", or the name of a control (evals.controls).
      values: one a seed; their mean is the value.
      count: videos, objects or pairs that were scored.
      interval: 95 %, by `bootstrap`; None: Student's t over the seeds where there are several, none for one.
      unit: "%" for shares of 100, "" for pure numbers.
      chance: the value of a guess, None where there is none.
      note: how a setting was chosen, or on what the number does not stand.

    Returns:
      "benchmark", "metric", "encoder", "value", "low", "high" (None without an interval), "seeds", "values", "count",
      "unit", "higher_is_better", "chance", "note".

    Raises:
      ValueError: no values, or a value that is not finite.
    """
    numbers = np.asarray(values, np.float64)
    if not numbers.size or not np.isfinite(numbers).all():
        raise ValueError(f"{benchmark}, {metric}, {encoder}: values {list(values)} must be finite and at least one")
    if interval is None and len(numbers) > 1:
        half = stats.t.ppf(0.975, len(numbers) - 1) * numbers.std(ddof=1) / np.sqrt(len(numbers))
        interval = (numbers.mean() - half, numbers.mean() + half)
    low, high = (None, None) if interval is None else map(float, interval)
    return {
        "benchmark": benchmark,
        "metric": metric,
        "encoder": encoder,
        "value": float(numbers.mean()),
        "low": low,
        "high": high,
        "seeds": len(numbers),
        "values": numbers.tolist(),
        "count": int(count),
        "unit": unit,
        "higher_is_better": higher_is_better,
        "chance": chance,
        "note": note,
    }


def bootstrap(
    statistic: Callable[[np.ndarray], float], count: int, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of `statistic(rows)` over resampled rows (videos, pairs) 0 ... count - 1.

    Rows that belong together (frames of a video, objects of a scene) must be one row. Values that are not finite (a
    resample without one of the classes) are left out.

    Raises:
      ValueError: no rows, or no resample with a finite value.
    """
    if count < 1:
        raise ValueError("a bootstrap needs at least one row")
    rng = np.random.default_rng(seed)
    values = np.asarray([statistic(rng.integers(0, count, count)) for _ in range(resamples)], np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        raise ValueError(f"no resample of {count} rows has a finite value")
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def mean_interval(items: np.ndarray, *, scale: float = 1.0, seed: int = 0) -> tuple[float, float]:
    """`bootstrap` of the mean of one value an item, times `scale`."""
    items = np.asarray(items, np.float64)
    return bootstrap(lambda rows: scale * float(items[rows].mean()), len(items), seed=seed)


def format_scores(scores: Sequence[Score]) -> str:
    """Scores as an aligned Markdown table."""
    head = ["benchmark", "metric", "encoder", "value", "95 %", "seeds", "chance", "of", "note"]
    cells = [
        [
            s["benchmark"],
            s["metric"],
            s["encoder"],
            _number(s["value"], s["unit"]),
            "" if s["low"] is None else f"{_number(s['low'], s['unit'], '')} to {_number(s['high'], s['unit'])}",
            str(s["seeds"]),
            "" if s["chance"] is None else _number(s["chance"], s["unit"]),
            str(s["count"]),
            s["note"],
        ]
        for s in scores
    ]
    return markdown([head, *cells], numeric={3, 4, 5, 6, 7})


def markdown(rows: Sequence[Sequence[str]], numeric: set[int] | frozenset[int] = frozenset()) -> str:
    """An aligned Markdown table, which reads as well on a terminal: a head and its lines; `numeric` columns right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(values: Sequence[str]) -> str:
        padded = (
            v.rjust(w) if i in numeric else v.ljust(w) for i, (v, w) in enumerate(zip(values, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (w - 1) + (":" if i in numeric else "-") for i, w in enumerate(widths)]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])


def _number(value: float, unit: str, shown: str | None = None) -> str:
    shown = unit if shown is None else shown
    return f"{value:.1f}{' ' if shown else ''}{shown}" if abs(value) >= 10 or unit == "%" else f"{value:.3f}{shown}"
