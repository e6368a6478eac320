"""Protocols during training: named ones every so many steps, each with a budget of its own (config eval.online)."""

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from vjepa_jax import __version__
from vjepa_jax.config import RunConfig
from vjepa_jax.config_eval import EvalConfig
from vjepa_jax.encoder import Encoder
from vjepa_jax.evals import controls, suite

FOLDER = "online"


def check(cfg: EvalConfig) -> dict[str, Any]:
    """The settings of every protocol of eval.online.

    Raises:
      ConfigError: an unknown protocol, or a key or value that it does not know.
    """
    return suite.settings({name: online.settings for name, online in cfg.online.items()}, "eval.online.")


class Online:
    """Runs what is due and keeps compiled programs from one time to the next."""

    def __init__(self, run: RunConfig, objective: Any, workdir: Path, command: str):
        self._run, self._objective, self._command = run, objective, command
        self._settings, self._folder = check(run.eval), Path(workdir) / suite.FOLDER / FOLDER
        self._encoders: dict[str, list[Any]] = {}
        self._parts: dict[str, dict[str, Any]] = {}

    def due(self, step: int) -> list[str]:
        """Names of the protocols of this step."""
        return [name for name, online in self._run.eval.online.items() if step % online.every_steps == 0]

    def __call__(self, params: Any, names: Sequence[str], step: int, warn: Callable[[str], None]) -> dict[str, float]:
        """Run protocols on the parameters of a step; returns metrics "eval/<protocol>/<metric>" of the trained encoder.

        Writes evals/online/scores.json with the last scores of every protocol. What goes wrong in a protocol is told by
        `warn` and ends that protocol alone: training goes on.
        """
        metrics: dict[str, float] = {}
        with jax.transfer_guard("allow"):
            encoders = self._with(jax.device_put(params, jax.local_devices()[0]))
            for name in names:
                online = self._run.eval.online[name]
                shown = encoders if online.controls else {controls.TRAINED: encoders[controls.TRAINED]}
                try:
                    part = suite.run_protocol(name, shown, self._settings[name], seconds=online.seconds)
                except ValueError as error:  # a setting that does not fit the clip, a video, a score that is no number
                    warn(f"eval.online.{name} at step {step}: {error}")
                    continue
                if part["cut"]:
                    warn(
                        f"eval.online.{name} at step {step} was cut off after {part['seconds']:.0f} s with "
                        f"{len(part['scores'])} scores: raise eval.online.{name}.seconds or lower its settings"
                    )
                self._parts[name] = part | {"step": step}
                metrics |= _metrics(part)
        self._write(step)
        return metrics

    def _with(self, params: Any) -> dict[str, list[Any]]:
        """The encoders with these trained parameters; random inits are made once."""
        if not self._encoders:
            seeds = max((getattr(cfg, "seeds", 3) for cfg in self._settings.values()), default=1)
            wanted = any(online.controls for online in self._run.eval.online.values())
            encoder = Encoder(self._run, params, self._objective)
            self._encoders = controls.encoders(encoder, seeds) if wanted else {controls.TRAINED: [encoder]}
        trained = self._encoders[controls.TRAINED][0].with_params(params)
        self._encoders[controls.TRAINED] = [trained]
        return self._encoders

    def _write(self, step: int) -> None:
        record = {
            "name": FOLDER,
            "command": self._command,
            "checkpoint": str(self._folder.parent.parent),
            "step": step,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "version": __version__,
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "protocols": list(self._parts.values()),
        }
        suite.write(self._folder, record)


def _metrics(part: dict[str, Any]) -> dict[str, float]:
    rows = [row for row in part["scores"] if row["encoder"] == controls.TRAINED]
    named = {f"eval/{part['protocol']}/{row['metric'].replace(' ', '_')}": row["value"] for row in rows}
    return named | {f"eval/{part['protocol']}/seconds": part["seconds"]}
