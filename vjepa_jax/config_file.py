"""Config files and command-line overrides: from `--config file.py:arg --config.a.b=value` to a RunConfig."""

import dataclasses
import importlib.util
import os
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from vjepa_jax import config as config_lib
from vjepa_jax.config import ConfigError, RunConfig, from_config_dict, plain_dict
from vjepa_jax.config_build import build, hint
from vjepa_jax.config_stages import expand

# Keys of facebookresearch/vjepa2's YAML files that have another name here.
_VJEPA2 = {
    "auto_augment": "data.augment.rand_augment",
    "crop_size": "data.resolution",
    "dataset_fpcs": "data.num_frames",
    "datasets": "data.path",
    "datasets_weights": "data.weights",
    "ema": "ema.start",
    "epochs": "steps",
    "ipe": "steps",
    "load_checkpoint": "init_from",
    "loss_exp": "loss.exponent",
    "model_name": "model.variant",
    "motion_shift": "data.augment.motion_shift",
    "pred_depth": "model.predictor.depth",
    "pred_embed_dim": "model.predictor.embed_dim",
    "pred_num_heads": "model.predictor.num_heads",
    "random_resize_aspect_ratio": "data.random_resize_aspect",
    "read_checkpoint": "init_from",
    "reprob": "data.augment.erase_prob",
    "save_every_freq": "checkpoint.keep_every_steps",
    "use_activation_checkpointing": "model.remat",
    "use_rope": "model.position",
    "warmup": "optim.warmup_steps",
}


def load(path: str, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """The RunConfig of "file.py" or "file.py:argument", with "--config.a.b=value" overrides.

    A file sets what differs from the defaults of config.py; any key of config.py can be overridden.

    Raises:
      ConfigError: no such file, an unknown key (with the nearest known one), a value of the wrong type, a ladder.
    """
    return from_config_dict(_overridden(path, overrides))


def load_stages(path: str, overrides: list[str] | tuple[str, ...] = ()) -> list[tuple[str, RunConfig]]:
    """As `load`, for a file that may set `stages`: (name, run) of each, or one named "" (config_stages.expand).

    An override changes the config that the stages differ from: what a stage sets itself stays.
    """
    return expand(_overridden(path, overrides))


def load_groups(path: str, overrides: list[str] | tuple[str, ...], known: Mapping[str, type]) -> dict[str, Any]:
    """The groups that a file's get_config() gives, as dataclasses: {name: known[name]}, in the file's order.

    Evaluations are configured so: a group a protocol. A group holds what differs from its dataclass's defaults.

    Raises:
      ConfigError: no such file, no group, an unknown group or key (with the nearest known one), a wrong type.
    """
    file, given = _given(path)
    for name, group in given.items():
        if name not in known:
            raise ConfigError(f"{file}: unknown protocol {name!r}: there is {', '.join(known)}{hint(name, known)}")
        if not isinstance(group, ConfigDict | dict):
            raise ConfigError(f"{file}: {name} must be a group of keys, got {group!r}")
    if not given:
        raise ConfigError(f"{file}: get_config() gives no protocol: there is {', '.join(known)}")
    template = {name: _template(known[name], group) for name, group in given.items()}
    values = plain_dict(_with_overrides(_filled(file, template, given), overrides))
    return {name: build(known[name], group, name) for name, group in values.items()}


def _overridden(path: str, overrides: list[str] | tuple[str, ...]) -> ConfigDict:
    return _with_overrides(read(path), overrides)


def _with_overrides(config: ConfigDict, overrides: list[str] | tuple[str, ...]) -> ConfigDict:
    _check_keys((word.split("=")[0].removeprefix("--config.") for word in overrides), config)
    argv = ["vjepa", *overrides]
    values = flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, lock_config=True, sys_argv=argv)
        values(argv)
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{' '.join(overrides)}: {_one_line(error)}") from error
    return holder.value


def read(path: str) -> ConfigDict:
    """The file's config over the defaults, unvalidated. Raises ConfigError."""
    file, given = _given(path)
    return _filled(file, _template(RunConfig, given), given)


def _given(path: str) -> tuple[str, Any]:
    """The file that "file.py:argument" names, and what its get_config gives."""
    file, _, argument = path.partition(":")
    if not os.path.isfile(file):
        raise ConfigError(f"config file {file} does not exist: the ready ones are in experiments/")
    spec = importlib.util.spec_from_file_location("vjepa_config_file", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"config file {file} does not define get_config()")
    variants = getattr(module, "VARIANTS", ())
    if argument and variants and argument not in variants:
        raise ConfigError(
            f"config file {file} has no variant {argument!r}: the ones there are {', '.join(variants)}"
            f"{hint(argument, variants)}"
        )
    return file, module.get_config(argument) if argument else module.get_config()


def _filled(file: str, template: dict[str, Any], given: Any) -> ConfigDict:
    """The template with the values that the file gives, locked."""
    config = ConfigDict(template).lock()
    _check_keys(config_lib.flatten(plain_dict(given)), config, f"{file}: ")
    try:
        with config.ignore_type():
            config.update(given)
    except (KeyError, AttributeError) as error:
        raise ConfigError(f"{file}: {_one_line(error)}") from error
    return config


def _check_keys(keys: Iterable[str], config: ConfigDict, where: str = "") -> None:
    """Raises ConfigError for the first key that there is not, with ours for one of vjepa2's, or else the nearest."""
    known = config_lib.flatten(config.to_dict())
    for key in keys:
        if key not in known and not any(k.startswith(f"{key}.") for k in known):
            ours = _VJEPA2.get(key.split(".")[-1])
            meant = f"; vjepa2's is {ours!r} here" if ours in known else hint(key, known)
            raise ConfigError(f"{where}unknown config key {key}{meant}")


def _template(cls: type, given: Any = None) -> dict[str, Any]:
    """Every key with its default; keys without one, or with None, as typed placeholders.

    An optional group (images, say) has its keys where `given` sets it, and is a placeholder elsewhere.
    """
    hints, values = typing.get_type_hints(cls), {}
    given = given if isinstance(given, ConfigDict | dict) else {}
    for f in dataclasses.fields(cls):
        kind, own = hints[f.name], given.get(f.name)
        group = _plain_type(kind)
        if dataclasses.is_dataclass(group) and (group is kind or own):
            values[f.name] = _template(group, own)
            continue
        if group is dict:
            named = dict(own) if isinstance(own, ConfigDict | dict) else {}
            members = typing.get_args(kind)
            values[f.name] = {name: _template(members[1], named[name]) for name in named} if members else named
            continue
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if default is dataclasses.MISSING or default is None:
            values[f.name] = config_dict.placeholder(_plain_type(kind))
        elif f.name == "groups":
            values[f.name] = tuple(dataclasses.asdict(group) for group in default)
        else:
            values[f.name] = default
    return values


def _plain_type(kind: Any) -> type:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(a for a in typing.get_args(kind) if a is not type(None))
    return typing.get_origin(kind) or kind


def _one_line(error: Exception) -> str:
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return " ".join(text.split())
