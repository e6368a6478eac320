"""transformers' V-JEPA 2: its numbers from its folders, and its folders from our weights, without torch."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import vjepa_jax
from vjepa_jax.convert import ConvertError, formats, hf
from vjepa_jax.convert.tensors import read_folder, write_tensors
from vjepa_jax.models.predictor import Predictor
from vjepa_jax.models.vit import Encoder

from .conftest import write_hf_folder

TOLERANCE = {"rtol": 0, "atol": 2e-5}
GRID = (4, 4, 4)


def video_of(data):
    return np.moveaxis(data["in/pixel_values_videos"], 2, -1)


def gathered(x_BND, ids_BK):
    return np.take_along_axis(x_BND, ids_BK[..., None], 1)


@pytest.fixture(scope="module")
def encoder(hf_model_folder):
    return vjepa_jax.load(hf_model_folder, dtype="float32")


def test_features_and_training_path_agree(hf_model, encoder):
    data, video = hf_model[0], video_of(hf_model[0])
    context, target = data["in/context_mask"].astype(np.int32), data["in/target_mask"].astype(np.int32)
    full = np.asarray(encoder(video)).reshape(2, 64, 96)
    np.testing.assert_allclose(full, data["out/encoder_out"], **TOLERANCE)
    np.testing.assert_allclose(gathered(full, target), data["out/target_hidden"], **TOLERANCE)

    objective, params = encoder.objective, encoder.params
    kept = gathered(np.asarray(objective._patches(video)[0]), context)
    masked = jax.jit(objective._encode_levels, static_argnums=2)(params["encoder"], kept, GRID, context)
    np.testing.assert_allclose(masked, data["out/masked_encoder_out"], **TOLERANCE)

    prediction = np.asarray(encoder.predict(video, context, target, mask_index=1))
    np.testing.assert_allclose(prediction, data["out/train_pred_out"], **TOLERANCE)
    loss = np.abs(prediction - gathered(full, target)).mean()
    np.testing.assert_allclose(loss, data["out/l1_loss_vs_full_encoder"], rtol=1e-5)
    assert np.abs(encoder.predict(video, context, target, mask_index=0) - prediction).max() > 1e-2


def test_predictions_from_the_masked_output_agree(hf_model, encoder):
    """transformers encodes all tokens and drops the hidden ones afterwards."""
    data = hf_model[0]
    context, target = data["in/context_mask"].astype(np.int32), data["in/target_mask"].astype(np.int32)
    masked = gathered(data["out/encoder_out"], context)
    np.testing.assert_array_equal(masked, data["out/masked_hidden"])
    predict = jax.jit(Predictor(encoder.run.model).apply, static_argnums=(4, 5))
    variables = {"params": encoder.params["predictor"]}
    np.testing.assert_allclose(
        predict(variables, masked, context, target, GRID, 1)[0], data["out/pred_out"], **TOLERANCE
    )
    every = np.arange(64, dtype=np.int32)[None].repeat(2, 0)
    whole = predict(variables, data["out/encoder_out"], every, every, GRID, 1)[0]
    np.testing.assert_allclose(whole, data["out/pred_out_default_masks"], **TOLERANCE)


def test_hidden_states_agree(hf_model, encoder):
    data, params = hf_model[0], encoder.params["encoder"]
    patches, _ = encoder.objective._patches(video_of(data))
    embedded = patches @ params["patch_embed"]["kernel"] + params["patch_embed"]["bias"]
    np.testing.assert_allclose(embedded, data["out/patch_embed"], **TOLERANCE)
    np.testing.assert_array_equal(data["out/hidden_0"], data["out/patch_embed"])
    for depth in (1, 2, 3):
        # the state after so many blocks, seen through a final norm without scale and bias
        model = dataclasses.replace(encoder.run.model, depth=depth)
        norm = {"scale": jnp.ones(96), "bias": jnp.zeros(96)}
        cut = {**params, "blocks": jax.tree.map(lambda leaf, depth=depth: leaf[:depth], params["blocks"]), "norm": norm}
        ours = jax.jit(Encoder(model).apply, static_argnums=2)({"params": cut}, patches, GRID)
        hidden = data[f"out/hidden_{depth}"]
        theirs = (hidden - hidden.mean(-1, keepdims=True)) / np.sqrt(hidden.var(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(ours, theirs, **TOLERANCE)


def test_logits_agree(hf_classifier, hf_classifier_folder):
    data = hf_classifier[0]
    encoder = vjepa_jax.load(hf_classifier_folder, dtype="float32")
    probe = formats.read(hf_classifier_folder).probe
    assert probe.labels == tuple(f"LABEL_{i}" for i in range(5))
    tokens = encoder(video_of(data)).reshape(2, 64, 96)
    apply = jax.jit(lambda model, x: model.apply({"params": probe.params}, x), static_argnums=0)
    np.testing.assert_allclose(apply(probe.model, tokens), data["out/logits"], **TOLERANCE)
    # small tokens, because only there the published eps and that of transformers give different numbers
    small = tokens * 1e-3
    assert np.abs(apply(probe.model, small) - apply(probe.model.clone(eps=1e-5), small)).max() > 1e-2


@pytest.mark.parametrize("fixture", ["hf_model", "hf_classifier"])
def test_round_trip_is_bitwise(fixture, request, tmp_path):
    _, config, state = request.getfixturevalue(fixture)
    weights = formats.read(write_hf_folder(tmp_path / "in", config, state, shards=3))
    formats.write(tmp_path / "out", weights, "hf")
    written = read_folder(tmp_path / "out")
    assert written.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    same = set(hf._DEFAULTS) - {"in_chans", "qkv_bias", "hidden_act"} - ({"num_pooler_layers"} - saved.keys())
    assert {key: saved[key] for key in same} == {key: config[key] for key in same}
    again = formats.read(tmp_path / "out")
    assert again.run == weights.run and (again.probe is None or again.probe.labels == weights.probe.labels)


def test_half_precision_becomes_float32_and_lossy_types_are_refused(hf_model, tmp_path):
    _, config, state = hf_model
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in state.items()}
    params = formats.read(write_hf_folder(tmp_path / "half", config, half)).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    kernel = half["encoder.layer.1.mlp.fc1.weight"].astype(np.float32).T
    np.testing.assert_array_equal(params["encoder"]["blocks"]["fc1"]["kernel"][1], kernel)
    state = {**state, "encoder.layernorm.bias": np.zeros(96, np.float64)}
    with pytest.raises(
        ConvertError, match=r"tensor encoder.layernorm.bias is float64, parameters are float32: cast it"
    ):
        formats.read(write_hf_folder(tmp_path / "double", config, state))


def test_defaults_that_a_config_leaves_out_are_those_of_transformers(hf_model, tmp_path):
    _, config, state = hf_model
    defaults = {key: value for key, value in config.items() if hf._DEFAULTS.get(key) == value}
    assert {"patch_size", "tubelet_size", "layer_norm_eps", "mlp_ratio"} <= defaults.keys()
    short = {key: value for key, value in config.items() if key not in defaults}
    config = config | {"patch_size": [16, 16]}  # the other way to write it
    folder = write_hf_folder(tmp_path / "short", short, state)
    assert formats.read(folder).run.model == formats.read(write_hf_folder(tmp_path / "in", config, state)).run.model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "vit"}, "is a model of type 'vit': only 'vjepa2' is read"),
        ({"patch_size": [16, 8]}, r"patch_size=\[16, 8\] is not square"),
        ({"hidden_act": "relu"}, "has hidden_act='relu': only 'gelu' is read"),
        ({"layer_norm_eps": 1e-5}, "has layer_norm_eps=1e-05: only 1e-06 is read"),
        ({"num_hidden_layers": 4}, r"tensor encoder.layer.3.norm1.weight is missing \(16 such\)"),
        ({"num_hidden_layers": 2}, r"tensor encoder.layer.2.attention.key.bias has no place in this model \(16 such\)"),
        ({"mlp_ratio": 2}, r"tensor encoder.layer.0.mlp.fc1.weight is \[384, 96\] and this model has \[192, 96\]"),
        ({"pred_num_mask_tokens": 3}, r"predictor.embeddings.mask_tokens is \[4, 1, 1, 48\] and this model has \[3, "),
    ],
)
def test_what_does_not_fit_is_named(hf_model, tmp_path, change, message):
    _, config, state = hf_model
    folder = write_hf_folder(tmp_path / "in", config | change, state)
    with pytest.raises(ConvertError, match=message):
        formats.read(folder)


def test_broken_folders_are_one_line(hf_model, tmp_path):
    _, config, state = hf_model
    folder = write_hf_folder(tmp_path / "in", config, state, shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConvertError, match=r"model-00002-of-00002.safetensors is damaged"):
        formats.read(folder)
    write_tensors(shard, {"other": np.zeros(1, np.float32)}, {})
    with pytest.raises(ConvertError, match=r"is not in .*00002.safetensors, where the index places it: fetch it again"):
        formats.read(folder)
    shard.unlink()
    with pytest.raises(ConvertError, match=r"00002.safetensors does not exist: fetch the whole folder"):
        formats.read(folder)
    (folder / "config.json").write_text('{"model_type')
    with pytest.raises(ConvertError, match=r"config.json cannot be read"):
        formats.read(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ConvertError, match=r"config.json holds no JSON object"):
        formats.read(folder)


def test_an_encoder_alone_is_read_and_has_no_predictions(hf_model, tmp_path):
    data, config, state = hf_model
    state = {name: array for name, array in state.items() if name.startswith("encoder.")}
    folder = write_hf_folder(tmp_path / "in", config, state)
    encoder = vjepa_jax.load(folder, dtype="float32")
    np.testing.assert_allclose(encoder(video_of(data)).reshape(2, 64, 96), data["out/encoder_out"], **TOLERANCE)
    with pytest.raises(ConvertError, match="these weights hold an encoder and no predictor"):
        encoder.predict(video_of(data), np.zeros((2, 1)), np.zeros((2, 1)))
    with pytest.raises(ConvertError, match="makes random ones where they are missing"):
        formats.write(tmp_path / "out", formats.read(folder), "hf")
    assert not (tmp_path / "out").exists() and list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": "rope_interleaved"}, "transformers has V-JEPA 2 only"),
        ({"rope_grid": 16}, "transformers has V-JEPA 2 only"),
        ({"levels": (0, 2)}, "transformers has V-JEPA 2 only"),
        ({"mlp": "swiglu"}, "transformers has no SwiGLU"),
        ({"gelu": "tanh"}, "transformers has no model with this model.gelu"),
        ({"registers": 1}, "transformers has no model with this model.registers"),
    ],
)
def test_models_that_transformers_lacks_are_refused(hf_model_folder, tmp_path, change, message):
    weights = formats.read(hf_model_folder)
    run = dataclasses.replace(weights.run, model=dataclasses.replace(weights.run.model, **change))
    with pytest.raises(ConvertError, match=message):
        formats.write(tmp_path / "out", dataclasses.replace(weights, run=run), "hf")


def test_clips_and_probes_that_transformers_lacks_are_refused(hf_classifier_folder, tmp_path):
    weights = formats.read(hf_classifier_folder)
    run = dataclasses.replace(weights.run, data=dataclasses.replace(weights.run.data, resolution=(64, 96)))
    with pytest.raises(ConvertError, match=r"square clips only, data.resolution is \(64, 96\)"):
        formats.write(tmp_path / "out", dataclasses.replace(weights, run=run), "hf")
    probe = dataclasses.replace(weights.probe, model=weights.probe.model.clone(eps=1e-5))
    with pytest.raises(ConvertError, match=r"pooler has the encoder's 3 heads, eps 1e-06 .* eps 1e-05"):
        formats.write(tmp_path / "out", dataclasses.replace(weights, probe=probe), "hf")
