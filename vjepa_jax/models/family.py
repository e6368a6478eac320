"""The V-JEPA family and our small sizes as data: what `vjepa models` lists.

Sizes and clips: facebookresearch/ijepa and jepa (configs/), vjepa2 (configs/train, configs/train_2_1). A member is the
model that is pre-trained; the released V-JEPA 2.1 B and L are distilled from G with a predictor of their own.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vjepa_jax.config import ModelConfig, PredictorConfig
from vjepa_jax.models.predictor import Predictor
from vjepa_jax.models.variants import encoder_flops, encoder_size, predictor_levels
from vjepa_jax.models.vit import Encoder

LEVELS = {"vit_base": (2, 5, 8, 11), "vit_large": (5, 11, 17, 23), "vit_giant_xformers": (9, 19, 29, 39),
          "vit_gigantic_xformers": (11, 23, 37, 47)}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Member:
    """A model, the clip it is trained on last, and the config file that pre-trains it ("" where there is none)."""

    name: str
    model: ModelConfig
    num_frames: int
    resolution: int
    config: str = ""


def _vjepa1(variant: str, heads: int = 16) -> ModelConfig:
    return ModelConfig(variant=variant, position="sincos", predictor=PredictorConfig(num_heads=heads))


def _vjepa21(variant: str, depth: int = 24) -> ModelConfig:
    predictor = PredictorConfig(depth=depth, predict_context=True, num_mask_tokens=8)
    return ModelConfig(
        variant=variant, position="rope_interleaved", rope_grid=16, levels=LEVELS[variant], image_tokenizer=True,
        predictor=predictor,
    )  # fmt: skip


def _ijepa(patch: int) -> ModelConfig:
    predictor = PredictorConfig(num_heads=16, num_mask_tokens=1)
    return ModelConfig(variant="vit_huge", patch_size=patch, tubelet_size=1, position="sincos2d", predictor=predictor)


def _ours(variant: str, patch: int, width: int, depth: int, heads: int) -> ModelConfig:
    predictor = PredictorConfig(embed_dim=width, depth=depth, num_heads=heads)
    return ModelConfig(variant=variant, patch_size=patch, predictor=predictor)


def _vjepa2(variant: str) -> ModelConfig:
    return ModelConfig(variant=variant, predictor=PredictorConfig(num_mask_tokens=10))


FAMILY = (
    Member("I-JEPA ViT-H/14", _ijepa(14), 1, 224, "pretrain/ijepa.py:vith14"),
    Member("I-JEPA ViT-H/16 448", _ijepa(16), 1, 448, "pretrain/ijepa.py:vith16_448"),
    Member("V-JEPA 1 ViT-L", _vjepa1("vit_large"), 16, 224, "pretrain/vjepa1.py:vitl"),
    Member("V-JEPA 1 ViT-H", _vjepa1("vit_huge"), 16, 224, "pretrain/vjepa1.py:vith"),
    Member("V-JEPA 1 ViT-H 384", _vjepa1("vit_huge"), 16, 384, "pretrain/vjepa1.py:vith_384"),
    Member("V-JEPA 2 ViT-L", _vjepa2("vit_large"), 64, 256, "cooldown/vjepa2.py:vitl_256"),
    Member("V-JEPA 2 ViT-H", _vjepa2("vit_huge"), 64, 256, "cooldown/vjepa2.py:vith_256"),
    Member("V-JEPA 2 ViT-g", _vjepa2("vit_giant_xformers"), 64, 256, "cooldown/vjepa2.py:vitg_256"),
    Member("V-JEPA 2 ViT-g 384", _vjepa2("vit_giant_xformers"), 64, 384, "cooldown/vjepa2.py:vitg_384"),
    Member("V-JEPA 2.1 ViT-B", _vjepa21("vit_base", depth=12), 64, 384, "cooldown/vjepa21.py:vitb"),
    Member("V-JEPA 2.1 ViT-L", _vjepa21("vit_large"), 64, 384, "cooldown/vjepa21.py:vitl"),
    Member("V-JEPA 2.1 ViT-g", _vjepa21("vit_giant_xformers"), 64, 384, "cooldown/vjepa21.py:vitg"),
    Member("V-JEPA 2.1 ViT-G", _vjepa21("vit_gigantic_xformers"), 64, 384, "cooldown/vjepa21.py:vitG"),
    Member("ours, ViT-micro/8", _ours("vit_micro", 8, 64, 2, 2), 8, 32, "demo.py"),
    Member("ours, ViT-tiny", _ours("vit_tiny", 16, 192, 6, 3), 16, 128, "pretrain/folder.py"),
    Member("ours, ViT-S", _ours("vit_small", 16, 192, 6, 3), 16, 128, "pretrain/folder.py"),
)


def describe(member: Member) -> dict[str, Any]:
    """Name, variant, clip, parameters of encoder and predictor, and FLOPs of encoding one clip (2 a multiply-add).

    Parameters are counted on the shapes that the modules themselves would make; nothing is allocated.
    """
    model, side = member.model, member.resolution // member.model.patch_size
    grid = (max(1, member.num_frames // model.tubelet_size), side, side)
    tokens, values = grid[0] * grid[1] * grid[2], model.tubelet_size * model.patch_size**2 * 3
    width = encoder_size(model).embed_dim * predictor_levels(model)
    ids = lambda: jnp.zeros((1, 2), jnp.int32)
    encoder = lambda: Encoder(model).init(jax.random.key(0), jnp.zeros((1, 2, values)), grid, ids())
    predictor = lambda: Predictor(model).init(jax.random.key(0), jnp.zeros((1, 2, width)), ids(), ids(), grid)
    return {
        "name": member.name,
        "variant": model.variant,
        "frames": member.num_frames,
        "resolution": member.resolution,
        "tokens": tokens,
        "encoder_parameters": _count(encoder),
        "predictor_parameters": _count(predictor),
        "encoder_flops_per_clip": encoder_flops(model, tokens),
        "config": f"experiments/{member.config}" if member.config else "",
    }


def _count(init: Any) -> int:
    return sum(int(leaf.size) for leaf in jax.tree.leaves(jax.eval_shape(init)))


def format_family(rows: Sequence[dict[str, Any]]) -> str:
    """What `describe` tells of several members, as a table."""
    head = ["model", "model.variant", "clip", "tokens", "encoder", "predictor", "GFLOP a clip", "config"]
    cells = [
        [
            row["name"],
            row["variant"],
            f"{row['frames']} x {row['resolution']} px",
            f"{row['tokens']:,}",
            f"{row['encoder_parameters'] / 1e6:.1f} M",
            f"{row['predictor_parameters'] / 1e6:.1f} M",
            f"{row['encoder_flops_per_clip'] / 1e9:,.1f}",
            row["config"] or "-",
        ]
        for row in rows
    ]
    return align(head, cells, right=range(3, 7))


def align(head: Sequence[str], rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A table in columns two spaces apart; the columns `right` are flush right."""
    lines, right = [head, *rows], set(right)
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    pad = lambda i, cell: cell.rjust(widths[i]) if i in right else cell.ljust(widths[i])
    return "\n".join("  ".join(pad(i, cell) for i, cell in enumerate(line)).rstrip() for line in lines)
