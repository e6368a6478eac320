"""What it would take to fill a table: commands, data sets, disk, and device-hours by the analytic count of FLOPs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from vjepa_jax import config_file
from vjepa_jax.config import ConfigError, ModelConfig
from vjepa_jax.config_build import hint
from vjepa_jax.evals import classification, dense, finetune
from vjepa_jax.evals.published import DataSet, datasets
from vjepa_jax.evals.scores import markdown
from vjepa_jax.evals.tables import Column, Table
from vjepa_jax.models.family import FAMILY, Member
from vjepa_jax.models.variants import encoder_flops
from vjepa_jax.parallel.chips import Machine

UNKNOWN = "not counted"
COUNTED: dict[str, tuple[str, Any, Any]] = {  # work: group of a config, its settings, what counts
    "probe": ("classification", classification.Config, classification.flops),
    "finetune": ("finetune", finetune.Config, finetune.flops),
    "segmentation": ("segmentation", dense.SegmentationConfig, dense.flops),
    "depth": ("depth", dense.DepthConfig, dense.flops),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One cell to fill: `command`, and its FLOPs, or None where they are not counted."""

    column: str
    model: str
    command: str
    flops: float | None


def plan(table: Table) -> list[Step]:
    """A step for every model and column, in the order of the columns.

    Raises:
      ConfigError: a model that the family does not have, an unknown data set or kind of work.
    """
    return [_step(column, *model) for column in table.columns for model in table.models or (("", ""),)]


def _step(column: Column, name: str, variant: str) -> Step:
    member = _member(name) if name else None
    own = not column.config or ":" in column.config  # the file's variants are not sizes of models
    config = column.config if own or not variant else f"{column.config}:{variant}"
    run = f"runs/{variant or name.replace(' ', '-') or 'RUN'}"
    if column.work in COUNTED:
        flops = _training_flops(column, config, member)
    elif column.work == "features":
        flops = _feature_flops(column, member)
    elif column.work in ("none", "unknown"):
        flops = 0.0 if column.work == "none" else None
    else:
        raise ConfigError(
            f"{column.title}: work={column.work!r} is not one of {', '.join(COUNTED)}, features, none, unknown"
        )
    command = f"vjepa eval --config {config} --checkpoint {run} {column.options}".rstrip() if config else ""
    return Step(column.title, name, command, flops)


def _member(name: str) -> Member:
    known = {member.name: member for member in FAMILY}
    if name not in known:
        raise ConfigError(f"no model {name!r} in the family: `vjepa models` lists them{hint(name, known)}")
    return known[name]


def _data(column: Column) -> list[DataSet]:
    known = datasets()
    for name in column.data:
        if name not in known:
            raise ConfigError(f"{column.title}: no data set {name!r} in datasets.csv{hint(name, known)}")
    return [known[name] for name in column.data]


def _training_flops(column: Column, config: str, member: Member | None) -> float | None:
    """What a config file trains on the column's data: a probe, or the encoder."""
    data = _data(column)
    if member is None or not data or not data[0].train:
        return None
    group, settings, flops = COUNTED[column.work]
    cfg = config_file.load_groups(config, [], {group: settings})[group]
    return flops(cfg, member.model, data[0].train, data[0].test)


def _feature_flops(column: Column, member: Member | None) -> float | None:
    """Every clip encoded once."""
    data = _data(column)
    if member is None or not data or not data[0].train + data[0].test:
        return None
    clips = column.clips[0] * data[0].train + column.clips[1] * data[0].test
    return clips * encoder_flops(
        member.model, tokens(member.model, column.frames, column.resolution or member.resolution)
    )


def tokens(model: ModelConfig, frames: int, resolution: int) -> int:
    """Tokens of a square clip."""
    return frames // model.tubelet_size * (resolution // model.patch_size) ** 2


def describe(name: str, table: Table, machine: Machine) -> str:
    """The plan as text: assumptions, data sets, a line a cell with its device-hours, commands, and the sums."""
    steps = plan(table)
    hours = lambda step: step.flops / machine.flops / 3600
    counted = [hours(step) for step in steps if step.flops is not None]
    missing = sum(step.flops is None for step in steps)
    lines = [
        f"{name}. {table.title}",
        "",
        f"{machine.chip} at {machine.mfu:.0%} MFU assumed (--chip, --mfu); FLOPs by the analytic count, 2 a "
        "multiply-add, of encoder and heads. Decoding and augmentation are not counted; "
        "every control costs as much as the encoder itself.",
        "",
        *_data_lines(table),
        "",
        markdown([["column", "model", "EFLOP", "device-hours"], *(_cells(step, hours) for step in steps)], {2, 3}),
        "",
        *dict.fromkeys(step.command or f"# {step.column}: {_without_command(step)}" for step in steps),
        "",
        "runs/NAME is a run folder, or weights that `vjepa convert FILE.pt runs/NAME` wrote.",
        f"in all {sum(counted):,.0f} device-hours, {sum(counted) / machine.devices:,.0f} hours on {machine.devices}"
        + (f"; {missing} of {len(steps)} cells are not counted" if missing else ""),
    ]
    return "\n".join(lines)


def _without_command(step: Step) -> str:
    return "no config file fills it yet" if step.flops is None else "comes with another column, or with a training run"


def _cells(step: Step, hours: Any) -> list[str]:
    if step.flops is None:
        return [step.column, step.model, UNKNOWN, UNKNOWN]
    if not step.flops:
        return [step.column, step.model, "0", "0"]
    return [step.column, step.model, f"{step.flops / 1e18:,.1f}", f"{hours(step):,.1f}"]


def _data_lines(table: Table) -> Sequence[str]:
    """The data sets as a table, and the disk they take."""
    needed = {data.name: data for column in table.columns for data in _data(column)}
    if not needed:
        return ["no data set is needed"]
    number = lambda value: f"{value:,.10g}" if value else "?"
    rows = [
        [d.title, number(d.train), number(d.test), number(d.gigabytes), d.where, d.licence or "?", d.note]
        for d in needed.values()
    ]
    head = ["data set", "train", "test", "GB", "from", "licence (check it)", "note"]
    unknown = sum(not d.gigabytes for d in needed.values() if d.name != "world")
    total = sum(d.gigabytes for d in needed.values())
    more = f", and {unknown} of unknown size" if unknown else ""
    return [markdown([head, *rows], {1, 2, 3}), "", f"disk: {total:,.10g} GB{more}"]
