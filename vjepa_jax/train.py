"""The training loop, one function read from top to bottom: mesh, state, data, step, log, checkpoint, eval."""

import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from data_pipelines import pipeline
from vjepa_jax import config as config_lib
from vjepa_jax import starting
from vjepa_jax.config import ConfigError, RunConfig
from vjepa_jax.encoder import CONFIG_FILE, Encoder
from vjepa_jax.evals import run as evals_run
from vjepa_jax.evals.frozen import format_table
from vjepa_jax.evals.online import Online
from vjepa_jax.parallel import distributed, partitioning
from vjepa_jax.parallel.chips import peak_flops
from vjepa_jax.parallel.distributed import EXIT_RESUME
from vjepa_jax.prepare import Setup, jit_step, open_mesh_and_data, prepare
from vjepa_jax.training import health, pictures, spikes
from vjepa_jax.training.checkpoint import Checkpoints
from vjepa_jax.training.files import write_json
from vjepa_jax.training.metrics import RunLog
from vjepa_jax.training.report import write_report
from vjepa_jax.training.state import abstract_state, fresh_state, num_parameters
from vjepa_jax.training.step import MODEL_KEYS
from vjepa_jax.training.stopping import StopSignal
from vjepa_jax.training.watchdog import Watchdog

EXIT_FAILED = 1
LEDGER = "bad_videos.jsonl"


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite. The message names the step and the file with the last metrics."""


def train(
    run: RunConfig,
    workdir: str | os.PathLike[str],
    command: str = "",
    stop: StopSignal | None = None,
    since: float | None = None,
) -> int:
    """Train `run` in `workdir`, or go on with it where the folder holds a checkpoint of it.

    Args:
      command: what the user typed; written down in run.json.
      stop: where SIGTERM and Ctrl-C are noted, for a caller that goes on after this run.
      since: when this start began, by time.perf_counter; default: now.

    Returns:
      0 when done, EXIT_RESUME after SIGTERM or Ctrl-C (state saved), EXIT_FAILED if the last state could not be saved.

    Raises:
      ConfigError, CheckpointError, data_pipelines DataError: one line that says what to do.
      NonFiniteLossError, spikes.LossSpikeError: training diverged; nothing after the last good checkpoint was saved.
    """
    since = time.perf_counter() if since is None else since
    workdir = pathlib.Path(workdir)
    is_main = jax.process_index() == 0

    # Objective, masks, mesh: everything that can be wrong with a config shows here, before anything is written.
    setup = prepare(run)
    objective, optimizer = setup.objective, setup.optimizer
    mesh, num_videos = open_mesh_and_data(run, setup)
    distributed.agree(_facts(run, mesh))
    shardings = partitioning.state_shardings(setup.abstract, mesh)
    if not (workdir / CONFIG_FILE).is_file():
        starting.check_source(run, workdir, setup.abstract)
    totals = _claim(workdir, run, is_main)

    online = Online(run, objective, workdir, command)
    replicated = partitioning.replicated(mesh)
    train_step = jit_step(run, setup, mesh)
    measure_health = jax.jit(health.make_health(objective, run), out_shardings=replicated)

    # State: a checkpoint of this run, else what is taken from another one, else fresh.
    checkpoints = Checkpoints(workdir, run.checkpoint)
    state = checkpoints.restore(abstract_state(objective, optimizer, shardings), warn=_warn)
    if state is None:
        with partitioning.on_mesh(mesh):
            state = fresh_state(objective, optimizer, run.seed, shardings)
        state = starting.begin(run, workdir, state, mesh, warn=_warn)
    start = int(jax.device_get(state["step"]))

    peak = peak_flops(jax.devices()[0].device_kind)
    log = RunLog(
        workdir,
        total_steps=run.steps,
        start_step=start,
        is_main=is_main,
        items=run.batch_size,
        flops_per_step=setup.step_flops,
        peak_flops=peak * jax.device_count() if peak else None,
        state=totals,
        since=since,
    )

    def describe() -> None:
        """run.json: what made this run, and its time so far."""
        if is_main:
            write_json(workdir / "run.json", _describe(command, mesh, state) | {"totals": log.state()})

    describe()
    log.say(_headline(run, num_videos, state, setup, mesh, start))

    stop, vote = stop or StopSignal(), distributed.Vote(mesh)
    watchdog = Watchdog(run.log.stuck_after, workdir / f"stuck_{jax.process_index()}.txt", distributed.whoami(), _warn)

    def open_batches(done: int) -> Any:
        return pipeline.train_batches(
            run,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            start_step=done,
            ledger=str(workdir / LEDGER),
        )

    batches = open_batches(start)
    reading, last = dict.fromkeys(pipeline.COUNTS, 0), {}  # how reading went since the last line of metrics
    pending: tuple[int, Any, Any, Any] | None = None  # the step before: its metrics are read while this one runs
    stopping = False  # decided by all processes together

    def finish(measure: Callable[[int], dict[str, float]] | None = None) -> None:
        """Wait for the pending step, check it, log it, with what `measure` finds on its state."""
        nonlocal pending, last, stopping
        if pending is None:
            return
        (step, metrics, vitals, asked), pending = pending, None
        watchdog.step(step, "waiting for the devices")
        stopping = stopping or bool(jax.device_get(asked))
        values = {key: float(value) for key, value in jax.device_get({**metrics, **vitals}).items()}
        if not math.isfinite(values["loss"]):
            raise NonFiniteLossError(_dump(workdir, step, values, last))
        spikes.check(values, step)
        last = values
        measured = measure(step) if measure else {}
        if step % run.log.every_steps == 0 or step in (start + 1, run.steps) or vitals or measured:
            log.write(step, values | measured | reading)
            reading.update(dict.fromkeys(reading, 0))
        if vitals and (problem := health.warning(values)):
            log.warn(f"step {step}: {problem}")

    def save(step: int) -> None:
        watchdog.step(step, "saving")
        with log.spend("checkpoint"):
            if problem := checkpoints.save(step, state):
                log.warn(problem)
            describe()

    def fetch_model(step: int, doing: str) -> Any:
        """The parameters that are evaluated, on the host, of all processes."""
        watchdog.step(step, doing)
        return distributed.fetch(objective.eval_params(state["params"], state["aux"]), mesh)

    def measure_online(step: int) -> dict[str, float]:
        """The protocols of eval.online that are due, on the state of this step."""
        with log.spend("evaluation"):
            params = fetch_model(step, "evaluating")
            return online(params, online.due(step), step, log.warn) if is_main else {}

    def evaluate(step: int) -> None:
        """Frozen probes of the trained encoder, with its baselines; prints and writes the table."""
        params = fetch_model(step, "evaluating")
        if is_main:
            _evaluate(log, workdir, run, Encoder(run, params, objective), step)

    try:
        with stop, log, watchdog, jax.transfer_guard("disallow"):
            for step in range(start + 1, run.steps + 1):
                watchdog.step(step, "waiting for data")
                try:
                    with log.waiting():
                        host_batch = next(batches)
                except RuntimeError:
                    # SIGTERM to the whole process group (SLURM, Kubernetes, timeout) ends grain's workers as well
                    if not stop.arrives():
                        raise
                    if jax.process_count() == 1:
                        stopping = True
                        break
                    batches.close()
                    batches = open_batches(step - 1)  # others wait for this step
                    host_batch = next(batches)
                reading["substituted"] += int((host_batch["substituted"] > 0).sum())
                reading["retries"] += int(host_batch["retries"].sum())
                inputs = {key: host_batch[key] for key in MODEL_KEYS if key in host_batch}
                batch = partitioning.put_batch(inputs, mesh)
                if step == start + 1:
                    watchdog.step(step, "compiling")
                    with log.spend("compile"), partitioning.on_mesh(mesh), jax.transfer_guard("allow"):
                        _compile((train_step, measure_health), state, batch)
                vitals: dict[str, Any] = {}
                with partitioning.on_mesh(mesh):
                    state, metrics = train_step(state, batch)
                    if _due(step, run.log.health_every_steps, run):
                        vitals = measure_health(state, batch)
                    asked = vote.cast(bool(stop.asked))
                finish()
                pending = (step, metrics, vitals, asked)
                log.tick()

                if online.due(step):
                    finish(measure_online)
                if step % run.checkpoint.every_steps == 0 or step == run.steps:
                    finish()  # a state that is saved is known to be finite
                    save(step)
                if _due(step, run.log.images_every_steps, run):
                    finish()  # nobody waits for pictures to see the first loss
                    with log.spend("pictures"):
                        params = fetch_model(step, "drawing")
                        if is_main:
                            _draw(log, workdir, Encoder(run, params, objective), host_batch, step)
                stopping = stopping or (jax.process_count() == 1 and bool(stop.asked))
                if stopping:
                    break
                if run.eval.path and run.eval.every_steps and step % run.eval.every_steps == 0 and step < run.steps:
                    finish()
                    with log.spend("evaluation"):
                        evaluate(step)
            finish()
            step = int(jax.device_get(state["step"]))
            if stopping:
                save(step)
            if problem := checkpoints.wait():
                log.warn(problem)
            saved = not problem and step in checkpoints.steps  # a save that failed at once has been warned of
            if stopping and step < run.steps:
                who = stop.asked or "a signal to another process"
                log.say(f"stopped by {who} after step {step}; run the same command again to go on")
                return EXIT_RESUME if saved else EXIT_FAILED
            if run.eval.path:
                with log.spend("evaluation"):
                    evaluate(step)
            describe()
            if run.log.report and is_main:
                log.say(f"report: {write_report(workdir)}")
            distributed.meet("end")
            return 0 if saved else EXIT_FAILED
    finally:
        batches.close()
        checkpoints.close()


def _compile(programs: tuple[Any, ...], state: Any, batch: Any) -> None:
    """Compile programs for (state, batch) once all processes are known to have the same ones, and wait for the last."""
    lowered = [program.lower(state, batch) for program in programs]
    if jax.process_count() > 1:
        text = "".join(each.as_text() for each in lowered)
        distributed.agree({"program": hashlib.sha256(text.encode()).hexdigest()[:12]})
    for each in lowered:
        each.compile()
    distributed.meet("compiled")


def _due(step: int, every: int, run: RunConfig) -> bool:
    """Every `every` steps, and at the first and the last step of the run; never if that is 0."""
    return every > 0 and (step % every == 0 or step in (1, run.steps))


def check_folder(workdir: pathlib.Path, run: RunConfig) -> None:
    """Raises ConfigError where the folder holds a run of another config, or checkpoints of nobody knows what."""
    path = workdir / CONFIG_FILE
    if path.is_file():
        if changed := config_lib.differences(json.loads(path.read_text()), config_lib.to_dict(run)):
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise ConfigError(
                f"{workdir} holds a run of another config ({changed[0]}{more}): use another --workdir, "
                f"or start from its weights with --config.init_from={workdir}"
            )
    elif workdir.is_dir() and (workdir / "checkpoints").is_dir():
        raise ConfigError(f"{workdir} holds checkpoints without a {CONFIG_FILE}: use another --workdir")


def _claim(workdir: pathlib.Path, run: RunConfig, is_main: bool) -> dict[str, float]:
    """Make the folder this run's own. Returns the time totals of earlier starts.

    Raises:
      ConfigError: the folder is another run's, or cannot be written.
    """
    check_folder(workdir, run)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if is_main:
            write_json(workdir / CONFIG_FILE, config_lib.to_dict(run))
    except OSError as error:
        raise ConfigError(f"cannot write to --workdir {workdir}: {error.strerror}") from error
    described = workdir / "run.json"
    return json.loads(described.read_text()).get("totals", {}) if described.is_file() else {}


def _draw(log: RunLog, workdir: pathlib.Path, encoder: Encoder, batch: Any, step: int) -> None:
    """Masks on real frames and an animated PCA feature map of the batch's first clip."""
    first = jax.tree.map(lambda x: x[0], {key: batch[key] for key in ("video", "masks")})
    image = pictures.mask_picture(first["video"], first["masks"], encoder.run.grid)
    log.picture(step, "masks", image)
    pictures.save_picture(workdir, "masks", step, pictures.png(image))
    with jax.transfer_guard("allow"):
        features = np.asarray(encoder(first["video"]))
    frames = pictures.pca_frames(features, first["video"])
    log.picture(step, "pca", frames[0])
    pictures.save_picture(workdir, "pca", step, pictures.animation(frames))


def _evaluate(log: RunLog, workdir: pathlib.Path, run: RunConfig, encoder: Encoder, step: int) -> None:
    with jax.transfer_guard("allow"):
        rows = evals_run.evaluate(encoder, run.eval)
    log.say(format_table(rows))
    for name in ("probes.json", f"probes_{step:08d}.json"):
        write_json(workdir / name, rows)


def _dump(workdir: pathlib.Path, step: int, values: dict[str, float], last: dict[str, float]) -> str:
    """Write what is known about a diverged step and return the message for it."""
    path = workdir / f"nonfinite_step_{step}.json"
    text = lambda metrics: {k: v if math.isfinite(v) else str(v) for k, v in metrics.items()}
    write_json(path, {"step": step, "metrics": text(values), "metrics_of_step_before": text(last)})
    before = f"{last['loss']:.4g} at the step before" if last else "no step before it in this start"
    return (
        f"the loss is {values['loss']} at step {step} ({before}, grad_norm {last.get('grad_norm', math.nan):.3g}); "
        f"metrics in {path}. Lower optim.lr or set optim.clip_norm, and start again: the last checkpoint is untouched"
    )


def _headline(run: RunConfig, videos: int, state: Any, setup: Setup, mesh: Any, start: int) -> str:
    count = lambda tree: f"{num_parameters(tree) / 1e6:.1f} M"
    groups = ", ".join(f"{c}+{m}" for c, m in setup.plan.budgets)
    parts = ", ".join(f"{name} {count(tree)}" for name, tree in state["params"].items())
    axes = ", ".join(f"{a} {n}" for a, n in mesh.shape.items() if n > 1) or "1 device"
    resumed = f"; going on from step {start}" if start else ""
    return (
        f"{run.objective} {run.model.variant}: {parts} parameters; {videos} videos; "
        f"{run.grid[0]}x{run.grid[1]}x{run.grid[2]} tokens, "
        f"context+target {groups}; {setup.clip_flops / 1e9:.3g} GFLOP a clip; "
        f"{axes} ({jax.devices()[0].device_kind}){resumed}"
    )


def _describe(command: str, mesh: Any, state: Any) -> dict[str, Any]:
    """What made this run: versions, devices, command, date."""
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "mesh": dict(mesh.shape),
        "processes": jax.process_count(),
        "parameters": {name: num_parameters(tree) for name, tree in state["params"].items()},
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "av", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def _facts(run: RunConfig, mesh: Any) -> dict[str, str]:
    """What must be the same on all hosts."""
    config = hashlib.sha256(json.dumps(config_lib.to_dict(run), sort_keys=True).encode()).hexdigest()[:12]
    return {"config": config, "mesh": str(dict(mesh.shape)), "backend": jax.default_backend(), **_versions()}


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
