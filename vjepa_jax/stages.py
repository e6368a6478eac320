"""The ladder: the stages of a config one after the other, each an ordinary run in a folder of its own.

WORKDIR/00_first, WORKDIR/01_second, ...: a stage starts from the last checkpoint of the one before (config_stages.py).
The same command goes on wherever it was stopped. Stages that have not begun may still be edited in the config.
"""

import os
import pathlib
import re

import jax

from vjepa_jax import train as train_lib
from vjepa_jax.config import ConfigError, RunConfig
from vjepa_jax.config_stages import stage_folder
from vjepa_jax.encoder import CONFIG_FILE
from vjepa_jax.prepare import open_mesh_and_data, prepare
from vjepa_jax.training.checkpoint import FOLDER, Checkpoints


def train(
    stages: list[tuple[str, RunConfig]],
    workdir: str | os.PathLike[str],
    command: str = "",
    since: float | None = None,
) -> int:
    """Train what `config_stages.expand` gives: a ladder, or a single run named "" in `workdir` itself.

    Args:
      command, since: see train.train; `since` is the first stage's.

    Returns:
      The exit code of train.train: of the stage that did not finish, else 0.

    Raises:
      As train.train; errors of every stage that can be known are found before the first one starts.
    """
    workdir = pathlib.Path(workdir)
    _check_kind(stages, workdir)
    if stages[0][0] == "":
        return train_lib.train(stages[0][1], workdir, command, since=since)
    folders = [workdir / stage_folder(i, name) for i, (name, _) in enumerate(stages)]
    _check_ladder(stages, folders)
    stop = train_lib.StopSignal()
    for i, ((name, run), folder) in enumerate(zip(stages, folders, strict=True), start=1):
        if _is_finished(run, folder):
            _say(f"stage {i} of {len(stages)}, {name}: finished, in {folder}")
            continue
        _say(f"stage {i} of {len(stages)}, {name}: in {folder}")
        code = train_lib.train(run, folder, command, stop, since)
        since = None
        if code == 0 and stop.asked and i < len(stages):  # it came with the stage's last step
            _say(f"stopped by {stop.asked} after stage {name}; run the same command again to go on")
            code = train_lib.EXIT_RESUME
        if code:
            return code
    _say(f"all {len(stages)} stages are finished; the last one is in {folders[-1]}")
    return 0


def _check_kind(stages: list[tuple[str, RunConfig]], workdir: pathlib.Path) -> None:
    """Raises ConfigError where the folder belongs to a ladder and the config is a single run, or the reverse, or where
    it holds a stage that the config does not have."""
    if not workdir.is_dir():
        return
    begun = sorted(p.name for p in workdir.iterdir() if re.match(r"\d\d+_", p.name) and (p / CONFIG_FILE).is_file())
    if stages[0][0] == "":
        if begun:
            raise ConfigError(
                f"{workdir} holds a ladder ({begun[0]}), the config is a single run: use another --workdir"
            )
        return
    if (workdir / CONFIG_FILE).is_file():
        raise ConfigError(f"{workdir} holds a single run, the config is a ladder of stages: use another --workdir")
    known = [stage_folder(i, name) for i, (name, _) in enumerate(stages)]
    for name in begun:
        if name not in known:
            raise ConfigError(
                f"{workdir} holds the stage {name}, which the config has no more: stages that have begun keep name and "
                "place; put it back or use another --workdir"
            )


def _check_ladder(stages: list[tuple[str, RunConfig]], folders: list[pathlib.Path]) -> None:
    """Raises ConfigError for what a later stage would stumble over, perhaps days from now."""
    first = None
    for (name, run), folder in zip(stages, folders, strict=True):
        try:
            train_lib.check_folder(folder, run)
            setup = prepare(run)
            open_mesh_and_data(run, setup)
        except ConfigError as error:
            raise ConfigError(f"stage {name!r}: {error}") from error
        shapes = jax.tree.map(lambda x: x.shape, (setup.abstract["params"], setup.abstract["aux"]))
        first = shapes if first is None else first
        if shapes != first:
            raise ConfigError(
                f"stage {name!r} has another model than the first: all stages of a ladder train one model"
            )


def _is_finished(run: RunConfig, folder: pathlib.Path) -> bool:
    """Whether nothing is left to do, the report included."""
    if not (folder / FOLDER).is_dir():
        return False
    checkpoints = Checkpoints(folder, run.checkpoint)
    last = max(checkpoints.steps, default=0)
    checkpoints.close()
    return last == run.steps and (not run.log.report or (folder / "report.html").is_file())


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
