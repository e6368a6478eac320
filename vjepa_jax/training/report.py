"""report.html of a run: one self-contained file that shows whether the run is healthy and what it learned.

It reads what the run left in its folder (config.json, metrics.jsonl, probes.json, evals/, bad_videos.jsonl, run.json,
pictures/) and needs none of it: a missing part is left out or named as missing.
"""

import html
import itertools
import json
import math
import os
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vjepa_jax.training import charts
from vjepa_jax.training.alarms import RANKME_ALARM, STD_ALARM
from vjepa_jax.training.charts import Chart, number
from vjepa_jax.training.files import write_bytes
from vjepa_jax.training.metrics import duration, read_metrics
from vjepa_jax.training.pictures import SavedPicture, data_uri, mime_type, picture_size, saved_pictures, still
from vjepa_jax.training.report_evals import ONLINE, evals_section, online_charts, read_evaluations
from vjepa_jax.training.report_page import page
from vjepa_jax.training.report_probes import probe_section, probe_tile
from vjepa_jax.training.report_time import time_lead, time_section

_LEARNING = (
    Chart("Loss", (
        ("loss", "training", False), ("health_loss", "health batch", False),
        ("baseline_copy", "copy nearest", True), ("baseline_mean", "mean feature", True),
    ), scale="either"),
    Chart("Learning rate", (("lr", "rate", False),), zero=True, scale="either"),
    Chart("EMA momentum", (("ema", "momentum", False),), digits=6),
    Chart("Gradient norm", (
        ("grad_norm", "all", False), ("grad_norm/encoder", "encoder", False),
        ("grad_norm/predictor", "predictor", False),
    ), scale="log"),
    Chart("Update norm", (("update_norm", "update", False),), scale="log"),
    Chart("Parameter norm", (("param_norm", "parameters", False),)),
    Chart("Weight decay", (("weight_decay", "weight decay", False),)),
)  # fmt: skip
_HEALTH = (
    Chart("RankMe", (("rankme", "RankMe", False),), zero=True, scale="either", note="Effective rank of the features."),
    Chart("Feature standard deviation", (
        ("feature_std", "mean", False), ("feature_std_min", "smallest", False),
    ), zero=True, note="Across tokens, of layer-normalised features."),
    Chart("Cosine of random pairs", (("pair_cosine", "cosine", False),), zero=True, note="Near 1: all tokens alike."),
)  # fmt: skip
_SPEED = (
    Chart("Clips per second", (("clips_per_s", "clips/s", False),), zero=True),
    Chart("Share of time waiting for data", (("data_wait", "waiting", False),), percent=True, zero=True),
    Chart("Model FLOP utilisation", (("mfu", "MFU", False),), percent=True, zero=True),
    Chart("Goodput", (("goodput", "since the first start", False),), percent=True, zero=True),
    Chart("Substituted videos", (("substituted", "in logged steps, summed", False),), zero=True),
)
_BASELINES = (
    "The baselines are losses of two guesses on the health batch: each target is a copy of the nearest visible token, "
    "or the mean feature. Both need features of the target encoder, so they move with it."
)
_EVALUATIONS = "Value and 95 % interval of every metric, beside those of the controls. Bold: the trained encoder."
_HINT = "Move the pointer over a curve for values at a step; arrow keys work too."
_NOT_CHARTED = {"step", "seconds", "rankme_max"}  # nor time/...: a table of its own


def verdict(records: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    """(state, word, sentence) of a run; state is good, bad or open.

    The last health measurement counts: collapsed below 5 % of the feature dimension in RankMe or 0.05 in feature std.
    """
    losses = [r for r in records if isinstance(r.get("loss"), float | int)]
    if losses and not math.isfinite(losses[-1]["loss"]):
        return "bad", "Diverged", f"the loss is {losses[-1]['loss']} at step {losses[-1]['step']:,}."
    health = [r for r in records if isinstance(r.get("rankme"), float | int)]
    if len(health) < 2:
        return "open", "Not enough steps", f"{len(health)} of the 2 health measurements that a verdict needs."
    last = health[-1]
    facts = [f"RankMe {number(last['rankme'])}" + (f" of {last['rankme_max']:.0f}" if "rankme_max" in last else "")]
    facts += [
        f"{name} {last[key]:.3g}"
        for key, name in (("feature_std", "feature std"), ("pair_cosine", "cosine of random pairs"))
        if key in last
    ]
    measured = ", ".join(facts) + f" at step {last['step']:,}."
    if _collapsed(last):
        since = next(h["step"] for i, h in enumerate(health) if all(_collapsed(x) for x in health[i:]))
        return "bad", "Collapsed", f"{measured} Below the alarm since step {since:,}."
    return "good", "Healthy", f"{measured} {_against_baselines(last)}".strip()


def _collapsed(record: Mapping[str, Any]) -> bool:
    # Written so that NaN counts as collapsed.
    rank = record["rankme"] / record["rankme_max"] if record.get("rankme_max") else math.inf
    return not (rank >= RANKME_ALARM and record.get("feature_std", math.inf) >= STD_ALARM)


def _against_baselines(record: Mapping[str, Any]) -> str:
    loss = record.get("health_loss", record.get("loss"))
    known = [(k, n) for k, n in (("baseline_copy", "copy nearest"), ("baseline_mean", "mean feature")) if k in record]
    if loss is None or not known:
        return ""
    key, name = min(known, key=lambda kn: record[kn[0]])
    does = "beats" if loss < record[key] else "does not beat"
    return f"The predictor {does} the better baseline: loss {number(loss)}, {name} {number(record[key])}."


# ------------------------------------------------------------------------------------------------------- the parts


def _tiles(
    records: Sequence[Mapping[str, Any]], config: Mapping[str, Any], totals: Mapping[str, Any], probes: Sequence[Any]
) -> str:
    tiles: list[tuple[str, str, str]] = []
    last = {k: (v, r["step"]) for r in records for k, v in r.items()}
    if records:
        of = f"of {config['steps']:,}" if isinstance(config.get("steps"), int) else ""
        clips = totals.get("items") or records[-1]["step"] * config.get("batch_size", 0)
        seen = f"{charts.short(clips)} clips" if clips else ""
        tiles.append(("Steps", f"{records[-1]['step']:,}", " · ".join(filter(None, (of, seen)))))
    if "loss" in last:
        tiles.append(("Loss", number(last["loss"][0]), f"training, step {last['loss'][1]:,}"))
    if "rankme" in last:
        of = f"of {last['rankme_max'][0]:.0f} features" if "rankme_max" in last else ""
        tiles.append(("RankMe", number(last["rankme"][0]), of))
    if probes and (tile := probe_tile(probes)):
        tiles.append(tile)
    rates = [r["clips_per_s"] for r in records if "clips_per_s" in r]
    if rates:
        mfu = f" · {last['mfu'][0]:.1%} MFU" if "mfu" in last else ""
        tiles.append(("Clips/s", number(float(f"{statistics.median(rates):.3g}")), f"median{mfu}"))
    seconds = totals.get("seconds") or last.get("seconds", (0, 0))[0]
    if seconds:
        starts = totals.get("starts", 1)
        tiles.append(("Training time", duration(seconds), f"{starts} starts" if starts > 1 else "without evaluations"))
    cells = "".join(
        f"<div><dt>{html.escape(a)}</dt><dd>{html.escape(b)}<small>{html.escape(c)}</small></dd></div>"
        for a, b, c in tiles
    )
    return f'<dl class="tiles">{cells}</dl>' if tiles else ""


def _section(title: str, body: str, lead: str = "") -> str:
    """A section with an anchor, or '' without content. `lead` and `body` are HTML."""
    if not body:
        return ""
    lead = f'<p class="soft">{lead}</p>' if lead else ""
    return f'<section id="{_anchor(title)}"><h2>{html.escape(title)}</h2>{lead}{body}</section>'


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _curves(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(title, body, lead) of the sections of charts. Metrics that no chart names get one of their own, folded."""
    if not records:
        return []
    steps = (records[0]["step"], records[-1]["step"])
    names = {k for r in records for k, v in r.items() if isinstance(v, float | int)}
    groups = sorted(n for n in names if n.startswith("loss/"))
    by_group = Chart(
        "Loss by mask group", tuple((n, n.removeprefix("loss/"), False) for n in groups[:5]), scale="either"
    )
    known = {key for c in (*_LEARNING, *_HEALTH, *_SPEED, by_group) for key, _, _ in c.keys} | _NOT_CHARTED
    others = [Chart(n, ((n, n, False),)) for n in sorted(names - known) if not n.startswith(("time/", ONLINE))]

    maximum = next((r["rankme_max"] for r in reversed(records) if r.get("rankme_max")), None)
    limits: dict[str, list[tuple[str, float]]] = {"Feature standard deviation": [("alarm", STD_ALARM)]}
    if maximum:
        limits["RankMe"] = [("alarm", RANKME_ALARM * maximum), ("feature dimension", maximum)]

    def grid(wanted: Sequence[Chart], more: str = "") -> str:
        drawn = "".join(charts.render(c, records, steps, limits.get(c.title, ())) for c in wanted) + more
        return f'<div class="charts">{drawn}</div>' if drawn else ""

    # A constant weight decay stands in the configuration; a line of it says nothing.
    varies = len({r["weight_decay"] for r in records if "weight_decay" in r}) > 1
    learning = [c for c in _LEARNING[1:] if varies or c.title != "Weight decay"]
    sums = itertools.accumulate(r.get("substituted", 0) for r in records)
    summed = [{"step": r["step"], "substituted": s} for r, s in zip(records, sums, strict=True)]
    substituted = charts.render(_SPEED[-1], summed, steps) if summed[-1]["substituted"] else ""
    parts = [
        ("Learning", grid([_LEARNING[0], by_group, *learning]), _BASELINES if "baseline_copy" in names else ""),
        ("Health", grid(_HEALTH), ""),
        ("Evaluations during training", grid(online_charts(sorted(names))), ""),
        ("Speed", grid(_SPEED[:-1], substituted), ""),
    ]
    if others and (drawn := grid(others)):
        parts.append(("Other metrics", f"<details><summary>{len(others)} more</summary>{drawn}</details>", ""))
    return parts


def _figure(picture: SavedPicture, alt: str) -> str:
    """A picture embedded with its caption; animations hold still for readers who ask for it."""
    caption = f"Step {picture.step:,}" if picture.step is not None else picture.kind
    try:
        data = picture.path.read_bytes()
        width, height = picture_size(data)
        image = (
            f'<img src="{data_uri(data)}" width="{width}" height="{height}" '
            f'alt="{html.escape(f"{alt}, {caption.lower()}")}">'
        )
        if mime_type(data) != "image/png":
            quiet = f'<source media="(prefers-reduced-motion: reduce)" srcset="{data_uri(still(data))}">'
            image = f"<picture>{quiet}{image}</picture>"
    except (OSError, ValueError) as error:
        image = f"<p>{html.escape(picture.path.name)} cannot be shown: {html.escape(str(error))}</p>"
    return f'<figure><figcaption>{html.escape(caption)}</figcaption><div class="scroll">{image}</div></figure>'


def _pictures(pictures: Sequence[SavedPicture]) -> list[tuple[str, str, str]]:
    """(title, body, lead) of the picture sections: the newest of each kind, and the first feature map beside it."""
    by_kind: dict[str, list[SavedPicture]] = {}
    for picture in pictures:
        by_kind.setdefault(picture.kind, []).append(picture)
    masks, pca, others = "", "", ""
    for kind, found in by_kind.items():
        if kind.startswith("masks"):
            masks += _figure(found[-1], "Mask groups drawn on the frames of a clip")
        elif kind.startswith("pca"):
            shown = [found[-1], found[0]] if len(found) > 1 else found
            pca += "".join(_figure(p, "Video frames beside their principal feature components") for p in shown)
        else:
            others += _figure(found[-1], kind)
    key = (
        '<span class="key"><i style="background:linear-gradient(135deg,#d9a05b,#5b8f4e)"></i>context: as filmed</span>'
        '<span class="key"><i style="background:#2c4f98"></i>target: blue</span>'
        '<span class="key"><i style="background:#7d7d7d"></i>in neither (beyond the token budget): grey</span>'
    )
    return [
        ("Masks", masks and f'<div class="pictures wide">{masks}</div>',
         f"A clip, one column a tubelet; below it one row for each mask group.<br>{key}"),
        ("Features over time", pca and f'<div class="pictures">{pca}</div>',
         "Frames and the first three principal components of their tokens as red, green and blue, newest first."),
        ("Other pictures", others and f'<div class="pictures">{others}</div>', ""),
    ]  # fmt: skip


def _data_notes(bad: Sequence[Mapping[str, Any]], trained: bool) -> str:
    """The ledger of videos that did not decode; each is named once."""
    names: dict[str, str] = {}
    for row in bad:
        name = next((str(row[k]) for k in ("path", "video", "name") if k in row), json.dumps(row))
        names.setdefault(name, str(next((row[k] for k in ("error", "reason", "why") if k in row), "")))
    if not names:
        return "<p>Every video that was read could be decoded.</p>" if trained else ""
    rows = "".join(
        f"<tr><td><code>{html.escape(n)}</code></td><td>{html.escape(e)}</td></tr>" for n, e in names.items()
    )
    table = f"<table><thead><tr><th>Video</th><th>Why</th></tr></thead><tbody>{rows}</tbody></table>"
    videos = "1 video" if len(names) == 1 else f"{len(names):,} videos"
    is_open = " open" if len(names) <= 5 else ""
    return (
        f"<p>{videos} could not be decoded and each was replaced by another one, the same in every run.</p>"
        f'<details{is_open}><summary>Their names</summary><div class="scroll">{table}</div></details>'
    )


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Rows (dotted key, text) of nested data. Lists of plain values stay on one row."""
    if isinstance(value, dict):
        return [row for k, v in value.items() for row in _flat(v, f"{prefix}.{k}" if prefix else str(k))]
    if isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        return [row for i, v in enumerate(value) for row in _flat(v, f"{prefix}[{i}]")]
    if isinstance(value, list):
        return [(prefix, ", ".join(v if isinstance(v, str) else json.dumps(v) for v in value) or "none")]
    return [(prefix, "none" if value is None else value if isinstance(value, str) and value else json.dumps(value))]


def _breakable(key: str) -> str:
    """A long key may break after a dot or an underscore."""
    return html.escape(key).replace("_", "_<wbr>").replace(".", ".<wbr>")


def _groups(tree: Mapping[str, Any], first: str) -> str:
    """Nested data as one small table a group; plain values come first, under the heading `first`."""
    plain = {k: v for k, v in tree.items() if not isinstance(v, dict)}
    nested = {k: v for k, v in tree.items() if isinstance(v, dict) and v}
    out = []
    for title, values in ([(first, plain)] if plain else []) + list(nested.items()):
        rows = "".join(f"<tr><th>{_breakable(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in _flat(values))
        out.append(f"<section><h3>{html.escape(str(title))}</h3><table><tbody>{rows}</tbody></table></section>")
    return f'<div class="groups">{"".join(out)}</div>' if out else ""


def _environment(run: Mapping[str, Any]) -> str:
    run = dict(run)
    command = run.pop("command", None)
    if isinstance(command, list):
        command = shlex.join(map(str, command))
    shown = f"<pre>{html.escape(str(command))}</pre>" if command else ""
    if isinstance(run.get("totals"), dict):
        run["totals"] = {
            k: f"{v:,.0f}" if isinstance(v, float | int) else v
            for k, v in run["totals"].items()
            if not k.endswith("seconds")  # they have a table of their own
        }
    return shown + _groups(run, "run")


# ---------------------------------------------------------------------------------------------------------- files


def _read_json(path: Path, kind: type, problems: list[str]) -> Any:
    """The parsed file; an empty `kind` where it is absent or, with a note in `problems`, not readable."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} could not be read ({error}).")
        return kind()
    if not isinstance(value, kind):
        problems.append(f"{path.name} was left out: it holds no {'object' if kind is dict else 'list'}.")
        return kind()
    return value


def _read_ledger(workdir: Path) -> list[dict[str, Any]]:
    """Rows of bad_videos.jsonl and, of a multi-host run, bad_videos.<process>.jsonl.

    A line that is no JSON object (cut off by a kill) is shown as it is.
    """
    paths = sorted(workdir.glob("bad_videos*.jsonl"))
    lines = [line.strip() for p in paths for line in p.read_text(encoding="utf-8", errors="replace").splitlines()]
    rows = []
    for text in filter(None, lines):
        try:
            row = json.loads(text)
        except ValueError:
            row = text
        rows.append(row if isinstance(row, dict) else {"path": text})
    return rows


def write_report(
    workdir: str | os.PathLike[str],
    *,
    name: str | None = None,
    probe_rows: Sequence[Mapping[str, Any]] | None = None,
    pictures: Sequence[SavedPicture] | None = None,
) -> Path:
    """Write workdir/report.html from what the run left there and return its path.

    Args:
      workdir: the run's folder.
      name: heading; the folder's name if None.
      probe_rows: rows as in probes.json; None reads that file.
      pictures: pictures to embed; None takes those of workdir/pictures.
    """
    workdir = Path(workdir)
    problems: list[str] = []
    name = name or workdir.resolve().name
    config = _read_json(workdir / "config.json", dict, problems)
    run = _read_json(workdir / "run.json", dict, problems)
    probes = _read_json(workdir / "probes.json", list, problems) if probe_rows is None else list(probe_rows)
    records = sorted(read_metrics(workdir / "metrics.jsonl"), key=lambda r: r["step"])
    records = [{k: v for k, v in r.items() if isinstance(v, float | int)} for r in records]
    pictures = saved_pictures(workdir) if pictures is None else pictures

    sections = [("Probes", probe_section(probes), "")]
    sections.append(("Evaluations", evals_section(read_evaluations(workdir, problems)), _EVALUATIONS))
    sections += _curves(records)
    totals = run["totals"] if isinstance(run.get("totals"), dict) else {}
    sections.append(("Time", time_section(totals), time_lead(totals)))
    sections += _pictures(pictures)
    sections.append(("Data", _data_notes(_read_ledger(workdir), bool(records)), ""))
    sections.append(("Configuration", _groups(config, "run"), ""))
    sections.append(("Environment", _environment(run), ""))
    sections = [s for s in sections if s[1]]

    state, word, sentence = verdict(records)
    links = "".join(f'<a href="#{_anchor(title)}">{html.escape(title)}</a>' for title, _, _ in sections)
    when = html.escape(" · ".join(str(x) for x in (config.get("objective"), run.get("date")) if x))
    body = (
        f'<header><p class="soft">Training run{" · " if when else ""}{when}</p><h1>{html.escape(name)}</h1>'
        f'<p class="verdict {state}"><b>{word}.</b> {html.escape(sentence[:1].upper() + sentence[1:])}</p>'
        f"{_tiles(records, config, totals, probes)}<nav>{links}</nav></header>\n"
        + "".join(f"<p>{html.escape(p)}</p>" for p in problems)
        + "\n".join(_section(*s) for s in sections)
        + (f"<footer>{_HINT}</footer>" if records else "<p>No metrics yet.</p>")
    )
    path = workdir / "report.html"
    write_bytes(path, page(f"{name}: training report", body).encode())
    return path
