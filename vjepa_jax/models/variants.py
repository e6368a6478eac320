"""Encoder sizes by name, and what a transformer of a size costs.

Sizes: vjepa2 src/models/vision_transformer.py. `vit_giant_xformers` is the paper's ViT-g and `vit_gigantic_xformers`
its ViT-G (head size 64); the plain giants split the same width over 16 heads.
"""

import dataclasses

from vjepa_jax.config import ConfigError, ModelConfig
from vjepa_jax.config_build import hint


@dataclasses.dataclass(frozen=True)
class ViTSize:
    """Width, depth, heads and MLP width of a transformer."""

    embed_dim: int
    depth: int
    num_heads: int
    mlp_dim: int

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    def num_parameters(self) -> int:
        """Parameters of the blocks and the final norm."""
        d, m = self.embed_dim, self.mlp_dim
        return self.depth * (4 * d * d + 2 * d * m + 9 * d + m) + 2 * d

    def forward_flops(self, tokens: int) -> float:
        """FLOPs of the blocks on one sequence: matrix products and attention, 2 per multiply-add."""
        n, d, m = tokens, self.embed_dim, self.mlp_dim
        return float(self.depth * (8 * n * d * d + 4 * n * n * d + 4 * n * d * m))


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
    size = ViTSize(width, model.depth or base.depth, model.num_heads or base.num_heads, int(width * ratio))
    if size.embed_dim % size.num_heads:
        raise ConfigError(f"model.embed_dim={size.embed_dim} is not divisible by model.num_heads={size.num_heads}")
    if size.head_dim < 6:
        raise ConfigError(f"a head size of {size.head_dim} is too small for 3D positions: use fewer heads (at least 6)")
    return size


def predictor_size(model: ModelConfig) -> ViTSize:
    """The size of the predictor."""
    p = model.predictor
    return ViTSize(p.embed_dim, p.depth, p.num_heads, int(p.embed_dim * p.mlp_ratio))
