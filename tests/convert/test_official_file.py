"""Official checkpoint files, families 2 and 2.1: their numbers, both ways bit for bit, and what is said of others."""

import dataclasses

import jax
import numpy as np
import pytest

import vjepa_jax
from vjepa_jax import objectives
from vjepa_jax.config import ModelConfig, PredictorConfig
from vjepa_jax.convert import ConvertError, formats, torch_file
from vjepa_jax.convert.official_file import CONFIG_KEY
from vjepa_jax.convert.shapes import encoder_shapes, predictor_shapes
from vjepa_jax.convert.sizes import infer_model
from vjepa_jax.convert.weights import Hints, Weights, make_run
from vjepa_jax.models.variants import VARIANTS, encoder_size
from vjepa_jax.ops.losses import layer_norm

from .conftest import arrays, part

TOLERANCE = {"rtol": 0, "atol": 2e-5}
TINY = Hints(num_heads=2, predictor_heads=2)
HEADS = {"num_heads": 2, "predictor_heads": 2}


@pytest.fixture(scope="module")
def family2():
    return arrays("vjepa2_tiny.npz")


@pytest.fixture(scope="module")
def family21():
    return arrays("vjepa2_1_tiny.npz")


def checkpoint(data, prefix="module.backbone.", towers=("encoder", "target_encoder", "predictor")):
    """What the official training saves, with its other keys."""
    content = {
        tower: {prefix + name: array for name, array in part(data, f"{tower}/").items()}
        for tower in towers
        if part(data, f"{tower}/")
    }
    return content | {"opt": {"state": {}}, "scaler": None, "epoch": 3, "loss": 0.5, "batch_size": 24, "lr": 1e-3}


def write(path, content):
    torch_file.write(path, content)
    return path


def video_of(data):
    return np.moveaxis(data["video_bcthw"], 1, -1)


def test_family_2_gives_its_numbers(family2, tmp_path):
    path, video = write(tmp_path / "a.pt", checkpoint(family2)), video_of(family2)
    target = vjepa_jax.load(path, dtype="float32", **HEADS)(video).reshape(3, 64, 32)
    np.testing.assert_allclose(layer_norm(target), family2["target_out/normalized"], **TOLERANCE)
    online = vjepa_jax.load(path, dtype="float32", tower="encoder", **HEADS)
    np.testing.assert_allclose(online(video).reshape(3, 64, 32), family2["encoder_out/full"], **TOLERANCE)
    masks = [family2[f"masks/0/{kind}"] for kind in ("context", "target")]
    np.testing.assert_allclose(online.predict(video, *masks), family2["predictor_out/0"], **TOLERANCE)


def test_family_21_gives_its_numbers(family21, tmp_path):
    encoder = vjepa_jax.load(write(tmp_path / "a.pt", checkpoint(family21)), dtype="float32", **HEADS)
    model = encoder.run.model
    assert (model.position, model.rope_grid, model.levels) == ("rope_interleaved", 16, (2, 5, 8, 11))
    assert model.image_tokenizer and model.predictor.predict_context and model.predictor.out_dim is None
    video, masks = video_of(family21), [family21[f"masks/0/{kind}"] for kind in ("context", "target")]
    last = family21["encoder_out/full_hierarchical"][..., -32:]
    np.testing.assert_allclose(encoder(video).reshape(3, 64, 32), last, **TOLERANCE)
    image = encoder(np.moveaxis(family21["image_bcthw"], 1, -1)).reshape(2, 16, 32)
    np.testing.assert_allclose(image, family21["encoder_out/image_hierarchical"][..., -32:], **TOLERANCE)
    np.testing.assert_allclose(encoder.predict(video, *masks), family21["predictor_out/0"], **TOLERANCE)


@pytest.mark.parametrize("family", ["family2", "family21"])
def test_round_trip_is_bitwise(family, request, tmp_path):
    data = request.getfixturevalue(family)
    weights = formats.read(write(tmp_path / "in.pt", checkpoint(data)), dataclasses.replace(TINY, tower="encoder"))
    formats.write(tmp_path / "ours", weights, "ours")
    formats.write(tmp_path / "out.pt", formats.read(tmp_path / "ours"), "official")
    written = torch_file.read(tmp_path / "out.pt")
    assert written.keys() == {"encoder", "target_encoder", "predictor", CONFIG_KEY}
    for tower, theirs in (("encoder", "encoder/"), ("target_encoder", "encoder/"), ("predictor", "predictor/")):
        expected = {f"module.backbone.{name}": array for name, array in part(data, theirs).items()}
        assert written[tower].keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(written[tower][name], array, err_msg=name)
    again = formats.read(tmp_path / "out.pt")  # a file of ours needs no hints
    assert again.run == weights.run
    jax.tree.map(np.testing.assert_array_equal, again.params, weights.params)
    with pytest.raises(ConvertError, match="says itself what model it holds: leave out num_heads, predictor_heads"):
        formats.read(tmp_path / "out.pt", TINY)


def test_the_tower_is_chosen(family2, tmp_path):
    read = lambda path, tower=None: formats.read(path, dataclasses.replace(TINY, tower=tower)).params["encoder"]["norm"]
    content = checkpoint(family2)
    path = write(tmp_path / "a.pt", content)
    online, target = family2["encoder/norm.bias"], family2["target_encoder/norm.bias"]
    assert not np.array_equal(online, target)
    np.testing.assert_array_equal(read(path)["bias"], target)
    np.testing.assert_array_equal(read(path, "encoder")["bias"], online)
    with pytest.raises(ConvertError, match=r"has no ema_encoder: --tower may be target_encoder, encoder"):
        read(path, "ema_encoder")
    content["ema_encoder"] = content.pop("target_encoder")
    np.testing.assert_array_equal(read(write(tmp_path / "b.pt", content))["bias"], target)
    del content["ema_encoder"]
    np.testing.assert_array_equal(read(write(tmp_path / "c.pt", content))["bias"], online)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_prefixes_and_position_tables_are_dropped(family2, tmp_path, prefix):
    content = checkpoint(family2, prefix)
    content["encoder"][f"{prefix}pos_embed"] = np.zeros((1, 64, 32), np.float32)
    content["predictor"][f"{prefix}predictor_pos_embed"] = np.zeros((1, 64, 32), np.float32)
    path = write(tmp_path / "a.pt", content)
    hints = dataclasses.replace(TINY, tower="encoder")
    with pytest.raises(
        ConvertError, match=r"may be of V-JEPA 1.* --position sincos for V-JEPA 1, --position rope_tiled"
    ):
        formats.read(path, hints)  # two mask tokens, as V-JEPA 1 has
    params = formats.read(path, dataclasses.replace(hints, position="rope_tiled")).params
    assert params.keys() == {"encoder", "predictor"}
    np.testing.assert_array_equal(params["encoder"]["norm"]["bias"], family2["encoder/norm.bias"])
    bare = formats.read(write(tmp_path / "b.pt", content["encoder"]), TINY).params
    assert bare.keys() == {"encoder"}
    jax.tree.map(np.testing.assert_array_equal, bare["encoder"], params["encoder"])


def zeros(shapes):
    """Arrays of any shapes that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_size_is_recognised_by_its_shapes(variant, mlp):
    predictor = PredictorConfig(num_mask_tokens=10, mask_token_per_group=False)
    model = ModelConfig(variant=variant, mlp=mlp, predictor=predictor)
    tensors = zeros(encoder_shapes(model)), zeros(predictor_shapes(model))
    if "gi" in variant:
        family = variant.removesuffix("_xformers")
        with pytest.raises(
            ConvertError, match=f"may be {family} or {family}_xformers.*released weights are {family}_x"
        ):
            infer_model(*tensors, Hints())
        assert infer_model(*tensors, Hints(num_heads=encoder_size(model).num_heads)).variant == variant
    found = infer_model(*tensors, Hints(variant=variant if "gi" in variant else None))
    assert encoder_shapes(found) == encoder_shapes(model) and predictor_shapes(found) == predictor_shapes(model)
    assert found.variant == variant and encoder_size(found) == encoder_size(model)
    assert dataclasses.replace(found.predictor, mlp_ratio=4.0) == predictor
    first = infer_model(*tensors, Hints(variant=variant, position="sincos"))  # V-JEPA 1: predictors with as many heads
    assert first.position == "sincos" and first.predictor.num_heads == encoder_size(model).num_heads


def test_the_model_that_weights_are_for_tells_what_the_file_does_not(family2, tmp_path):
    giant = ModelConfig(variant="vit_giant", predictor=PredictorConfig(embed_dim=96, num_heads=3))
    tensors = zeros(encoder_shapes(giant)), zeros(predictor_shapes(giant))
    found = infer_model(*tensors, Hints(like=giant))
    assert (found.variant, found.predictor.num_heads) == ("vit_giant", 3)
    other = infer_model(*tensors, Hints(like=giant, variant="vit_giant_xformers", predictor_heads=2))  # hints go first
    assert (other.variant, other.predictor.num_heads) == ("vit_giant_xformers", 2)
    with pytest.raises(ConvertError, match=r"width 1408, 40 blocks .* another than the config's of width 1024, 24 bl"):
        infer_model(*tensors, Hints(like=ModelConfig(variant="vit_large")))
    with pytest.raises(ConvertError, match=r"predictor of width 96 is another .* set model\.predictor\.embed_dim=96"):
        infer_model(*tensors, Hints(like=ModelConfig(variant="vit_giant")))

    content = checkpoint(family2)
    content["target_encoder"]["module.backbone.pos_embed"] = np.zeros((1, 64, 32), np.float32)
    path, model = write(tmp_path / "a.pt", content), formats.read(write(tmp_path / "b.pt", checkpoint(family2)), TINY)
    for position in ("sincos", "rope_tiled"):
        like = dataclasses.replace(model.run.model, position=position)
        assert formats.read(path, Hints(like=like)).run.model == like
    with pytest.raises(ConvertError, match="may be of V-JEPA 1"):
        formats.read(path, Hints(like=dataclasses.replace(like, position="rope_interleaved")))


def test_sizes_that_are_not_known_ask_for_their_heads(family2, tmp_path):
    path = write(tmp_path / "a.pt", checkpoint(family2))
    with pytest.raises(ConvertError, match=r"width 32, 3 blocks and MLP width 128 is of no known size.* give --heads"):
        formats.read(path)
    with pytest.raises(ConvertError, match=r"predictor of width 32 is of no known size.* give --predictor-heads"):
        formats.read(path, Hints(num_heads=2))
    with pytest.raises(ConvertError, match=r"variant vit_base does not fit an encoder of width 32.* number of heads"):
        formats.read(path, Hints(variant="vit_base"))
    with pytest.raises(ConvertError, match=r"variant vit_base does not fit .* use one of vit_large"):
        infer_model(zeros(encoder_shapes(ModelConfig(variant="vit_large"))), None, Hints(variant="vit_base"))


def distilled_weights():
    """A V-JEPA 2.1 student with random weights: four levels, of which it predicts the last, for a wider teacher."""
    predictor = {"embed_dim": 24, "depth": 1, "num_heads": 2, "num_mask_tokens": 8, "mask_token_per_group": False}
    predictor |= {"predict_context": True, "out_dim": 80, "last_level_only": True}
    model = {"variant": "vit_tiny", "embed_dim": 12, "depth": 12, "num_heads": 2, "predictor": predictor}
    model |= {"position": "rope_interleaved", "rope_grid": 16, "levels": (2, 5, 8, 11), "image_tokenizer": True}
    run, rng = make_run(model | {"mlp_ratio": 4.0}), np.random.default_rng(0)
    shapes, _ = jax.eval_shape(objectives.create(run).init, jax.random.key(0))
    return Weights(run, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes))


def test_distilled_students_go_both_ways(tmp_path):
    weights = distilled_weights()
    formats.write(tmp_path / "a.pt", weights, "official")
    content = torch_file.read(tmp_path / "a.pt")
    assert content["predictor"]["module.backbone.predictor_embed.weight"].shape == (24, 12)
    assert content["predictor"]["module.backbone.predictor_proj_context.weight"].shape == (80, 24)
    del content[CONFIG_KEY]
    again = formats.read(write(tmp_path / "b.pt", content), TINY)
    assert again.run.model == weights.run.model
    jax.tree.map(np.testing.assert_array_equal, again.params, weights.params)


def change(content, tower, name, array):
    tensors = {**content[tower], f"module.backbone.{name}": array}
    return content | {tower: {key: value for key, value in tensors.items() if value is not None}}


@pytest.mark.parametrize(
    ("tower", "name", "array", "message"),
    [
        ("encoder", "blocks.1.mlp.fc1.bias", None, r"tensor blocks.1.mlp.fc1.bias is missing \(1 such\)"),
        ("encoder", "blocks.1.mlp.fc3.bias", np.zeros(3), r"fc3.bias has no place in this model \(1 such\)"),
        ("encoder", "blocks.1.attn.qkv.weight", np.zeros((32, 32)), r"qkv.weight is \[32, 32\] and this .* \[96, 32\]"),
        ("encoder", "blocks.2.norm1.bias", np.zeros(32, np.int64), "norm1.bias is int64, parameters are float32"),
        ("encoder", "patch_embed.proj.weight", None, "proj.weight is missing: this is not a V-JEPA encoder"),
        ("encoder", "patch_embed.proj.weight", np.zeros((32, 3, 16, 16)), "not .* of a video model"),
        ("encoder", "norms_block.0.weight", np.zeros(32), "norms_block.0 of .* with 3 blocks fits no released model"),
        ("predictor", "predictor_proj.bias", np.zeros(3), r"predictor_proj.bias is \[3\] and this model has \[32\]"),
        ("predictor", "predictor_norm.weight", None, "tensor predictor_norm.weight is missing"),
    ],
)
def test_what_does_not_fit_is_named(family2, tmp_path, tower, name, array, message):
    content = change(checkpoint(family2, towers=("encoder", "predictor")), tower, name, array)
    with pytest.raises(ConvertError, match=message):
        formats.read(write(tmp_path / "a.pt", content), TINY)


def test_files_without_an_encoder_are_one_line(family2, tmp_path):
    with pytest.raises(ConvertError, match="holds a list, not a dict"):
        formats.read(write(tmp_path / "a.pt", [1]))
    with pytest.raises(ConvertError, match="holds no encoder: its keys are opt, epoch"):
        formats.read(write(tmp_path / "b.pt", {"opt": {}, "epoch": 1}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": "rope_interleaved"}, "neither V-JEPA 2 nor 2.1"),
        ({"rope_grid": 16}, "neither V-JEPA 2 nor 2.1"),
        ({"levels": (0, 2), "position": "rope_interleaved", "rope_grid": 16}, "not those of V-JEPA 2.1"),
        ({"position": "sincos2d"}, "the official code has no model with this model.position"),
        ({"cls_token": True}, "the official code has no model with this model.cls_token"),
        ({"gelu": "tanh"}, "the official code has no model with this model.gelu"),
        ({"predictor": PredictorConfig(kind="cross")}, "has no model with this model.predictor.kind"),
    ],
)
def test_models_that_the_official_code_lacks_are_refused(family2, tmp_path, change, message):
    weights = formats.read(write(tmp_path / "a.pt", checkpoint(family2)), TINY)
    run = dataclasses.replace(weights.run, model=dataclasses.replace(weights.run.model, **change))
    with pytest.raises(ConvertError, match=message):
        formats.write(tmp_path / "b.pt", dataclasses.replace(weights, run=run), "official")
    assert not (tmp_path / "b.pt").exists()
