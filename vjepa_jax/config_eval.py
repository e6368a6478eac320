"""What is evaluated during training and at its end: the keys under eval."""

from dataclasses import dataclass, field

from vjepa_jax.config_build import ConfigError


@dataclass(frozen=True)
class OnlineConfig:
    """A protocol that is run during training; its name is the key under eval.online (evals/suite.py).

    settings: keys of the protocol that differ from its defaults. controls: also of random inits and raw pixels, which
    do not change while training goes on.
    """

    every_steps: int = 1000
    seconds: float = 120.0  # its budget each time: it is cut off then, and the scores that are there are kept
    controls: bool = False
    settings: dict = field(default_factory=dict)


@dataclass(frozen=True)
class EvalConfig:
    """Frozen probes on labelled videos, and protocols during training.

    path: a manifest with `label` and `split` (train, test) columns; '': no probes.
    """

    path: str = ""
    every_steps: int = 0  # 0: at the end only
    probes: tuple[str, ...] = ("linear", "knn", "attentive")
    num_labels: tuple[int, ...] = ()  # sizes of the labelled training subset; empty: all
    seeds: int = 3
    batch_size: int = 64
    baselines: bool = True  # also probe random-init encoders and raw pixels
    segments: int = 1  # clips a video, their tokens joined in time
    online: dict[str, OnlineConfig] = field(default_factory=dict)


def validate_eval(cfg: EvalConfig) -> None:
    """Raises ConfigError for a step or budget that cannot be."""
    for name, online in cfg.online.items():
        if online.every_steps < 1 or online.seconds <= 0:
            raise ConfigError(
                f"eval.online.{name}: every_steps={online.every_steps} must be at least 1 and "
                f"seconds={online.seconds} positive: leave {name} out to train without it"
            )
