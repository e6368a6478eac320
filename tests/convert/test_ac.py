"""Files of V-JEPA 2-AC: their numbers, both ways bit for bit, and what is said of those that do not fit."""

import jax
import numpy as np
import pytest

import vjepa_jax
from vjepa_jax.config import ConfigError, ModelConfig, PredictorConfig
from vjepa_jax.convert import ConvertError, ac, formats, torch_file
from vjepa_jax.convert.shapes import CONDITIONS, ac_predictor_shapes, encoder_shapes
from vjepa_jax.convert.sizes import infer_model
from vjepa_jax.convert.tensors import read_tensors, write_tensors
from vjepa_jax.convert.weights import Hints
from vjepa_jax.models.ac_predictor import ACPredictor

from .conftest import arrays, part

HEADS = {"num_heads": 2, "predictor_heads": 2}


@pytest.fixture(scope="module")
def data():
    return arrays("vjepa2_tiny.npz")


@pytest.fixture
def file(data, tmp_path):
    """Writes a checkpoint; keyword arguments replace tensors of its predictor, None takes one out."""

    def write(name="a.pt", **changes):
        encoder = {f"module.{name}": array for name, array in part(data, "encoder/").items()}
        tensors = {**part(data, "ac_predictor/"), **{k.replace("__", "."): v for k, v in changes.items()}}
        predictor = {f"module.{name}": array for name, array in tensors.items() if array is not None}
        content = {"encoder": encoder, "target_encoder": encoder, "predictor": predictor, "opt": None, "epoch": 1}
        torch_file.write(tmp_path / name, content)
        return tmp_path / name

    return write


def test_gives_the_features_and_predictions_of_the_pytorch_modules(data, file):
    encoder = vjepa_jax.load(file(), dtype="float32", **HEADS)
    video = np.moveaxis(data["video_bcthw"], 1, -1)
    features = encoder(video).reshape(3, 64, 32)
    np.testing.assert_allclose(features, data["encoder_out/full"], rtol=0, atol=2e-5)
    predictor = ACPredictor(encoder.run.model)
    apply = jax.jit(lambda params, *inputs: predictor.apply({"params": params}, *inputs, (3, 4, 4)))
    inputs = [data[f"ac/{name}"] for name in ("frames", "actions", "states")]
    out = apply(encoder.params["ac_predictor"], *inputs)
    np.testing.assert_allclose(out, data["ac/out"], rtol=1e-5, atol=1e-5)
    with pytest.raises(ConvertError, match=r"conditioned on actions .*ACPredictor\(encoder\.run\.model\) with"):
        encoder.predict(video, np.arange(8), np.arange(8, 16))


def test_round_trip_is_bitwise(data, file, tmp_path):
    weights = formats.read(file(), Hints(**HEADS))
    assert weights.params.keys() == {"encoder", "ac_predictor"}
    formats.write(tmp_path / "ours", weights, "ours")
    assert vjepa_jax.load(tmp_path / "ours").params.keys() == weights.params.keys()
    formats.write(tmp_path / "b.pt", formats.read(tmp_path / "ours"), "official")
    written = torch_file.read(tmp_path / "b.pt")
    for tower, prefix in (("encoder", "encoder/"), ("target_encoder", "encoder/"), ("predictor", "ac_predictor/")):
        expected = part(data, prefix)
        assert written[tower].keys() == {f"module.backbone.{name}" for name in expected}
        for name, array in expected.items():
            np.testing.assert_array_equal(written[tower][f"module.backbone.{name}"], array, err_msg=name)
    again = formats.read(tmp_path / "b.pt")
    assert again.run == weights.run
    jax.tree.map(np.testing.assert_array_equal, again.params, weights.params)
    with pytest.raises(ConvertError, match=r"transformers has no action-conditioned model .* --to official or --to o"):
        formats.write(tmp_path / "hf", weights, "hf")


def test_the_released_size_is_recognised_by_its_shapes():
    predictor = PredictorConfig(embed_dim=1024, depth=24, num_heads=16)
    model = ModelConfig(variant="vit_giant_xformers", predictor=predictor)
    zeros = lambda shapes: {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    tensors = zeros(encoder_shapes(model)), zeros(ac_predictor_shapes(model, CONDITIONS))
    assert infer_model(*tensors, Hints(variant="vit_giant_xformers")) == model
    assert 300e6 < sum(array.size for array in tensors[1].values()) < 310e6  # "about 300 M" (arXiv 2506.09985)


def test_actions_may_have_any_size(file):
    read = vjepa_jax.load(file(action_encoder__weight=np.zeros((32, 2), np.float32)), **HEADS)
    assert read.params["ac_predictor"]["action_encoder"]["kernel"].shape == (2, 32)
    read = vjepa_jax.load(file("b.pt", extrinsics_encoder__weight=np.zeros((32, 12), np.float32)), **HEADS)
    assert read.params["ac_predictor"]["extrinsics_encoder"]["kernel"].shape == (12, 32)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("extrinsics_encoder.bias", None, r"tensor extrinsics_encoder.bias is missing \(1 such\)"),
        ("state_encoder.weight", None, r"tensor state_encoder.weight is missing \(1 such\)"),
        ("mask_tokens.0", np.zeros((1, 1, 32)), "tensor mask_tokens.0 has no place in this model"),
        ("state_encoder.weight", np.zeros((3, 7)), r"state_encoder.weight is \[3, 7\] and this model has \[32, 7\]"),
        ("state_encoder.weight", np.zeros(7), r"state_encoder.weight is \[7\] and this model has \[32, 7\]"),
        ("state_encoder.weight", np.zeros(()), r"state_encoder.weight is \[\] and this model has \[32, 7\]"),
        ("predictor_blocks.1.norm1.bias", np.zeros(32, np.int64), "norm1.bias is int64, parameters are float32"),
        ("predictor_norm.weight", None, "tensor predictor_norm.weight is missing"),
    ],
)
def test_what_does_not_fit_is_named(file, name, array, message):
    with pytest.raises(ConvertError, match=message):
        formats.read(file(**{name.replace(".", "__"): array}), Hints(**HEADS))


def test_unknown_heads_and_positions_are_one_line(file):
    with pytest.raises(ConvertError, match=r"predictor of width 32 is of no known size.* give --predictor-heads"):
        formats.read(file(), Hints(num_heads=2))
    with pytest.raises(ConfigError, match=r"model\.position='sincos': actions need one of rope_tiled"):
        vjepa_jax.load(file("b.pt"), position="sincos", **HEADS)


def test_a_folder_of_ours_is_checked(file, tmp_path):
    weights = formats.read(file(), Hints(**HEADS))
    assert ac.tree_shapes(weights.params["ac_predictor"], weights.run.model)["action_encoder.kernel"] == (7, 32)
    formats.write(tmp_path / "ours", weights, "ours")
    tensors = read_tensors(tmp_path / "ours" / "params.safetensors")
    for name, array, message in (
        ("state_encoder.kernel", None, r"tensor ac_predictor.state_encoder.kernel is missing \(1 such\)"),
        ("norm.scale", np.zeros(3, np.float32), r"ac_predictor.norm.scale is \[3\] and this model has \[32\]"),
        ("mask_tokens", np.zeros(3, np.float32), "ac_predictor.mask_tokens has no place in this model"),
    ):
        state = {k: v for k, v in {**tensors, f"ac_predictor.{name}": array}.items() if v is not None}
        write_tensors(tmp_path / "ours" / "params.safetensors", state, {})
        with pytest.raises(ConvertError, match=message):
            vjepa_jax.load(tmp_path / "ours")
