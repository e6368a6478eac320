"""Training objectives, one file a method, all behind one interface.

An objective is an object with
  init(rng) -> (params, aux)                      parameters to train, and what the method carries beside them
  loss(params, aux, batch, rng, step) -> (loss, metrics)   pure; float32 scalar and scalars to log
  outputs(params, aux, batch) -> Outputs          what health is computed from
  after_update(params, aux, step) -> aux          runs after the optimiser (EMA)
  eval_params(params, aux) -> params              the parameters that are evaluated and published
  features(params, video, layers=()) -> [B, T', H', W', D]   the one tensor that every evaluation reads; with layers
                                                  the outputs of these blocks, [B, L, T', H', W', D]
  predict(params, video, context, target) -> [B, M, D]     latent forecasts at token ids
  flops(budgets, stream=None) -> dict             analytic FLOPs a clip of the main or another stream, by part
"""

from vjepa_jax.config import ConfigError, RunConfig
from vjepa_jax.objectives.distill import Distillation
from vjepa_jax.objectives.ijepa import IJEPA
from vjepa_jax.objectives.vjepa2 import VJEPA2

OBJECTIVES = {"vjepa2": VJEPA2, "ijepa": IJEPA, "distill": Distillation}


def create(run: RunConfig):
    """The objective that `run.objective` names."""
    if run.objective not in OBJECTIVES:
        raise ConfigError(f"objective={run.objective!r} is not one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[run.objective](run)
