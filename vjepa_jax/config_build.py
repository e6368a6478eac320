"""Nested dicts to frozen dataclasses, strictly; knows nothing of what is configured."""

import dataclasses
import difflib
import types
import typing
from typing import Any


class ConfigError(ValueError):
    """A configuration that cannot be run. The message is one line and says what to change."""


def hint(word: Any, known: typing.Iterable[str]) -> str:
    """'; did you mean ...?' where a known word is close, else ''."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def build(cls: type, raw: Any, path: str = "") -> Any:
    """A dataclass from a nested dict, strictly: every key known, every required key given, every value of its type.

    Raises:
      ConfigError: with the full name of the key, from `path` on.
    """
    if not isinstance(raw, dict):
        raise ConfigError(f"{path or 'config'} must be a group of keys, got {raw!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    where = f"{path}." if path else ""
    for key in raw:
        if key not in fields:
            raise ConfigError(f"unknown config key {where}{key}{hint(key, fields)}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if name in raw and not (required and raw[name] is None):
            values[name] = _convert(hints[name], raw[name], where + name)
        elif required:
            raise ConfigError(
                f"missing config key {where}{name}: set it in the config file or with --config.{where}{name}="
            )
    return cls(**values)


def _convert(kind: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(typing.get_args(kind), value, path)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{path}={value!r} must be a group of names")
        return {name: _convert(typing.get_args(kind)[1], v, f"{path}.{name}") for name, v in value.items()}
    if origin is tuple:
        args = typing.get_args(kind)
        if not isinstance(value, (tuple, list)):
            raise ConfigError(f"{path}={value!r} must be a tuple")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
        if len(value) != len(args):
            raise ConfigError(f"{path}={value!r} must have {len(args)} entries")
        return tuple(_convert(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if dataclasses.is_dataclass(kind):
        return build(kind, value, path)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{path}={value!r} must be of type {kind.__name__}")
    return value


def _convert_union(args: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in args:
        return None
    members = [a for a in args if a is not type(None)]
    for i, member in enumerate(members):
        try:
            return _convert(member, value, path)
        except ConfigError:
            if i + 1 == len(members):
                raise
    raise AssertionError("a union type has at least one member")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict to {"a.b": value}. Lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
