"""vjepa_jax.load and Encoder."""

import jax
import numpy as np
import pytest

import vjepa_jax
from vjepa_jax import config as config_lib
from vjepa_jax.encoder import Encoder
from vjepa_jax.training.checkpoint import CheckpointError


@pytest.fixture
def encoder(tiny_config):
    return Encoder.random(config_lib.from_config_dict(tiny_config()), seed=1)


def test_features_of_a_clip_and_of_a_batch(encoder):
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
    features = encoder(video)
    assert features.shape == (2, 2, 4, 4, 16) and features.dtype == np.float32
    np.testing.assert_allclose(encoder(video[0]), features[0], atol=1e-5)
    assert encoder(video[:, :, :8]).shape == (2, 2, 2, 4, 16)
    assert Encoder.random(encoder.run, seed=1)(video).tolist() == features.tolist()
    assert not np.allclose(Encoder.random(encoder.run, seed=2)(video), features)


def test_predictions(encoder):
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
    context, target = np.arange(16)[None].repeat(2, 0), np.arange(16, 20)[None].repeat(2, 0)
    prediction = encoder.predict(video, context, target)
    assert prediction.shape == (2, 4, 16)
    np.testing.assert_allclose(encoder.predict(video[0], context[0], target[0]), prediction[0], atol=1e-5)


def test_wrong_videos_and_folders_are_one_line(encoder, tmp_path):
    with pytest.raises(ValueError, match=r"video must be \[T, H, W, 3\]"):
        encoder(np.zeros((4, 16, 16)))
    with pytest.raises(ValueError, match="a clip of 3 frames of 16x16 pixels does not divide"):
        encoder(np.zeros((3, 16, 16, 3), np.uint8))
    with pytest.raises(CheckpointError, match="is not a run folder"):
        vjepa_jax.load(tmp_path)
    (tmp_path / "config.json").write_text(__import__("json").dumps(config_lib.to_dict(encoder.run)))
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        vjepa_jax.load(tmp_path)
    assert jax.tree.leaves(encoder.params)
