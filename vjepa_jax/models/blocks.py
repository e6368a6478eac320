"""Transformer blocks in Flax Linen, and running a stack of them: what encoder, predictors and probes consist of.

Shape suffixes: B batch, N tokens, M query tokens, C context tokens, D embedding, H heads, K head size.

Blocks are stacked on a leading axis of their parameters, whether the layers are scanned or unrolled. No position
parameters: tokens carry their ids, so that a masked or longer or non-square clip keeps its true positions.

Activations are placed on the mesh by the logical names of their axes (parallel/partitioning.py); without one, that does
nothing.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vjepa_jax.config import ModelConfig
from vjepa_jax.models.dense import QKV, Dense, GeluDense, Projection
from vjepa_jax.models.variants import ViTSize
from vjepa_jax.ops import rowwise
from vjepa_jax.ops.attention import FORWARD_KERNELS, attention, self_attention
from vjepa_jax.ops.biases import add_bias
from vjepa_jax.ops.e4m3 import Rounded, rounded
from vjepa_jax.ops.gelu import HIDDEN
from vjepa_jax.ops.norms import TOKENS, Added, layer_norm_affine, layer_norm_branch
from vjepa_jax.ops.rope import apply_rope
from vjepa_jax.ops.tokens import Segments, join_tokens, split_tokens

EPS = 1e-6  # of every LayerNorm of encoder and predictor
Rope = tuple[jax.Array, jax.Array]
Stream = jax.Array | tuple[jax.Array, Added]  # between blocks: x, or x and what is to be added to it


def keep_products(primitive: Any, *values: Any, **params: Any) -> bool:
    """jax.checkpoint policy "dots": the results of dense layers and of attention kernels are kept."""
    kernel = primitive.name.startswith(FORWARD_KERNELS) and not params.get("name", "").startswith(rowwise.PREFIX)
    return kernel or jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *values, **params)


REMAT_POLICIES = {"dots": keep_products, "full": None}


class LayerNorm(nn.Module):
    """`layer_norm_affine`, or `layer_norm_branch`, with the parameters "scale" and "bias", float32 [D].

    short: the normed is Rounded.
    """

    eps: float = EPS
    dtype: Any = jnp.float32
    short: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, added: Added | None = None, branch: bool = False) -> Any:
        scale_D = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias_D = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        own = scale_D, bias_D, self.eps, jnp.dtype(self.dtype)
        if branch:
            return layer_norm_branch(x, added, *own, self.short)
        normed = layer_norm_affine(x, *own)
        return rounded(normed) if self.short else normed


def _parts(stream: Stream) -> tuple[jax.Array, Added | None]:
    return stream if isinstance(stream, tuple) else (stream, None)


class Block(nn.Module):
    """Pre-norm transformer block: x + Attention(LN(x)), then x + MLP(LN(x)).

    `rope` is None or the pair (cos, sin) of `ops.rope.rope_tables`, [B, N, head_dim]; `valid` is None or bool [B, N],
    the tokens that may be attended to; `mask` is None or bool [N, N], which token may attend to which. With `segments`,
    x holds several sequences side by side, and each attends to itself alone. With `float8` the products of the forward
    pass after a norm or a GELU (qkv and the MLP) are of float8 inputs (ops.float8); `frozen`: no gradient is taken, and
    that after attention is too. `apart`: the last sum is left to the next block, which is given both.
    """

    size: ViTSize
    dtype: Any = jnp.float32
    gelu: str = "erf"
    attention: str = "auto"
    eps: float = EPS
    segments: Segments = ()
    float8: bool = False
    frozen: bool = False
    apart: bool = False

    @nn.compact
    def __call__(self, x_BND: Stream, rope: Rope | None = None, valid_BN=None, mask_NN=None) -> Stream:
        normed, x_BND = self.norm(name="norm1")(*_parts(x_BND), branch=True)
        joint, v_BNHK, v_bias = self.projections(frozen=self.frozen, name="qkv")(normed)
        options = {"valid_BM": valid_BN, "mask_NM": mask_NN, "short": v_BNHK is not None}
        y_BNHK = self_attention(joint, rope, v_BNHK, **options, **self.options)
        return self.mlp(x_BND, self.projected(y_BNHK, v_bias))

    @property
    def projections(self):
        return functools.partial(QKV, (self.size.num_heads, self.size.head_dim), jnp.dtype(self.dtype))

    @property
    def norm(self):
        return functools.partial(LayerNorm, self.eps, self.dtype, self.float8)

    @property
    def options(self):
        return {"implementation": self.attention, "segments": self.segments if len(self.segments) > 1 else ()}

    def projected(self, y_BNHK, v_bias=None) -> Added:
        """The output projection of what attention gives."""
        return Projection(self.size.embed_dim, jnp.dtype(self.dtype), name="proj")(y_BNHK, v_bias)

    def mlp(self, x_BND, added: Added) -> Stream:
        """x + MLP(LN(x)) of x + added: fc2(gelu(fc1 x)), or fc3(silu(fc1 x) * fc2 x) for SwiGLU, named as published."""
        normed, x_BND = self.norm(name="norm2")(nn.with_logical_constraint(x_BND, TOKENS), added, branch=True)
        hidden = jax.tree.map(lambda x: nn.with_logical_constraint(x, HIDDEN), self.hidden(normed))
        product, bias = self.dense(self.size.embed_dim, apart=True, name=f"fc{self.size.mlp_linears}")(hidden)
        if self.apart:
            return x_BND, (nn.with_logical_constraint(product, TOKENS), bias)
        return nn.with_logical_constraint(x_BND + add_bias(product, bias, TOKENS), TOKENS)

    def dense(self, *features: int, name: str, apart: bool = False) -> Dense:
        return Dense(features, jnp.dtype(self.dtype), apart, name=name)

    def hidden(self, normed):
        """What the last product of the MLP takes."""
        if not self.size.swiglu:
            return GeluDense(self.size.mlp_dim, jnp.dtype(self.dtype), self.gelu, name="fc1")(normed)
        first, second = (self.dense(self.size.mlp_dim, name=name)(normed) for name in ("fc1", "fc2"))
        value = nn.silu(first) * second
        return rounded(value) if isinstance(normed, Rounded) else value


class CrossBlock(Block):
    """Pre-norm block whose queries attend to other tokens, which stay as they are: x + Attention(LN(x), LN(context)),
    then x + MLP(LN(x)). `ropes`: None or the tables of queries and context; `valid` belongs to the context."""

    @nn.compact
    def __call__(self, x_BMD: Stream, context_BCD, ropes: tuple[Rope, Rope] | None = None, valid_BC=None) -> Stream:
        normed, x_BMD = self.norm(name="norm1")(*_parts(x_BMD), branch=True)
        q_BMHK = self.dense(self.size.num_heads, self.size.head_dim, name="query")(normed)
        context = self.norm(name="norm_context")(context_BCD)
        joint, _, _ = self.projections(parts=2, name="kv")(context)
        k_BCHK, v_BCHK = joint[:, :, 0], joint[:, :, 1]
        if ropes is not None:
            q_BMHK, k_BCHK = (apply_rope(x, *rope) for x, rope in zip((q_BMHK, k_BCHK), ropes, strict=True))
        y_BMHK = attention(q_BMHK, k_BCHK, v_BCHK, valid_BM=valid_BC, **self.options)
        return self.mlp(x_BMD, self.projected(y_BMHK))


class TargetBlock(Block):
    """The last block where outputs are wanted of some tokens alone, the targets: all others are keys and values, and
    have no queries, projection and MLP. `segments`: the targets of every sequence, which come last in it, and all its
    tokens. Returns the targets of all sequences, [B, M, D]."""

    @nn.compact
    def __call__(self, x_BND: Stream, rope: Rope | None = None, valid_BN=None) -> jax.Array:
        normed, x_BND = self.norm(name="norm1")(*_parts(x_BND), branch=True)
        joint, _, _ = self.projections(name="qkv")(normed)
        q_BMHK, k_BNHK, v_BNHK = self._targets(joint[:, :, 0]), joint[:, :, 1], joint[:, :, 2]
        if rope is not None:
            q_BMHK, k_BNHK = apply_rope(q_BMHK, *map(self._targets, rope)), apply_rope(k_BNHK, *rope)
        y_BMHK = attention(q_BMHK, k_BNHK, v_BNHK, valid_BM=valid_BN, **self.options)
        return self.mlp(self._targets(x_BND), self.projected(y_BMHK))

    def _targets(self, x: jax.Array) -> jax.Array:
        counts = [count for targets, tokens in self.segments for count in (tokens - targets, targets)]
        return join_tokens(split_tokens(x, counts)[1::2])


def make_block(
    size: ViTSize,
    model: ModelConfig,
    kind: type[Block] = Block,
    eps: float = EPS,
    segments: Segments = (),
    float8: bool = False,
    frozen: bool = False,
) -> Block:
    """One block as the config wants it. It owns no parameters: `run_blocks` stacks and applies them."""
    options = eps, segments, float8, frozen
    return kind(size, jnp.dtype(model.dtype), model.gelu, model.attention, *options, parent=None)


def run_blocks(
    owner: nn.Module,
    block: Block,
    model: ModelConfig,
    x_BND: jax.Array,
    *inputs: Any,
    levels: tuple[int, ...] = (),
    last: Block | None = None,
) -> list[jax.Array]:
    """`block.size.depth` blocks, one after the other; their parameters are `owner`'s "blocks", stacked.

    Args:
      block: from `make_block`; called with (x, *inputs).
      model: `unroll` layers a scan step (0: all) and what `remat` recomputes. Both leave parameters and numbers alone.
      levels: blocks whose outputs are returned, ascending; the last block must be among them. Empty: the last one.
      last: what takes the place of the last block, with the same parameters; without levels.

    Returns:
      [B, N, D] for every level; what `last` gives.
    """
    depth = block.size.depth
    if owner.is_initializing():
        init = lambda rng: jax.vmap(lambda key: block.init(key, x_BND, *inputs)["params"])(jax.random.split(rng, depth))
        params = owner.param("blocks", init)
    else:
        params = owner.get_variable("params", "blocks")

    def layer(kind, looped=False):
        one = lambda x_BND, params: (kind.apply({"params": params}, x_BND, *inputs), None)
        if model.remat == "none":
            return one
        # without a loop around it, XLA would merge what is computed again with the first time
        return jax.checkpoint(one, prevent_cse=not looped, policy=REMAT_POLICIES[model.remat])

    alone = functools.cache(lambda kind: jax.jit(layer(kind)))  # traced once for all layers; XLA puts them in line
    outputs, ends = [], [level + 1 for level in levels or (depth - 1,)]
    edges = range(depth + 1) if model.unroll == 0 else sorted({0, *ends, *([depth - 1] if last else [])})
    counts = np.diff(edges).tolist()
    for end, count, own in zip(edges[1:], counts, _split_layers(params, counts), strict=True):
        kind = last if last and end == depth else block
        if model.unroll == 0 and model.remat == "none" and end not in ends:
            kind = kind.clone(apart=True)  # the next block adds while it norms; with remat it would be kept besides
        if count == 1:
            x_BND, _ = alone(kind)(x_BND, jax.tree.map(lambda leaf: leaf[0], own))
        else:
            x_BND, _ = jax.lax.scan(layer(kind, looped=True), x_BND, own, unroll=min(model.unroll, count))
        if end in ends:
            outputs.append(x_BND)
    return outputs


def _split_layers(params: Any, counts: list[int]) -> list[Any]:
    """The stacked parameters in parts of so many layers. The transpose of a slice adds to an array of zeros as large as
    all layers; that of a split is one concatenation."""
    if len(counts) == 1:
        return [params]
    leaves, tree = jax.tree.flatten(params)
    split = [jax.lax.split(leaf, counts) for leaf in leaves]
    return [tree.unflatten(part) for part in zip(*split, strict=True)]


def rescale_blocks(params: dict[str, Any]) -> dict[str, Any]:
    """The published initialisation: proj and fc2 of block i (from 0) are divided by sqrt(2 (i + 1)).

    A block in the scan does not know its index, so this runs once on the fresh parameter tree (a dict with "blocks").
    Of a SwiGLU it is the gate that is divided, as in the published code, not the output.
    """
    blocks = dict(params["blocks"])
    for name in ("proj", "fc2"):
        kernel = blocks[name]["kernel"]
        divisor = np.sqrt(2.0 * (np.arange(kernel.shape[0]) + 1)).astype(np.float32)
        scaled = kernel / divisor.reshape(-1, *[1] * (kernel.ndim - 1))
        blocks[name] = {**blocks[name], "kernel": scaled}
    return {**params, "blocks": blocks}
