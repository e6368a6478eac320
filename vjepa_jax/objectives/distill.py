"""Distillation: predict the features of a frozen, usually larger, encoder from the visible tokens (arXiv 2603.14482).

The student is trained as V-JEPA 2.1 is, on the last level only, with a frozen teacher in place of the EMA encoder and a
predictor that ends in the teacher's width (model.predictor.out_dim). What is evaluated and published is the EMA of the
student, aux["target"].

Shape suffixes: B batch, N tokens, P values of one tubelet, D embedding of the student, E embedding of the teacher.
"""

import math

import jax

from vjepa_jax.config import ConfigError, RunConfig
from vjepa_jax.models.variants import encoder_flops, encoder_size, feature_dim, predictor_levels
from vjepa_jax.models.vit import Encoder
from vjepa_jax.objectives.vjepa2 import VJEPA2, Params
from vjepa_jax.ops.losses import layer_norm


class Distillation(VJEPA2):
    """The objective (interface: objectives/__init__.py). params: {"encoder", "predictor"}; aux: {"target", "teacher"}.

    `init` gives the teacher random weights; training replaces them with those of `teacher.path`.
    """

    def __init__(self, run: RunConfig):
        super().__init__(run)
        if run.teacher is None:
            raise ConfigError("objective='distill' needs a teacher: set teacher.model and teacher.path")
        student, teacher = run.model, run.teacher.model
        width = encoder_size(teacher).embed_dim
        if predictor_levels(student) > 1 or feature_dim(student) != width:
            raise ConfigError(
                f"objective='distill' predicts the teacher's last level of {width} channels: set "
                f"model.predictor.out_dim={width} and, with model.levels, model.predictor.last_level_only=True"
            )
        for key in ("patch_size", "tubelet_size", "image_tokenizer"):
            if getattr(student, key) != getattr(teacher, key):
                raise ConfigError(f"model.{key} and teacher.model.{key} differ: student and teacher share their tokens")
        self.teacher = Encoder(teacher, student.target_dtype == "float8", frozen=True)

    def init(self, rng: jax.Array) -> tuple[Params, Params]:
        params, aux = super().init(rng)
        teacher = VJEPA2.fresh_encoder(self.teacher, self.run, jax.random.fold_in(rng, 1))
        return params, aux | {"teacher": teacher}

    def after_update(self, params: Params, aux: Params, step: jax.Array) -> Params:
        return super().after_update(params, aux, step) | {"teacher": aux["teacher"]}

    def flops(self, budgets: list[tuple[int, int]], stream: RunConfig | None = None) -> dict[str, float]:
        """As for V-JEPA, with the teacher's forward pass as the target's."""
        tokens = math.prod((stream or self.run).grid)
        target = encoder_flops(self.run.teacher.model, tokens, self._counts_as_image(stream))
        return super().flops(budgets, stream) | {"target": target}

    def _targets(self, aux, patches_BNP, grid, image: bool):
        """Features of the student's EMA (only health reads them) and the teacher's, normalised."""
        student_BND = self.encoder.apply({"params": aux["target"]}, patches_BNP, grid, image=image)
        teacher_BNE = self.teacher.apply({"params": aux["teacher"]}, patches_BNP, grid, image=image)
        return jax.lax.stop_gradient(student_BND), layer_norm(jax.lax.stop_gradient(teacher_BNE))
