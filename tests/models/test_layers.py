"""Outputs of several blocks of an encoder: those of shallower encoders with the same first blocks."""

import jax
import numpy as np
import pytest

from vjepa_jax import objectives
from vjepa_jax.config import ConfigError, from_config_dict
from vjepa_jax.encoder import Encoder

VIDEO = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3)).astype(np.uint8)


def encoder_of(tiny_config, **model):
    run = from_config_dict(tiny_config(model={"depth": 3} | model))
    return Encoder.random(run, 1)


def test_a_layer_is_the_output_of_a_shallower_encoder(tiny_config):
    whole = encoder_of(tiny_config)
    outputs = np.asarray(whole.layers(VIDEO, (0, 2)))
    assert outputs.shape == (2, 2, 2, 4, 4, 16)
    np.testing.assert_allclose(outputs[:, 1], whole(VIDEO), atol=1e-6)

    shallow = encoder_of(tiny_config, depth=1)
    blocks = jax.tree.map(lambda leaf: leaf[:1], whole.params["encoder"]["blocks"])
    params = whole.params | {"encoder": whole.params["encoder"] | {"blocks": blocks}}
    np.testing.assert_allclose(outputs[:, 0], Encoder(shallow.run, params)(VIDEO), atol=1e-5)
    assert not np.allclose(outputs[:, 0], outputs[:, 1], atol=1e-3)


def test_a_model_with_levels_gives_them_by_their_own_norms(tiny_config):
    model = encoder_of(tiny_config, levels=(0, 2))
    outputs = np.asarray(model.layers(VIDEO, (0, 2)))
    objective = objectives.create(model.run)
    patches, grid = objective._patches(VIDEO)
    both = objective.encoder.apply({"params": model.params["encoder"]}, patches, grid, every_level=True)
    np.testing.assert_allclose(outputs[:, 0].reshape(2, -1, 16), both[..., :16], atol=1e-6)
    np.testing.assert_allclose(outputs[:, 1], model(VIDEO), atol=1e-6)
    with pytest.raises(ConfigError, match=r"layers=\(1, 2\): this model has norms for the blocks \(0, 2\) only"):
        model.layers(VIDEO, (1, 2))


def test_frames_of_ijepa_have_layers_too(tiny_config):
    groups = [{"kind": "separate", "num_blocks": 2, "spatial_scale": [0.2, 0.3]}]
    config = tiny_config(objective="ijepa", data={"num_frames": 1}, masks={"groups": groups})
    run = from_config_dict(config | {"model": config["model"] | {"tubelet_size": 1, "position": "sincos2d"}})
    model = Encoder.random(run)
    outputs = np.asarray(model.layers(VIDEO, (0, 1)))
    assert outputs.shape == (2, 2, 4, 4, 4, 16)
    np.testing.assert_allclose(outputs[:, 1], model(VIDEO), atol=1e-6)


@pytest.mark.parametrize("layers", [(0, 1), (2, 0), (0, 0, 2), (-1, 2), (0, 3)])
def test_layers_that_are_not_there_are_one_line(tiny_config, layers):
    with pytest.raises(ConfigError, match="must ascend from 0 on and end with the last of the 3 blocks, 2"):
        encoder_of(tiny_config).layers(VIDEO, layers)
