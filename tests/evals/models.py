"""Models with known answers, to test evaluations with: anything that is called on video and may predict."""

import functools
from typing import Any

import numpy as np

from vjepa_jax.config import RunConfig
from vjepa_jax.evals import controls
from vjepa_jax.evals.features import pixel_features
from vjepa_jax.evals.forecast import CopyLast


class Collapsed:
    """Constant features, and a prediction of just these."""

    def __init__(self, run: RunConfig):
        self.run = run

    def __call__(self, video: np.ndarray) -> Any:
        return controls.constant_features(video, self.run.model.patch_size, self.run.model.tubelet_size, width=64)

    def predict(self, video: np.ndarray, context: np.ndarray, target: np.ndarray, mask_index: int = 0) -> Any:
        return CopyLast(self).predict(video, context, target)


class Static(CopyLast):
    """Pixels as features, and the forecast that nothing moves."""

    def __init__(self, run: RunConfig):
        self.run = run
        model = run.model
        super().__init__(functools.partial(pixel_features, patch=model.patch_size, tubelet=model.tubelet_size))
