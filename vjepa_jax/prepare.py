"""A run from its config: what it is made of, its step on a mesh, its data. Training, benchmarks, estimates share it."""

import dataclasses
from typing import Any

import jax
import optax

from data_pipelines import masking, sources
from vjepa_jax import objectives
from vjepa_jax.config import RunConfig
from vjepa_jax.evals.online import check
from vjepa_jax.parallel import partitioning
from vjepa_jax.training.optim import decay_mask, make_optimizer
from vjepa_jax.training.state import abstract_state
from vjepa_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run is made of before it touches a file: see `prepare`."""

    objective: Any
    optimizer: optax.GradientTransformation
    plan: masking.MaskPlan
    stream_plans: dict[str, masking.MaskPlan]  # of the further streams
    clip_flops: float
    step_flops: float  # with the further streams
    abstract: Any  # shapes of the training state

    @property
    def budgets(self) -> dict[str, list[tuple[int, int]]]:
        """(context, target) tokens of every mask group, by stream; "" is the main one."""
        return {name: plan.budgets for name, plan in ({"": self.plan} | self.stream_plans).items()}


def prepare(run: RunConfig) -> Setup:
    """Everything of a run that needs neither devices nor data. Raises ConfigError."""
    objective, optimizer = objectives.create(run), make_optimizer(run)
    abstract = abstract_state(objective, optimizer)
    decay_mask(abstract["params"], run.optim)
    check(run.eval)
    plan = masking.make_plan(run)
    clip_flops = sum(objective.flops(plan.budgets).values())
    step_flops, stream_plans = clip_flops * run.batch_size, {}
    for name, stream in run.stream_runs.items():
        stream_plans[name] = masking.make_plan(stream)
        step_flops += sum(objective.flops(stream_plans[name].budgets, stream).values()) * stream.batch_size
    return Setup(objective, optimizer, plan, stream_plans, clip_flops, step_flops, abstract)


def jit_step(run: RunConfig, setup: Setup, mesh: jax.sharding.Mesh) -> Any:
    """The training step (training/step.py) on a mesh; it takes the place of the state that it is given."""
    shardings = partitioning.state_shardings(setup.abstract, mesh)
    return jax.jit(
        make_train_step(setup.objective, setup.optimizer, run),
        donate_argnums=0,
        in_shardings=(shardings, partitioning.batch_sharding(mesh)),
        out_shardings=(shardings, partitioning.replicated(mesh)),
    )


def open_mesh_and_data(run: RunConfig, setup: Setup) -> tuple[jax.sharding.Mesh, int]:
    """The mesh of the devices here and the number of videos. Raises ConfigError or DataError where one does not fit."""
    mesh = partitioning.make_mesh(run.mesh)
    partitioning.check_mesh(run, mesh, setup.budgets)
    return mesh, sum(len(source) for source in sources.open_sources(run.data))
