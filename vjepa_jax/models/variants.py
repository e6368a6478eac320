"""Encoder sizes by name, and what a transformer of a size costs.

Sizes: vjepa2 src/models/vision_transformer.py. `vit_giant_xformers` is the paper's ViT-g and `vit_gigantic_xformers`
its ViT-G (head size 64); the plain giants split the same width over 16 heads.
"""

import dataclasses

from vjepa_jax.config import ConfigError, ModelConfig
from vjepa_jax.config_build import hint


@dataclasses.dataclass(frozen=True)
class ViTSize:
    """Width, depth, heads and MLP width of a transformer; `swiglu`: its MLPs have a gate (`mlp_linears` are 3)."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    swiglu: bool = False

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def mlp_linears(self) -> int:
        return 3 if self.swiglu else 2

    def num_parameters(self) -> int:
        """Parameters of the blocks and the final norm."""
        d, m, linears = self.embed_dim, self.mlp_dim, self.mlp_linears
        return self.depth * (4 * d * d + linears * d * m + 9 * d + (linears - 1) * m) + 2 * d

    def forward_flops(self, tokens: int) -> float:
        """FLOPs of the blocks on one sequence: matrix products and attention, 2 per multiply-add."""
        n, d, m = tokens, self.embed_dim, self.mlp_dim
        return float(self.depth * (8 * n * d * d + 4 * n * n * d + 2 * self.mlp_linears * n * d * m))


VARIANTS = {
    "vit_micro": ViTSize(96, 4, 3, 384),  # ours: the embedded world on a laptop
    "vit_tiny": ViTSize(192, 12, 3, 768),
    "vit_small": ViTSize(384, 12, 6, 1536),
    "vit_base": ViTSize(768, 12, 12, 3072),
    "vit_large": ViTSize(1024, 24, 16, 4096),
    "vit_huge": ViTSize(1280, 32, 16, 5120),
    "vit_giant": ViTSize(1408, 40, 16, 6144),
    "vit_giant_xformers": ViTSize(1408, 40, 22, 6144),
    "vit_gigantic": ViTSize(1664, 48, 16, 8192),
    "vit_gigantic_xformers": ViTSize(1664, 48, 26, 8192),
}


def encoder_size(model: ModelConfig) -> ViTSize:
    """The size that the config names, with its overrides. Raises ConfigError for an unknown name or uneven heads."""
    if model.variant not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise ConfigError(f"model.variant={model.variant!r} is not one of {known}{hint(model.variant, VARIANTS)}")
    base = VARIANTS[model.variant]
    width = model.embed_dim or base.embed_dim
    ratio = model.mlp_ratio or base.mlp_dim / base.embed_dim
    depth, heads = model.depth or base.depth, model.num_heads or base.num_heads
    size = ViTSize(width, depth, heads, _mlp_dim(int(width * ratio), model), model.mlp == "swiglu")
    if size.embed_dim % size.num_heads:
        raise ConfigError(f"model.embed_dim={size.embed_dim} is not divisible by model.num_heads={size.num_heads}")
    if size.head_dim < 6:
        raise ConfigError(f"a head size of {size.head_dim} is too small for 3D positions: use fewer heads (at least 6)")
    if model.levels and model.levels[-1] != depth - 1:
        raise ConfigError(f"model.levels={model.levels} must end with the last of the {depth} blocks, {depth - 1}")
    return size


def encoder_flops(model: ModelConfig, tokens: int, image: bool = False) -> float:
    """FLOPs of one forward pass of the encoder on `tokens` of a clip (of a single frame: `image`), 2 a multiply-add."""
    size = encoder_size(model)
    values = (1 if image else model.tubelet_size) * model.patch_size**2 * 3
    special = model.registers + model.cls_token
    return size.forward_flops(tokens + special) + 2.0 * tokens * values * size.embed_dim


def predictor_size(model: ModelConfig) -> ViTSize:
    """The size of the predictor."""
    p = model.predictor
    mlp_dim = _mlp_dim(int(p.embed_dim * p.mlp_ratio), model)
    return ViTSize(p.embed_dim, p.depth, p.num_heads, mlp_dim, model.mlp == "swiglu")


def _mlp_dim(hidden: int, model: ModelConfig) -> int:
    """The width of an MLP; with a gate two thirds of it, up to a multiple of 8 (vjepa2 SwiGLUFFN, wide_silu)."""
    return hidden if model.mlp == "gelu" else -(-int(2 * hidden / 3) // 8) * 8


def predictor_levels(model: ModelConfig) -> int:
    """Levels of the encoder that the predictor reads, and that are its targets."""
    return 1 if model.predictor.last_level_only else max(1, len(model.levels))


def feature_dim(model: ModelConfig) -> int:
    """Channels that the predictor predicts: those of the levels that it reads, or those of a teacher."""
    return model.predictor.out_dim or encoder_size(model).embed_dim * predictor_levels(model)
