"""vjepa_jax.load and Encoder."""

import json

import jax
import numpy as np
import pytest

import vjepa_jax
from vjepa_jax import cli
from vjepa_jax import config as config_lib
from vjepa_jax.convert import ConvertError
from vjepa_jax.convert.weights import Hints
from vjepa_jax.encoder import Encoder, read_weights
from vjepa_jax.training.checkpoint import CheckpointError, Checkpoints


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
    (tmp_path / "config.json").write_text(json.dumps(config_lib.to_dict(encoder.run)))
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        vjepa_jax.load(tmp_path)
    assert jax.tree.leaves(encoder.params)


def test_a_run_folder_is_converted_and_loaded_again(encoder, tmp_path):
    """The target encoder and the predictor go over, bit for bit; `load` takes the copies like the run."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config_lib.to_dict(encoder.run)))
    online = jax.tree.map(lambda leaf: leaf + 1, encoder.params["encoder"])
    params = encoder.params | {"encoder": online}
    checkpoints = Checkpoints(run)
    assert checkpoints.save(5, {"params": params, "aux": {"target": encoder.params["encoder"]}}) is None
    assert checkpoints.wait() is None
    checkpoints.close()

    for name, to in (("ours", "ours"), ("a.pt", "official"), ("hf", "hf")):
        assert cli.main(["convert", str(run), str(tmp_path / name), "--to", to]) == 0
        weights = read_weights(tmp_path / name)
        jax.tree.map(np.testing.assert_array_equal, weights.params, encoder.params)
        assert (weights.run == encoder.run) == (to != "hf")  # transformers' config keeps the model, not the training
    with pytest.raises(ConvertError, match="says itself what model it holds: leave out tower"):
        read_weights(run, hints=Hints(tower="encoder"))
    with pytest.raises(CheckpointError, match="step 4"):
        read_weights(run, 4)
