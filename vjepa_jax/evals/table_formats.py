"""Assembled tables as Markdown, as one self-contained HTML page, and as LaTeX for booktabs."""

import html
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vjepa_jax.evals.scores import markdown
from vjepa_jax.training.report_page import page

if TYPE_CHECKING:  # tables.py knows this module
    from vjepa_jax.evals.tables import Cell, Entry, Grid

NOT_RUN, NONE = "not run", "-"
_LEAD = (
    "Each cell: ours with its 95 % interval, then the published number. Letters lead to runs, digits to sources. "
    "Not run: a number that we have not measured. A dash: one that our list of published numbers does not hold."
)
_TEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
        "\u2013": "--", "“": "``", "”": "''", "·": r"$\cdot$", "\u00d7": r"$\times$", "±": r"$\pm$",
        "\u00a0": "~", '"': "''"}  # fmt: skip
_STYLE = """<style>
table.results { width: 100%; } .results th[scope=row] { white-space: nowrap; } .results td { min-width: 6.2rem; }
.results td b, .results td .out { display: block; white-space: nowrap; } .results .out { color: var(--soft); }
.results td .published { display: block; white-space: nowrap; } .results .out { font-size: .82rem; }
.results .control th { color: var(--soft); padding-left: 1.2rem; } .results sup { color: var(--soft); }
.results sup { margin-left: 1px; line-height: 0; }
.results thead th:first-child { color: var(--text); } ol.notes { list-style: none; padding: 0; margin: .4rem 0; }
ol.notes li { font-size: .82rem; color: var(--soft); overflow-wrap: anywhere; margin: .12rem 0; }
ol.notes b { display: inline-block; min-width: 1.4rem; color: var(--text); font-weight: 600; }
</style>"""


def as_markdown(grids: Sequence["Grid"]) -> str:
    """Aligned Markdown tables, each with its notes."""
    parts = ["# Tables", "", _LEAD, ""] if grids else ["No table has a row."]
    for grid in grids:
        rows = [["model", "size", *grid.head]]
        rows += [[_row_name(*row[:3]), row[1], *map(_plain, row[3])] for row in grid.rows]
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        parts += [f"## {grid.name}. {grid.title}", "", markdown(rows), ""]
        parts += [f"**{warning}.**\n" for warning in grid.warnings]
        parts += [f"- ({mark}) {text}" for mark, text in grid.notes] + [""]
        parts += [f"    # {source}\n    {command}" for source, command in grid.commands] + [""]
    return "\n".join(parts).rstrip() + "\n"


def as_html(grids: Sequence["Grid"]) -> str:
    """One page that loads nothing, in the style of a run's report."""
    links = "".join(
        f'<a href="#{html.escape(g.name)}">{html.escape(g.name)}. {html.escape(g.title)}</a>' for g in grids
    )
    body = f'{_STYLE}<h1>Tables</h1><p class="soft">{html.escape(_LEAD)}</p><nav>{links}</nav>'
    return page("Tables", body + "".join(map(_html_grid, grids)))


def _html_grid(grid: "Grid") -> str:
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in grid.head)
    body = ""
    for model, size, encoder, cells in grid.rows:
        name = html.escape(encoder or f"{model} {size}".strip())
        body += f'<tr{" class=control" if encoder else ""}><th scope="row">{name}</th>'
        body += "".join(f"<td>{_html_cell(cell)}</td>" for cell in cells) + "</tr>"
    warnings = "".join(f'<p class="verdict bad"><b>Not comparable.</b> {html.escape(w)}</p>' for w in grid.warnings)
    notes = "".join(f"<li><b>{html.escape(mark)}</b> {html.escape(text)}</li>" for mark, text in grid.notes)
    made = "".join(f"<p class=soft>{html.escape(s)}</p><pre>{html.escape(c)}</pre>" for s, c in grid.commands)
    made = f"<details><summary>Commands behind our numbers</summary>{made}</details>" if made else ""
    return (
        f'<h2 id="{html.escape(grid.name)}">{html.escape(grid.name)}. {html.escape(grid.title)}</h2>'
        f'<div class="scroll"><table class="results"><thead><tr><th scope="col">Model</th>{head}</tr></thead>'
        f'<tbody>{body}</tbody></table></div>{warnings}<ol class="notes">{notes}</ol>{made}'
    )


def _html_cell(cell: "Cell") -> str:
    def entry(e: "Entry", tag: str) -> str:
        marks = html.escape(",".join(e.marks))
        return f"<{tag}>{html.escape(e.text)}<sup>{marks}</sup></{tag.split()[0]}>"

    ours = "".join(entry(e, "b") for e in cell.ours)
    ours = ours or (f'<span class="out">{NOT_RUN}</span>' if cell.wanted else "")
    theirs = "".join(entry(e, 'span class="published"') for e in cell.published)
    return ours + (theirs or (f'<span class="out">{NONE}</span>' if cell.compared else ""))


def as_latex(grids: Sequence["Grid"]) -> str:
    r"""Table environments for \usepackage{booktabs}, with the notes as small print under each."""
    parts = ["% \\usepackage{booktabs}", f"% {_LEAD.translate({8220: 39, 8221: 39})}"]
    for grid in grids:
        head = " & ".join(["Model", *map(tex, grid.head)])
        parts += ["", r"\begin{table}", r"\centering", rf"\caption{{{tex(grid.title)}}}", rf"\label{{tab:{grid.name}}}"]
        parts += [rf"\begin{{tabular}}{{l{'c' * len(grid.head)}}}", r"\toprule", rf"{head} \\", r"\midrule"]
        for model, size, encoder, cells in grid.rows:
            name = rf"\quad {tex(encoder)}" if encoder else tex(f"{model} {size}".strip())
            parts.append(rf"{' & '.join([name, *map(_tex_cell, cells)])} \\")
        parts += [r"\bottomrule", r"\end{tabular}", ""]
        small = [rf"\textbf{{{tex(warning)}.}}" for warning in grid.warnings]
        small += [rf"\textsuperscript{{{mark}}}~{tex(text)}." for mark, text in grid.notes]
        parts += [f"% {source}: {command}" for source, command in grid.commands]
        parts += [rf"\par\smallskip\raggedright\footnotesize {' '.join(small)}"] if small else []
        parts.append(r"\end{table}")
    return "\n".join(parts) + "\n"


def tex(text: str) -> str:
    """Text as LaTeX sets it, letter for letter."""
    return re.sub("[" + re.escape("".join(_TEX)) + "]", lambda found: _TEX[found[0]], text)


def _tex_cell(cell: "Cell") -> str:
    entry = lambda e: rf"{tex(e.text)}\textsuperscript{{{','.join(e.marks)}}}"
    ours = "; ".join(rf"\textbf{{{entry(e)}}}" for e in cell.ours)
    return _joined(ours, "; ".join(map(entry, cell.published)), cell, "--")


def _plain(cell: "Cell") -> str:
    entry = lambda e: f"{e.text} ({','.join(e.marks)})"
    return _joined("; ".join(map(entry, cell.ours)), "; ".join(map(entry, cell.published)), cell, NONE)


def _joined(ours: str, theirs: str, cell: "Cell", none: str) -> str:
    """ours / published; ours alone in rows of controls and in columns of what nobody publishes."""
    ours = ours or (NOT_RUN if cell.wanted else "")
    return f"{ours} / {theirs or none}" if cell.compared else ours


def _row_name(model: str, size: str, encoder: str) -> str:
    return f"  {model}: {encoder}" if encoder else model


FORMATS: dict[str, Callable[[Sequence["Grid"]], str]] = {"md": as_markdown, "html": as_html, "tex": as_latex}
