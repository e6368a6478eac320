"""The evaluations of a report: RUN/evals/<config>/scores.json as tables, one a protocol and benchmark."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vjepa_jax.training.charts import Chart

_FIRST = ("trained", "random init", "raw pixels")
_COLOURS = {"trained": 1, "random init": 2, "raw pixels": 5}
_SHOWN = 10  # rows of a table; protocols give first what tells the most, and more are folded
ONLINE = "eval/"  # what metrics of evaluations during training begin with

Row = Mapping[str, Any]


def read_evaluations(workdir: Path, problems: list[str]) -> list[dict[str, Any]]:
    """What lies in evals/*/scores.json, by name; a file that cannot be read is named in `problems`."""
    found = []
    for path in sorted((workdir / "evals").glob("*/scores.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            parts = [part for part in record["protocols"] if isinstance(part["scores"], list)]
            found.append({"name": path.parent.name} | record | {"protocols": parts})
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"evals/{path.parent.name}/scores.json could not be read ({error}).")
    return found


def evals_section(records: Sequence[Mapping[str, Any]]) -> str:
    """HTML of all evaluations, or '' without one."""
    return "".join(_evaluation(record) for record in records)


def online_charts(names: Sequence[str]) -> list[Chart]:
    """A chart a metric that was evaluated during training."""
    return [Chart(_title(n), ((n, "trained", False),)) for n in sorted(names) if n.startswith(ONLINE)]


def _title(name: str) -> str:
    return name.removeprefix(ONLINE).replace("_", " ").replace("/", ": ", 1)


def _evaluation(record: Mapping[str, Any]) -> str:
    facts = [f"step {record['step']:,}" if isinstance(record.get("step"), int) else "", str(record.get("date", ""))]
    facts += [f"vjepa_jax {record['version']}" if "version" in record else "", str(record.get("devices", ""))]
    tables = "".join(_protocol(part) for part in record["protocols"])
    command = record.get("command")
    shown = f"<pre>{html.escape(str(command))}</pre>" if command else ""
    return (
        f"<h3>{html.escape(str(record['name']))}</h3>"
        f'<p class="soft">{html.escape(" · ".join(filter(None, facts)))}</p>{tables}'
        f"<details><summary>Command and settings of {html.escape(str(record['name']))}</summary>{shown}"
        f"{''.join(_settings(part) for part in record['protocols'])}</details>"
    )


def _settings(part: Mapping[str, Any]) -> str:
    values = part.get("config") or {}
    text = ", ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
    head = f"{part['protocol']} ({part.get('hash', '')})"
    return f'<p class="soft"><b>{html.escape(head)}</b> {html.escape(text)}</p>'


def _protocol(part: Mapping[str, Any]) -> str:
    rows = [r for r in part["scores"] if isinstance(r, Mapping) and {"metric", "encoder", "value"} <= r.keys()]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row.get("benchmark", part["protocol"])), []).append(row)
    facts = f"{part['protocol']}, {part.get('seconds', 0):.0f} s, protocol {part.get('hash', '')}"
    if part.get("cut"):
        facts += "; cut off when its time was up: what was not reached is missing"
    body = "".join(_table(name, group) for name, group in groups.items())
    return f'{body or "<p>No score.</p>"}<p class="soft">{html.escape(facts)}</p>'


def _table(benchmark: str, rows: Sequence[Row]) -> str:
    names = [str(r["encoder"]) for r in rows]
    encoders = [n for n in _FIRST if n in names] + [n for n in dict.fromkeys(names) if n not in _FIRST]
    metrics = list(dict.fromkeys(str(r["metric"]) for r in rows))
    cells = {(str(r["metric"]), str(r["encoder"])): r for r in rows}
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in encoders)
    lines = []
    for metric in metrics:
        own = [cells[metric, e] for e in encoders if (metric, e) in cells]
        line = f'<tr><th scope="row">{_metric(metric, own)}</th>'
        line += "".join(_cell(cells.get((metric, e)), e) for e in encoders)
        lines.append(f"{line}<td>{_chance(own)}</td></tr>")

    def table(some: Sequence[str]) -> str:
        return (
            f'<div class="scroll"><table class="scores"><thead><tr><th scope="col">{html.escape(benchmark)}</th>{head}'
            f'<th scope="col">chance</th></tr></thead><tbody>{"".join(some)}</tbody></table></div>'
        )

    shown = _SHOWN if len(lines) > _SHOWN + 2 else len(lines)
    rest = lines[shown:]
    folded = f"<details><summary>{len(rest)} more rows of {html.escape(benchmark)}</summary>{table(rest)}</details>"
    return table(lines[:shown]) + (folded if rest else "")


def _metric(metric: str, rows: Sequence[Row]) -> str:
    unit = next((str(r["unit"]) for r in rows if r.get("unit")), "")
    lower = any(r.get("higher_is_better") is False for r in rows)
    notes = list(dict.fromkeys(str(r["note"]) for r in rows if r.get("note")))
    counts = sorted({r["count"] for r in rows if isinstance(r.get("count"), int)})
    notes += [f"of {counts[0]:,}" if len(counts) == 1 else f"of {counts[0]:,} to {counts[-1]:,}"] if counts else []
    text = f"{metric}{f', {unit}' if unit else ''}{' (lower is better)' if lower else ''}"
    return f"{html.escape(text)}<small>{html.escape('; '.join(notes))}</small>"


def _cell(row: Row | None, encoder: str) -> str:
    if row is None:
        return "<td></td>"
    value = _number(row["value"], row.get("unit"))
    value = f"<b>{value}</b>" if encoder == "trained" else value
    interval = ""
    if row.get("low") is not None and row.get("high") is not None:
        low, high = (_number(row[key], row.get("unit")) for key in ("low", "high"))
        interval = f"<small>{low} to {high}</small>"
    return f'<td class="s{_COLOURS.get(encoder, 0)}">{value}{interval}</td>'


def _chance(rows: Sequence[Row]) -> str:
    known = sorted({r["chance"] for r in rows if r.get("chance") is not None})
    return _number(known[0], next((r.get("unit") for r in rows), "")) if known else ""


def _number(value: Any, unit: Any) -> str:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return html.escape(str(value))
    if unit == "%" or abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:.1g}"
