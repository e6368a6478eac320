"""Checkpoints: a thin layer over orbax v1. Saves are asynchronous and atomic; a restore fits any mesh.

A checkpoint holds {"state": the training state}; the run's config lies beside it in config.json. A failed save (a full
disk, say) never touches older checkpoints and never stops the run by itself: it is reported, and the next save tries
again. A checkpoint that did not load when the run went on from one before it is removed by the next save.
"""

import contextlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import absl.logging
import jax
from orbax.checkpoint import v1 as ocp

from vjepa_jax.config import CheckpointConfig
from vjepa_jax.parallel import distributed

FORMAT = 1  # of the tree; raised with a CHANGELOG line when an old checkpoint no longer loads
FOLDER = "checkpoints"
NOT_WRITTEN = "orbax did not write it"


class CheckpointError(ValueError):
    """A checkpoint that is missing, broken or of another model. The message is one line and says what to do."""


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, workdir: str | pathlib.Path, config: CheckpointConfig | None = None):
        self.folder = pathlib.Path(workdir).absolute() / FOLDER
        policies = ocp.training.preservation_policies
        keep: list[Any] = [policies.LatestN(config.keep_last if config else 2)]
        if config and config.keep_every_steps:
            keep.append(policies.EveryNSteps(config.keep_every_steps))
        self._keep = policies.AnyPreservationPolicy(keep)
        self._pending: tuple[int, Any] | None = None
        self._damaged: list[int] = []  # steps of checkpoints that did not load
        self._checkpointer = self._open()

    def _open(self) -> Any:
        return ocp.training.Checkpointer(
            self.folder,
            preservation_policy=self._keep,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            custom_metadata={"format": FORMAT},
            cleanup_tmp_directories=True,
        )

    @property
    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return sorted(c.step for c in self._checkpointer.checkpoints)

    def save(self, step: int, state: Any) -> str | None:
        """Start saving. Returns what went wrong with the save before and with this one as far as it got, else None."""
        failures = self._finish()
        self._drop_damaged()
        if step not in self.steps:
            response, reason = _together(self._checkpointer.save_checkpointables_async, step, {"state": state})
            if reason or response is None:
                failures |= self._failed(step, reason or NOT_WRITTEN)
            else:
                self._pending = (step, response)
        return self._told(failures)

    def wait(self) -> str | None:
        """Finish the save in progress. Returns what went wrong, else None."""
        return self._told(self._finish())

    def restore(self, abstract: Any, warn=print) -> Any | None:
        """The newest state that loads, as arrays with the shardings of `abstract`; None where there is no checkpoint.

        A checkpoint that does not load is named through `warn` and the one before it is tried.

        Raises:
          CheckpointError: the newest readable one is of another model, or there are checkpoints and none loads.
        """
        steps, reason = self.steps, ""
        distributed.agree({"checkpoints of steps": ", ".join(map(str, steps[-10:])) or "none"})
        for step in reversed(steps):
            folder = self.folder / str(step)
            try:
                _, reason = _together(_check_fits, folder, abstract)
                if not reason:
                    state, reason = _together(_load, folder, abstract)
            except _Misfit as error:
                raise CheckpointError(f"{folder} is of another model ({error}): use another --workdir") from error
            if not reason:
                self._damaged = [one for one in steps if one > step]
                return state
            warn(f"checkpoint {folder} does not load ({reason}); trying the one before it")
        if steps:
            raise CheckpointError(f"no checkpoint in {self.folder} loads ({reason}): start again in another --workdir")
        return None

    def close(self) -> None:
        """Finish and release threads. Other processes are not waited for: they may have ended."""
        with contextlib.suppress(Exception):
            self._checkpointer.close()

    def _finish(self) -> dict[int, str]:
        """Wait for the save in progress. Returns what went wrong, by step: {} where nothing did."""
        if self._pending is None:
            return {}
        (step, response), self._pending = self._pending, None
        written, reason = _together(response.result)
        return {} if written and not reason else self._failed(step, reason or NOT_WRITTEN)

    def _drop_damaged(self) -> None:
        """Remove what did not load: orbax saves no step below the newest that is there, nor one that is there."""
        self._damaged = [step for step in self._damaged if _together(self._checkpointer.delete, step)[1]]

    def _failed(self, step: int, reason: str) -> dict[int, str]:
        """Start afresh after a failed save: orbax would refuse the next one."""
        self.close()
        self._checkpointer = self._open()
        return {step: reason}

    def _told(self, failures: Mapping[int, str]) -> str | None:
        """One line on saves that failed, in which each has its reason."""
        if not failures:
            return None
        what = " and ".join(f"checkpoint of step {step} could not be saved ({why})" for step, why in failures.items())
        last = f"the checkpoint of step {self.steps[-1]} is whole" if self.steps else "there is no older checkpoint"
        return f"{what}; {last}. Free space in {self.folder}"


def load_parts(run_folder: str | pathlib.Path, abstract: Any, step: int | None = None) -> Any:
    """Parts of a saved state, e.g. {"aux": ..., "params": {"predictor": ...}} given as shapes: nothing else is read.

    Raises:
      CheckpointError: no checkpoint, or one of another model.
    """
    checkpoints = Checkpoints(run_folder) if (pathlib.Path(run_folder) / FOLDER).is_dir() else None
    if checkpoints is None or not checkpoints.steps:
        raise CheckpointError(f"no checkpoint in {run_folder}: give the folder of a run (it holds {FOLDER}/)")
    steps = checkpoints.steps
    checkpoints.close()
    if step is not None and step not in steps:
        raise CheckpointError(f"no checkpoint of step {step} in {run_folder}: it has {', '.join(map(str, steps))}")
    folder = checkpoints.folder / str(steps[-1] if step is None else step)
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        _check_fits(folder, abstract, partial=True)
        with context, jax.transfer_guard("allow"):
            return ocp.load_checkpointables(folder, {"state": abstract})["state"]
    except _Misfit as error:
        raise CheckpointError(f"{folder} is of another model than its config ({error})") from error
    except Exception as error:
        raise CheckpointError(f"{folder} is damaged ({_first_line(error)}): give the --step of another one") from error


class _Misfit(Exception):
    """What a checkpoint holds is not what is asked for."""


def _check_fits(folder: pathlib.Path, wanted: Any, partial: bool = False) -> None:
    """Raises _Misfit that names the first array that differs in presence, shape or dtype.

    orbax would read first and complain later, in its own words; it casts another dtype without a word, and a partial
    load passes over what is missing. `partial`: the checkpoint may hold more than is wanted.
    """
    absl.logging.get_absl_logger().addFilter(_refuse)  # of a damaged file orbax logs a page and returns None
    try:
        metadata = ocp.checkpointables_metadata(folder).metadata.get("state")
    finally:
        absl.logging.get_absl_logger().removeFilter(_refuse)
    if metadata is None:
        raise OSError("its list of arrays cannot be read")
    saved, wanted = _by_name(metadata), _by_name(wanted)
    for name in sorted(wanted if partial else wanted.keys() | saved.keys()):
        there, here = saved.get(name, "absent"), wanted.get(name, "absent")
        if there != here:
            raise _Misfit(f"{name} is {there} there and {here} here")


def _load(folder: pathlib.Path, wanted: Any) -> Any:
    """The state in a checkpoint's folder. This process waits for no other: one may fail alone."""
    context = ocp.Context()
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}
    with context:
        return ocp.load_checkpointables(folder, {"state": wanted})["state"]


def _together(task: Callable[..., Any], *args: Any) -> tuple[Any, str]:
    """The result of task(*args), and what went wrong with it on any process, "" if nothing did.

    All processes do and learn the same: orbax makes them wait for each other, and counts what each has done.
    """
    result, reason = None, ""
    try:
        with jax.transfer_guard("allow"):  # a save copies to the host, which the loop's transfer guard would refuse
            result = task(*args)
    except _Misfit:  # what a checkpoint is made of is the same for all
        raise
    except Exception as error:
        reason = _first_line(error)
    reasons = dict.fromkeys(filter(None, distributed.gather(reason)))
    return result, " and ".join(list(reasons)[:3])


def _refuse(record: Any) -> bool:
    return False


def _by_name(tree: Any) -> dict[str, str]:
    """ "params/encoder/norm/scale": "float32 (96,)" for every array or description of one."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype} {tuple(x.shape)}" for path, x in leaves}


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"
