"""The probe table of a report: every encoder that was probed, winners and losers alike."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

_ENCODERS = ("trained", "random init", "raw pixels")
_PROBES = ("linear", "knn", "attentive")
_TITLES = {"linear": "Linear", "knn": "kNN", "attentive": "Attentive"}

Row = Mapping[str, Any]


def _order(known: Sequence[str], names: Sequence[str]) -> list[str]:
    """Unique names, the known ones first and in their order."""
    return [n for n in known if n in names] + [n for n in dict.fromkeys(names) if n not in known]


def _usable(rows: Sequence[Any]) -> list[Row]:
    needed = ("encoder", "probe", "num_labels", "accuracy_mean")
    return [r for r in rows if isinstance(r, Mapping) and all(k in r for k in needed)]


def _spread(row: Row) -> float:
    return float(row.get("accuracy_std") or 0.0)


def _percent(value: float) -> str:
    return f"{value:.1f}"


def _accuracy(row: Row) -> str:
    several = row.get("seeds", 1) > 1
    return _percent(row["accuracy_mean"]) + (f" ± {_percent(_spread(row))}" if several else "")


def _dot(row: Row, colour: int) -> str:
    """Mean and spread on a line from 0 to 100 %, with a tick at chance."""
    width = 160.0

    def x(percent: float) -> str:
        return f"{4 + min(max(percent, 0.0), 100.0) / 100.0 * (width - 8):.1f}"

    mean, spread, chance = float(row["accuracy_mean"]), _spread(row), row.get("chance")
    tick = f'<line class="chance" x1="{x(chance)}" x2="{x(chance)}" y1="1" y2="11"/>' if chance is not None else ""
    return (
        f'<svg class="s{colour}" viewBox="0 0 {width:.0f} 12" aria-hidden="true" preserveAspectRatio="none">'
        f'<line class="track" x1="4" x2="{width - 4:.0f}" y1="6" y2="6"/>{tick}'
        f'<line class="spread" x1="{x(mean - spread)}" x2="{x(mean + spread)}" y1="6" y2="6"/>'
        f'<line class="mean" x1="{x(mean)}" x2="{x(mean)}" y1="6" y2="6"/></svg>'
    )


def probe_tile(rows: Sequence[Any]) -> tuple[str, str, str] | None:
    """(label, value, note) for the head of the report: the linear probe, else the first, with the most labels."""
    rows = _usable(rows)
    trained = [r for r in rows if r["encoder"] == "trained"]
    if not trained:
        return None
    probe = _order(_PROBES, [r["probe"] for r in trained])[0]
    best = max((r for r in trained if r["probe"] == probe), key=lambda r: r["num_labels"])
    same = [r for r in rows if (r["probe"], r["num_labels"]) == (probe, best["num_labels"])]
    random = next((f"random init {_percent(r['accuracy_mean'])}" for r in same if r["encoder"] == "random init"), "")
    chance = f"chance {_percent(best['chance'])}" if best.get("chance") is not None else ""
    return f"{_TITLES.get(probe, probe)} probe, %", _accuracy(best), " · ".join(filter(None, (random, chance)))


def _comparison(cells: Mapping[tuple[str, str, int], Row], columns: Sequence[tuple[str, int]]) -> str:
    """Where the trained encoder is ahead of a random one, and where it is not, by name."""
    ahead, not_ahead = [], []
    for probe, labels in columns:
        a, b = cells.get(("trained", probe, labels)), cells.get(("random init", probe, labels))
        if a is None or b is None:
            continue
        clear = a["accuracy_mean"] - b["accuracy_mean"] > _spread(a) + _spread(b)
        (ahead if clear else not_ahead).append(f"{_TITLES.get(probe, probe)} with {labels:,}\u00a0labels")
    if not ahead and not not_ahead:
        return ""
    count = f"{len(ahead)} of {len(ahead + not_ahead)} columns"
    text = f"The trained encoder is ahead of random init by more than both spreads in {count}."
    return f"{text} Not in: {'; '.join(not_ahead)}." if not_ahead else text


def _facts(rows: Sequence[Row]) -> str:
    """Test videos, seeds and chance, as one value or a range."""

    def span(key: str, form: Any) -> str:
        values = sorted({r[key] for r in rows if r.get(key) is not None})
        return "" if not values else form(values[0]) + (f" to {form(values[-1])}" if len(values) > 1 else "")

    tests, seeds = span("num_test", lambda v: f"{v:,}"), span("seeds", str)
    chance = span("chance", lambda v: f"{_percent(v)}\u00a0%")
    parts = ["Accuracy of frozen features in %"]
    if seeds:
        parts.append("one seed" if seeds == "1" else f"mean ± standard deviation over {seeds} seeds")
    if tests:
        parts.append(f"{tests} test videos")
    return ", ".join(parts) + "." + (f" Chance: {chance} (the tick on the lines)." if chance else "")


def probe_section(rows: Sequence[Any]) -> str:
    """HTML of the table: a row an encoder, a column a probe and label budget; '' without rows."""
    rows = _usable(rows)
    if not rows:
        return ""
    cells = {(r["encoder"], r["probe"], r["num_labels"]): r for r in rows}
    encoders = _order(_ENCODERS, [r["encoder"] for r in rows])
    probes = _order(_PROBES, [r["probe"] for r in rows])
    budgets = {p: sorted({r["num_labels"] for r in rows if r["probe"] == p}) for p in probes}
    columns = [(p, n) for p in probes for n in budgets[p]]
    best = {c: max(r["accuracy_mean"] for r in rows if (r["probe"], r["num_labels"]) == c) for c in columns}

    top = "".join(
        f'<th scope="colgroup" colspan="{len(budgets[p])}">{html.escape(_TITLES.get(p, p))}</th>' for p in probes
    )
    second = "".join(f'<th scope="col">{n:,} labels</th>' for _, n in columns)
    body = ""
    for encoder in encoders:
        colour = {"trained": 1, "random init": 2, "raw pixels": 5}.get(encoder, 4)
        body += f'<tr><th scope="row">{html.escape(encoder)}</th>'
        for column in columns:
            row = cells.get((encoder, *column))
            if row is None:
                body += '<td class="soft">not run</td>'
                continue
            text = _accuracy(row)
            text = f"<b>{text}</b>" if math.isclose(row["accuracy_mean"], best[column]) else text
            body += f"<td>{text}{_dot(row, colour)}</td>"
        body += "</tr>"
    return (
        f'<p class="soft">{html.escape(_facts(rows))} Bold: best of a column.</p>'
        f'<div class="scroll"><table class="probes"><thead><tr><th rowspan="2">Encoder</th>{top}</tr>'
        f"<tr>{second}</tr></thead><tbody>{body}</tbody></table></div>"
        f"<p>{html.escape(_comparison(cells, columns))}</p>{_all_rows(rows)}"
    )


def _all_rows(rows: Sequence[Row]) -> str:
    """Every field of every row, folded: among them the settings that were selected."""
    keys = list(dict.fromkeys(k for r in rows for k in r))
    head = "".join(f'<th scope="col">{html.escape(k)}</th>' for k in keys)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_plain(r.get(k, '')))}</td>" for k in keys) + "</tr>" for r in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<details><summary>All rows, with selected settings</summary><div class="scroll">{table}</div></details>'


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
