"""Progressive training as data: a config with `stages` is a ladder of runs, each from where the one before ended.

A stage is a name and the keys in which it differs from the config, with dots: {"name": "64f", "steps": 12_000,
"data.num_frames": 64, "optim.schedule": "linear"}. The step counter and the schedules of every stage start anew
(arXiv 2506.09985, "progressive resolution training").
"""

import copy
import re
from typing import Any

from vjepa_jax.config import ConfigError, RunConfig, from_config_dict, plain_dict


def expand(config: Any) -> list[tuple[str, RunConfig]]:
    """The stages of an ml_collections.ConfigDict or nested dict, as (name, run); one named "" without `stages`.

    Every stage after the first starts from the whole state of the one before, without Adam's moments unless
    `init.optimizer` is set; `init_from` is where the first one starts.

    Raises:
      ConfigError: what is wrong with the config, after the name of the stage.
    """
    base = plain_dict(config)
    stages = base.pop("stages", ())
    if not stages:
        return [("", from_config_dict(base))]
    if not isinstance(stages, (tuple, list)):
        raise ConfigError(f"stages={stages!r} must be a tuple of stages, each a dict of a name and dotted keys")
    names: list[str] = []
    for i, stage in enumerate(stages):
        names.append(_name(stage, f"stages[{i}]", names))
    return [(name, _run(base, stage, i, names)) for i, (name, stage) in enumerate(zip(names, stages, strict=True))]


def stage_folder(index: int, name: str) -> str:
    """The run folder of a stage within the ladder's folder: "01_64f"; stages count from 0."""
    return f"{index:02d}_{name}"


def _name(stage: Any, where: str, before: list[str]) -> str:
    if not isinstance(stage, dict):
        raise ConfigError(f"{where}={stage!r} must be a dict of a name and dotted keys")
    name = stage.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"{where}: its name={name!r} must be letters, digits, '.', '_' and '-': it names a folder")
    if name in before:
        raise ConfigError(f"stage {name!r}: {where} and stages[{before.index(name)}] have one name: rename one")
    return name


def _run(base: dict[str, Any], stage: dict[str, Any], index: int, names: list[str]) -> RunConfig:
    raw = copy.deepcopy(base)
    if index:
        raw["init_from"] = ""
        previous = stage_folder(index - 1, names[index - 1])
        raw["init"] = (raw.get("init") or {}) | {"weights": "all", "stage": previous}
    try:
        for key, value in stage.items():
            if key in ("stages", "init.stage") or (key == "init_from" and index):
                raise ConfigError(f"{key} is not a stage's to set: it starts from the stage before")
            if key != "name":
                _set(raw, key, value)
        if not index and not raw.get("init_from"):  # nothing to take: what the config says holds from the second on
            raw["init"] = (raw.get("init") or {}) | {"weights": "target", "optimizer": False}
        return from_config_dict(raw)
    except ConfigError as error:
        raise ConfigError(f"stage {names[index]!r}: {error}") from error


def _set(raw: dict[str, Any], key: str, value: Any) -> None:
    """Put `value` at a dotted key; whether the key and the type exist is found when the config is built."""
    if isinstance(value, dict):
        raise ConfigError(f"{key}={value!r} is a group: set its keys one by one, as {key}.KEY")
    *groups, last = key.split(".")
    for group in groups:
        raw = raw.setdefault(group, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"unknown config key {key}: {group} is not a group")
    raw[last] = value
