"""Parameter counts and FLOPs of the family, against the published models."""

import functools
import json

import pytest

from vjepa_jax import cli, config_file
from vjepa_jax.config import ModelConfig
from vjepa_jax.models.family import FAMILY, Member, align, describe
from vjepa_jax.models.variants import VARIANTS, encoder_size, predictor_size

# Millions of parameters of an encoder with V-JEPA 2's tokenizer, counted on the modules of vjepa2
# src/models/vision_transformer.py (vit_gigantic with the MLP that V-JEPA 2.1 gives it).
MILLIONS = {
    "vit_tiny": 5.6,
    "vit_small": 21.9,
    "vit_base": 86.2,
    "vit_large": 303.9,
    "vit_huge": 631.6,
    "vit_giant": 1012.2,
    "vit_giant_xformers": 1012.2,
    "vit_gigantic": 1843.9,
    "vit_gigantic_xformers": 1843.9,
}


@functools.cache
def row_of(name):
    return describe(next(member for member in FAMILY if member.name == name))


@pytest.mark.parametrize("variant", MILLIONS)
def test_encoders_have_the_published_number_of_parameters(variant):
    row = describe(Member("", ModelConfig(variant=variant), 16, 256))
    assert round(row["encoder_parameters"] / 1e6, 1) == MILLIONS[variant]
    embed = (2 * 16 * 16 * 3 + 1) * VARIANTS[variant].embed_dim
    assert row["encoder_parameters"] == encoder_size(ModelConfig(variant=variant)).num_parameters() + embed


def test_predictors_have_the_published_number_of_parameters():
    millions = lambda name: round(row_of(name)["predictor_parameters"] / 1e6, 1)
    assert millions("V-JEPA 2 ViT-L") == 22.1 and millions("V-JEPA 2 ViT-g") == 22.4
    assert millions("V-JEPA 2.1 ViT-G") == 59.4  # 24 deep, four levels in and out, an output for the context


@pytest.mark.parametrize(
    ("name", "frames", "resolution", "teraflops"),
    [
        ("V-JEPA 2 ViT-L", 64, 256, 11.5),
        ("V-JEPA 2 ViT-H", 64, 256, 21.3),
        ("V-JEPA 2 ViT-g", 64, 256, 31.7),
        ("V-JEPA 2 ViT-g 384", 64, 384, 114),
    ],
)
def test_flops_of_a_clip_are_those_of_the_target_encoder(name, frames, resolution, teraflops):
    row = row_of(name)
    assert (row["frames"], row["resolution"]) == (frames, resolution)
    assert row["encoder_flops_per_clip"] / 1e12 == pytest.approx(teraflops, rel=0.01)


@pytest.mark.parametrize("member", [m for m in FAMILY if m.config], ids=lambda m: m.name)
def test_a_member_is_the_model_of_its_config_file(member, repo):
    run = config_file.load(str(repo / "experiments" / member.config))
    ours, theirs = encoder_size(member.model), encoder_size(run.model)
    if member.config == "pretrain/folder.py":  # its variant is chosen on the command line
        assert run.model.variant in VARIANTS
    else:
        assert ours == theirs and (member.num_frames, member.resolution) == (run.data.num_frames, run.data.resolution)
    assert member.model.position == run.model.position and member.model.patch_size == run.model.patch_size
    assert predictor_size(member.model) == predictor_size(run.model) or run.model.variant != member.model.variant


def test_the_command_lists_every_member(capsys, monkeypatch):
    monkeypatch.setattr("vjepa_jax.models.family.FAMILY", FAMILY[-2:])
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("model  ") and "5.6 M" in lines[1] and "21.9 M" in lines[2]
    assert cli.main(["models", "--json"]) == 0
    small = json.loads(capsys.readouterr().out.splitlines()[1])
    assert small["name"] == "ours, ViT-S" and small["encoder_parameters"] == 21_884_544


def test_columns_are_aligned():
    assert align(["a", "long"], [["word", "1"], ["b", "10"]], right=[1]) == "a     long\nword     1\nb       10"
