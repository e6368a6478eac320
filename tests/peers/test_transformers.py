"""transformers' V-JEPA 2 beside ours, on the same random weights, in both directions."""

import jax
import numpy as np
import pytest
import torch
from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model

import vjepa_jax
from vjepa_jax.convert import formats
from vjepa_jax.models.predictor import Predictor

TOLERANCE = {"rtol": 0, "atol": 5e-5}
GRID = (2, 3, 3)
# widths whose heads have 64, 80, 88 and 26 channels: ViT-L and g, ViT-H, ViT-giant, and one that leaves many unrotated
SIZES = {"64": (128, 2), "80": (160, 2), "88": (264, 3), "26": (104, 4)}


def make(cls, width, heads, **changes):
    """A model of transformers whose every parameter is random, biases and mask tokens too."""
    config = VJEPA2Config(
        crop_size=48, frames_per_clip=4, hidden_size=width, num_hidden_layers=3, num_attention_heads=heads,
        num_pooler_layers=2, pred_hidden_size=64, pred_num_attention_heads=2, pred_num_hidden_layers=2,
        pred_num_mask_tokens=3, **changes,
    )  # fmt: skip
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.1 * torch.randn_like(parameter))
    return model


def clips():
    return np.random.default_rng(0).normal(size=(2, 4, 48, 48, 3)).astype(np.float32)


def pixels():
    return torch.from_numpy(np.moveaxis(clips(), -1, 2).copy())


def masks():
    """Context and target ids, int32 [2, 7] and [2, 5], without overlap."""
    ids = np.stack([np.random.default_rng(i).permutation(18)[:12] for i in range(2)]).astype(np.int32)
    return np.sort(ids[:, :7]), np.sort(ids[:, 7:])


def assert_same_model(theirs, encoder):
    """Features of whole clips, and predictions with given masks and with transformers' default ones."""
    with torch.no_grad():
        features = theirs(pixels(), skip_predictor=True).last_hidden_state.numpy()
    np.testing.assert_allclose(np.asarray(encoder(clips())).reshape(features.shape), features, **TOLERANCE)
    every = np.arange(18, dtype=np.int32)[None].repeat(2, 0)
    predict = jax.jit(Predictor(encoder.run.model).apply, static_argnums=(4, 5))
    for context, target in (masks(), (every, every)):
        as_torch = [torch.from_numpy(ids.astype(np.int64)) for ids in (context, target)]
        with torch.no_grad():
            out = theirs(pixels(), context_mask=as_torch[:1], target_mask=as_torch[1:])
        kept = np.take_along_axis(features, context[..., None], 1)
        np.testing.assert_array_equal(out.masked_hidden_state, kept)  # it drops tokens after the encoder
        ours = predict({"params": encoder.params["predictor"]}, kept, context, target, GRID, 1)[0]
        np.testing.assert_allclose(ours, out.predictor_output.last_hidden_state.numpy(), **TOLERANCE)


@pytest.mark.parametrize("head_size", SIZES)
def test_their_folder_in_ours_and_back(head_size, tmp_path):
    theirs = make(VJEPA2Model, *SIZES[head_size])
    theirs.save_pretrained(tmp_path / "in", max_shard_size="200KB")
    assert (tmp_path / "in" / "model.safetensors.index.json").is_file()
    assert_same_model(theirs, vjepa_jax.load(tmp_path / "in", dtype="float32"))
    formats.write(tmp_path / "out", formats.read(tmp_path / "in"), "hf")
    again, info = VJEPA2Model.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    for (name, a), b in zip(theirs.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    changed = {k for k, v in theirs.config.to_dict().items() if again.config.to_dict()[k] != v}
    assert changed <= {"_name_or_path", "architectures", "dtype", "num_pooler_layers"}, changed


def test_our_run_in_theirs(tmp_path):
    """Weights that were never in transformers: another MLP width in either tower, other depths, an odd ratio."""
    theirs = make(VJEPA2Model, 104, 4, mlp_ratio=48 / 11, pred_mlp_ratio=3)
    theirs.save_pretrained(tmp_path / "in")
    weights = formats.read(tmp_path / "in")
    encoder, rng = vjepa_jax.Encoder.random(weights.run, seed=1), np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32), encoder.params)
    params = jax.device_get(params)
    formats.write(tmp_path / "out", type(weights)(weights.run, params), "hf")
    again = VJEPA2Model.from_pretrained(tmp_path / "out").eval()
    assert_same_model(again, vjepa_jax.load(tmp_path / "out", dtype="float32"))


def test_bfloat16_is_read_exactly(tmp_path):
    theirs = make(VJEPA2Model, 104, 4).bfloat16()
    theirs.save_pretrained(tmp_path / "in")
    assert_same_model(theirs.float(), vjepa_jax.load(tmp_path / "in", dtype="float32"))


def test_classifiers(tmp_path):
    labels = {0: "Pushing", 1: "Pulling", 2: "Nothing"}
    theirs = make(VJEPA2ForVideoClassification, 104, 4, id2label=labels)
    theirs.save_pretrained(tmp_path / "in")
    weights = formats.read(tmp_path / "in")
    assert weights.probe.labels == tuple(labels.values())
    tokens = vjepa_jax.load(tmp_path / "in", dtype="float32")(clips()).reshape(2, 18, 104)
    ours = jax.jit(weights.probe.model.apply)({"params": weights.probe.params}, tokens)
    with torch.no_grad():
        logits = theirs(pixels()).logits
    np.testing.assert_allclose(ours, logits.numpy(), **TOLERANCE)

    formats.write(tmp_path / "out", weights, "hf")
    again, info = VJEPA2ForVideoClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert again.config.id2label == labels
    with torch.no_grad():
        assert torch.equal(again.eval()(pixels()).logits, logits)
