"""Where the time of a run went, as a table of a report: one row a kind with its share."""

from collections.abc import Mapping

from vjepa_jax.training.chrono import goodput, spent
from vjepa_jax.training.metrics import duration

_WHAT = {
    "init": "starting: imports, checkpoint, index",
    "compile": "compiling",
    "data_wait": "waiting for data",
    "step": "training steps",
    "checkpoint": "saving",
    "evaluation": "evaluating",
    "pictures": "drawing",
    "lost": "lost with killed starts",
}


def time_section(totals: Mapping[str, float]) -> str:
    """HTML of the totals of `Chrono.state()`, or '' where they hold no time."""
    seconds = spent(totals)
    whole = sum(seconds.values())
    if whole <= 0:
        return ""
    rows = "".join(
        f"<tr><th>{_WHAT[kind]}</th><td>{duration(value)}</td><td>{value / whole:.1%}</td>"
        f"<td>{_bar(value / whole)}</td></tr>"
        for kind, value in sorted(seconds.items(), key=lambda item: -item[1])
        if value > 0
    )
    return f'<table class="time"><tbody>{rows}</tbody></table>'


def time_lead(totals: Mapping[str, float]) -> str:
    """The sentence above the table."""
    starts = int(totals.get("starts", 1))
    over = "1 start" if starts == 1 else f"{starts:,} starts"
    return f"Goodput {goodput(totals):.1%}: that share of the time of {over} went into steps that count."


def _bar(share: float) -> str:
    return (
        '<svg class="s1" viewBox="0 0 160 10" aria-hidden="true" preserveAspectRatio="none">'
        f'<rect x="0" y="0" width="{160 * share:.1f}" height="10" fill="currentColor"/></svg>'
    )
