"""`vjepa tables`: results of run folders beside the published numbers, as Markdown, HTML and LaTeX.

A table is a config file of experiments/tables: its columns say which of our scores and which published numbers they
hold. A column takes published numbers of the protocols it names and no others; where our own scores of a column were
measured by different settings, the table says so under it.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vjepa_jax import config_file
from vjepa_jax.config import ConfigError
from vjepa_jax.config_build import hint
from vjepa_jax.evals import results as results_lib
from vjepa_jax.evals import table_formats
from vjepa_jax.evals.controls import TRAINED
from vjepa_jax.evals.published import Published, published
from vjepa_jax.evals.results import Result
from vjepa_jax.training.files import write_bytes

FOLDER = Path("experiments/tables")
RECALL = "recall"
_WIDTH = 6  # columns of a table that no file lays out
_CAUTIONS = {"second-hand": "second-hand", "issue": "said in an issue", RECALL: "not checked against the source"}


@dataclasses.dataclass(frozen=True)
class Column:
    """One benchmark of a table.

    Attributes:
      title: of the head, with the metric where the table's title does not name it.
      benchmark, metric: of our scores; * and ? as in file names.
      published: (benchmark, metric, protocol) of the published numbers that may stand here.
      unit: numbers of another unit carry it.
      lower_is_better: said in the head.
      config: of `vjepa eval --config`, to which `--plan` adds the variant of a model's size unless it names one; ""
        where no file fills the column.
      options: that the command takes beside it.
      data: data sets by their names in datasets.csv.
      work: what `--plan` counts: "probe", "segmentation", "depth" or "finetune" (what the config trains), "features"
        (each clip encoded once), "none" (nothing worth counting), or "unknown".
      clips: for "features": clips encoded for a training and for a test video.
      frames, resolution: of these clips; resolution 0 is the model's own.
    """

    title: str
    benchmark: str
    metric: str
    published: tuple[tuple[str, str, str], ...] = ()
    unit: str = "%"
    lower_is_better: bool = False
    config: str = ""
    options: str = ""
    data: tuple[str, ...] = ()
    work: str = "unknown"
    clips: tuple[float, float] = (0.0, 0.0)
    frames: int = 16
    resolution: int = 0

    def holds(self, result: Result) -> bool:
        """Whether a score of ours belongs here."""
        row = result.score
        return fnmatch.fnmatchcase(row["benchmark"], self.benchmark) and fnmatch.fnmatchcase(row["metric"], self.metric)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of experiments/tables.

    Attributes:
      models: what `--plan` reckons with: members of models/family.py, and the variants of config files for each.
    """

    title: str
    columns: tuple[Column, ...]
    models: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Entry:
    """A number with the marks of its notes."""

    text: str
    marks: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """Ours and published; empty where there is none.

    `wanted`: ours would belong here (not so in rows of controls). `compared`: published ones would.
    """

    ours: tuple[Entry, ...]
    published: tuple[Entry, ...]
    wanted: bool = True
    compared: bool = True


@dataclasses.dataclass(frozen=True)
class Grid:
    """An assembled table: what the three renderings have in common."""

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, str, str, tuple[Cell, ...]], ...]  # model, size, encoder ("" for the model itself), cells
    notes: tuple[tuple[str, str], ...]  # mark, text
    commands: tuple[tuple[str, str], ...]  # what made a file of scores
    warnings: tuple[str, ...]


def load_table(name: str) -> tuple[str, Table]:
    """A table by name ("T1": experiments/tables/T1.py, here or beside the package) or by file.

    Raises:
      ConfigError: no such table, or a file that is none.
    """
    here, beside = FOLDER / f"{name}.py", Path(__file__).resolve().parents[2] / FOLDER / f"{name}.py"
    path = next((p for p in (Path(name), here, beside) if p.suffix == ".py" and p.is_file()), None)
    if path is None:
        known = sorted({p.stem for folder in (here.parent, beside.parent) for p in folder.glob("*.py")})
        raise ConfigError(
            f"no table {name!r}: there is {', '.join(known) or 'none here'}{hint(name, known)}, or a file"
        )
    return path.stem, config_file.load_groups(str(path), [], {"table": Table})["table"]


def table_names() -> list[str]:
    """The tables of experiments/tables, here or beside the package."""
    folders = (FOLDER, Path(__file__).resolve().parents[2] / FOLDER)
    return sorted({p.stem for folder in folders for p in folder.glob("*.py")})


def assemble(
    name: str, table: Table, results: Sequence[Result], numbers: Iterable[Published] | None = None, recall: bool = False
) -> Grid:
    """Rows of all models with a number in one of the columns, ours and published.

    Args:
      numbers: published ones; None: all of published.csv.
      recall: also those that were never checked.
    """
    numbers = [n for n in (published() if numbers is None else numbers) if recall or n.checked != RECALL]
    notes = _Notes()
    shown: list[list[Result]] = [_newest([r for r in results if c.holds(r)]) for c in table.columns]
    matched = [[n for n in numbers if (n.benchmark, n.metric, n.protocol) in c.published] for c in table.columns]
    rows = []
    for key in _keys(matched, shown):
        cells = []
        for column, ours, theirs in zip(table.columns, shown, matched, strict=True):
            mine = [r for r in ours if _key(r) == key]
            listed = [n for n in theirs if (n.model, n.size, "") == key]
            own = tuple(Entry(ours_text(r.score, column.unit), (notes.ours(r),)) for r in mine)
            printed = tuple(Entry(_published_text(n, column.unit), (notes.published(n),)) for n in listed)
            cells.append(Cell(own, printed, not key[2], bool(column.published) and not key[2]))
        rows.append((*key, tuple(cells)))
    warnings = [w for pair in zip(table.columns, shown, strict=True) if (w := _mixture(*pair, notes))]
    head = tuple(f"{c.title}{' (lower is better)' if c.lower_is_better else ''}" for c in table.columns)
    made = {f"{r.run}/{r.source}": _made(r) for column in shown for r in column if _made(r)}
    return Grid(name, table.title, head, tuple(rows), notes.all(), tuple(made.items()), tuple(warnings))


def others(tables: Sequence[Table], results: Sequence[Result]) -> list[Table]:
    """Tables of the scores that none of `tables` shows, so that nothing measured is left unseen: of a benchmark each,
    `_WIDTH` columns at the most."""
    columns = [column for table in tables for column in table.columns]
    left = [r for r in results if not any(column.holds(r) for column in columns)]
    escape = lambda text: re.sub(r"([*?\[])", r"[\1]", text)
    made = []
    for benchmark in dict.fromkeys(r.score["benchmark"] for r in left):
        rows = [r.score for r in left if r.score["benchmark"] == benchmark]
        units = list({row["metric"]: row.get("unit", "") for row in rows}.items())
        for start in range(0, len(units), _WIDTH):
            made.append(
                Table(
                    benchmark + (f" ({start // _WIDTH + 1})" if len(units) > _WIDTH else ""),
                    tuple(
                        Column(f"{metric}{f', {unit}' if unit else ''}", escape(benchmark), escape(metric), unit=unit)
                        for metric, unit in units[start : start + _WIDTH]
                    ),
                )
            )
    return made


def _keys(matched: list[list[Published]], shown: list[list[Result]]) -> list[tuple[str, str, str]]:
    """Rows (model, size, encoder): the V-JEPA family, then as in published.csv; our controls under their model."""
    ours = [_key(r) for column in shown for r in column]
    known = list(dict.fromkeys((n.model, n.size) for n in published()))
    models = {(n.model, n.size) for column in matched for n in column} | {key[:2] for key in ours}
    names = list(dict.fromkeys(name for name, _ in (*known, *sorted(models))))
    place = lambda pair: known.index(pair) if pair in known else len(known)
    models = sorted(models, key=lambda p: (not p[0].startswith("V-JEPA"), names.index(p[0]), place(p), p[1]))
    controls = list(dict.fromkeys(key for key in ours if key[2]))
    return [key for pair in models for key in ((*pair, ""), *(c for c in controls if c[:2] == pair))]


def _made(r: Result) -> str:
    """The command behind a score, with the version and step it was run at; "" where the file does not say."""
    facts = [f"step {r.step:,}"] if r.step is not None else []
    facts += [f"vjepa_jax {r.version}"] if r.version else []
    return r.command + (f"   ({', '.join(facts)})" if facts else "") if r.command else ""


def _key(result: Result) -> tuple[str, str, str]:
    encoder = result.score["encoder"]
    return result.model, result.size, "" if encoder == TRAINED else encoder


def _newest(found: list[Result]) -> list[Result]:
    """Of scores of one run that differ in nothing but the step, the last."""
    kept: dict[Any, Result] = {}
    for r in sorted(found, key=lambda r: -1 if r.step is None else r.step):
        kept[(r.run, r.score["benchmark"], r.score["metric"], r.score["encoder"], r.protocol)] = r
    return [r for r in found if r in kept.values()]


def _mixture(column: Column, ours: Sequence[Result], notes: "_Notes") -> str:
    """A line where a column holds scores of different settings, else ""."""
    protocols: dict[str, list[str]] = {}
    for r in ours:
        protocols.setdefault(r.protocol or "of unknown settings", []).append(notes.ours(r))
    if len(protocols) < 2:
        return ""
    parts = "; ".join(f"{protocol}: {', '.join(dict.fromkeys(marks))}" for protocol, marks in protocols.items())
    return f"{column.title}: measured with different settings, not to be compared with each other ({parts})"


class _Notes:
    """Notes under a table: letters for ours, numbers for published, each once."""

    def __init__(self) -> None:
        self._ours: dict[str, str] = {}
        self._published: dict[str, str] = {}

    def ours(self, r: Result) -> str:
        row, facts = r.score, [f"run {r.run_id}, {r.source}"]
        facts += [f"step {r.step:,}"] if r.step is not None else []
        facts += (
            [f"{_plural(row.get('seeds', 1), 'seed')}, {row.get('count', '?'):,} scored"] if row.get("count") else []
        )
        facts += [f"protocol {r.protocol}"] if r.protocol else []
        facts += [f"chance {row['chance']:.3g}"] if isinstance(row.get("chance"), int | float) else []
        facts += [row["note"]] if row.get("note") else []
        return self._ours.setdefault("; ".join(facts), _letters(len(self._ours)))

    def published(self, n: Published) -> str:
        caution = _CAUTIONS.get(n.checked, "")
        text = "; ".join(filter(None, (n.source, n.protocol, n.note, caution)))
        return self._published.setdefault(text, str(len(self._published) + 1))

    def all(self) -> tuple[tuple[str, str], ...]:
        return tuple((mark, text) for notes in (self._ours, self._published) for text, mark in notes.items())


def _letters(i: int) -> str:
    return (_letters(i // 26 - 1) if i >= 26 else "") + chr(ord("a") + i % 26)


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def ours_text(row: dict[str, Any], unit: str) -> str:
    """Value and 95 % interval; the unit where it is not the column's."""
    own = row.get("unit", "")
    number = lambda value: f"{value:.1f}" if own == "%" or abs(value) >= 100 else f"{value:.3g}"
    low, high = row.get("low"), row.get("high")
    spread = "" if low is None or high is None else f" [{number(low)}, {number(high)}]"
    return f"{number(row['value'])}{spread}{f' {own}' if own != unit and own else ''}"


def _published_text(n: Published, unit: str) -> str:
    return f"{n.value}{f' {n.unit}' if n.unit != unit and n.unit else ''}"


def main(options: Any) -> int:
    """`vjepa tables`: print the tables as Markdown; with --workdir write tables.md, tables.html and tables.tex."""
    if options.plan:
        from vjepa_jax.evals import table_plan

        print(table_plan.describe(*load_table(options.plan), options.machine))
        return 0
    problems: list[str] = []
    results = results_lib.collect(options.runs, problems)
    named = [load_table(name) for name in options.table or table_names()]
    grids = [assemble(name, table, results, recall=options.unchecked) for name, table in named]
    if not options.table:
        rest = others([table for _, table in named], results)
        grids += [assemble(f"X{i}", table, results) for i, table in enumerate(rest, 1)]
    for problem in problems:
        print(f"note: {problem}")
    grids = [grid for grid in grids if grid.rows]
    print(table_formats.as_markdown(grids))
    if options.workdir:
        folder = Path(options.workdir)
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, render in table_formats.FORMATS.items():
            write_bytes(folder / f"tables.{suffix}", render(grids).encode())
            print(folder / f"tables.{suffix}")
    return 0
