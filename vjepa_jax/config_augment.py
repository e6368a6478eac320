"""What is done to training clips beside a random crop and flip: the keys under data.augment."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from vjepa_jax.config_build import ConfigError

_NUMBER = r"\d+(\.\d+)?"
_POLICY = {"m": _NUMBER, "n": r"\d+", "mstd": _NUMBER, "inc": "[01]"}  # keys of a policy, their values


class RandAugment(NamedTuple):
    """A policy of RandAugment: `num_ops` operations a clip, at a level of 0 to 10 drawn around `magnitude`."""

    magnitude: float = 10.0
    num_ops: int = 2
    std: float = 0.0
    increasing: bool = False  # a higher level always changes more


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentations in the order in which they are applied, the same for all frames of a clip.

    V-JEPA 2 is pre-trained with none of them, and without antialiasing; its probes are trained with
    rand_augment="rand-m7-n4-mstd0.5-inc1" and erase_prob=0.25.
    """

    rand_augment: str = ""  # a policy in timm's notation (data_pipelines/randaugment.py), before the crop; "": none
    motion_shift: bool = False  # the crop moves: it starts with one random box and ends with another
    antialias: bool = True  # average where the crop is shrunk; False: mix the four nearest pixels (torch interpolate)
    erase_prob: float = 0.0  # of noise in a random box of the crop (data_pipelines/erasing.py)

    @property
    def policy(self) -> RandAugment | None:
        """`rand_augment`, taken apart; None if empty. Raises ConfigError."""
        return parse_rand_augment(self.rand_augment) if self.rand_augment else None


def parse_rand_augment(policy: str) -> RandAugment:
    """timm's notation taken apart: "rand-m7-n4-mstd0.5-inc1".

    Unlike timm, which takes any number after "inc" for true, inc0 is false.

    Raises:
      ConfigError: other keys than m, n, mstd and inc, or values that they cannot have.
    """
    kind, *parts = policy.split("-")
    values: dict[str, str] = {}
    for part in parts:
        key = re.match("[a-z]*", part)[0]
        value = part[len(key) :]
        if key in values or key not in _POLICY or not re.fullmatch(_POLICY[key], value):
            break
        values[key] = value
    parsed = RandAugment(
        float(values.get("m", 10)), int(values.get("n", 2)), float(values.get("mstd", 0)), values.get("inc") == "1"
    )
    if kind != "rand" or len(values) < len(parts) or parsed.magnitude > 10 or parsed.num_ops < 1:
        raise ConfigError(
            f"data.augment.rand_augment={policy!r} must be like 'rand-m7-n4-mstd0.5-inc1': 'rand', then each at most "
            "once m (level, 0 to 10), n (operations, at least 1), mstd (spread of the level) and inc (0 or 1)"
        )
    return parsed


def validate_augment(augment: AugmentConfig) -> None:
    """Raises ConfigError."""
    if not 0.0 <= augment.erase_prob <= 1.0:
        raise ConfigError(f"data.augment.erase_prob={augment.erase_prob} must lie in [0, 1]")
    if augment.rand_augment:
        parse_rand_augment(augment.rand_augment)
