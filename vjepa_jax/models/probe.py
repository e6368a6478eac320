"""Attentive probes: what is trained on frozen tokens (vjepa2 src/models/attentive_pooler.py), in Flax Linen.

Shape suffixes: B batch, N tokens, Q queries, D embedding, H heads, K head size, C classes.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vjepa_jax.config import ConfigError, ModelConfig
from vjepa_jax.models.blocks import make_block, rescale_blocks, run_blocks
from vjepa_jax.models.dense import weight_init
from vjepa_jax.models.variants import ViTSize
from vjepa_jax.ops.losses import layer_norm

EPS = 1e-5  # of every LayerNorm of the published probe; the encoder has 1e-6, and so has transformers' copy of both
# PyTorch's default for Linear, uniform within 1/sqrt(D): the classifier is made after the pooler has set its weights
classifier_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
Tasks = tuple[tuple[str, int], ...]  # name and number of classes


class Projection(nn.Module):
    """Parameters of a Dense layer [D, *features] whose product is taken by the caller."""

    features: tuple[int, ...]

    @nn.compact
    def __call__(self, dim: int) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", weight_init, (dim, *self.features), jnp.float32)
        return kernel, self.param("bias", nn.initializers.zeros, self.features, jnp.float32)


class Affine(nn.Module):
    """Scale and bias of a LayerNorm that is applied by the caller."""

    @nn.compact
    def __call__(self, dim: int) -> tuple[jax.Array, jax.Array]:
        scale = self.param("scale", nn.initializers.ones, (dim,), jnp.float32)
        return scale, self.param("bias", nn.initializers.zeros, (dim,), jnp.float32)


class CrossAttentionBlock(nn.Module):
    """Queries attend to the tokens: q + CrossAttention(q, LN(x)) without an output projection, then q + MLP(LN(q)).

    A few queries meet thousands of tokens, so they are carried to the tokens instead of projecting every token to a
    key and a value: q.(Wk x) = (Wk^T q).x and sum_n a_n (Wv x_n) = Wv (sum_n a_n x_n), likewise for the norm's scale
    and bias. Same function, 4 N D H Q FLOPs in place of 4 N D^2; the key's bias adds the same to all tokens of a
    softmax and drops out.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    eps: float = EPS

    @nn.compact
    def __call__(self, query_QD: jax.Array, x_BND: jax.Array) -> jax.Array:
        """Returns [B, Q, D] in float32."""
        dim = x_BND.shape[-1]
        heads = (self.num_heads, dim // self.num_heads)
        scale_D, bias_D = Affine(name="norm1")(dim)
        wq_DHK, bq_HK = Projection(heads, name="query")(dim)
        wk_DHK, _ = Projection(heads, name="key")(dim)
        wv_DHK, bv_HK = Projection(heads, name="value")(dim)

        x_BND = layer_norm(x_BND.astype(jnp.float32), self.eps).astype(self.dtype)
        q_QHK = (jnp.einsum("QD,DHK->QHK", query_QD, wq_DHK) + bq_HK) * heads[1] ** -0.5
        q_QHD = (jnp.einsum("QHK,DHK->QHD", q_QHK, wk_DHK) * scale_D).astype(self.dtype)
        logits_BNQH = jnp.einsum("BND,QHD->BNQH", x_BND, q_QHD, preferred_element_type=jnp.float32)
        weights_BNQH = jax.nn.softmax(logits_BNQH, axis=1).astype(self.dtype)
        mix_BQHD = jnp.einsum("BNQH,BND->BQHD", weights_BNQH, x_BND, preferred_element_type=jnp.float32)
        y_BQHK = jnp.einsum("BQHD,DHK->BQHK", mix_BQHD * scale_D + bias_D, wv_DHK) + bv_HK

        q_BQD = query_QD + y_BQHK.reshape(*y_BQHK.shape[:2], dim)
        hidden = nn.LayerNorm(epsilon=self.eps, use_fast_variance=False, name="norm2")(q_BQD)
        hidden = nn.Dense(int(dim * self.mlp_ratio), kernel_init=weight_init, name="fc1")(hidden)
        return q_BQD + nn.Dense(dim, kernel_init=weight_init, name="fc2")(nn.gelu(hidden, approximate=False))


class AttentivePooler(nn.Module):
    """Tokens to a few learned queries: `depth - 1` self-attention blocks without positions, then cross-attention.

    __call__(x_BND) returns float32 [B, num_queries, D].
    """

    num_heads: int = 16
    depth: int = 1
    num_queries: int = 1
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    attention: str = "auto"
    eps: float = EPS

    @nn.compact
    def __call__(self, x_BND: jax.Array) -> jax.Array:
        dim = x_BND.shape[-1]
        if dim % self.num_heads:
            raise ConfigError(f"tokens of {dim} channels do not divide over {self.num_heads} probe heads")
        query_QD = self.param("query_tokens", weight_init, (self.num_queries, dim), jnp.float32)
        if self.depth > 1:
            size = ViTSize(dim, self.depth - 1, self.num_heads, int(dim * self.mlp_ratio))
            model = ModelConfig(dtype=jnp.dtype(self.dtype).name, attention=self.attention)
            block = make_block(size, model, eps=self.eps)
            (x_BND,) = run_blocks(self, block, model, x_BND.astype(self.dtype))
        cross = CrossAttentionBlock(self.num_heads, self.mlp_ratio, self.dtype, self.eps, name="cross")
        return cross(query_QD, x_BND)


class AttentiveClassifier(nn.Module):
    """An attentive pooler with one query and a linear classifier. __call__(x_BND) returns float32 logits [B, C]."""

    num_classes: int
    num_heads: int = 16
    depth: int = 1
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    attention: str = "auto"
    eps: float = EPS

    @property
    def tasks(self) -> Tasks:
        """As of a `MultiTaskClassifier` with this one linear layer."""
        return (("linear", self.num_classes),)

    @nn.compact
    def __call__(self, x_BND: jax.Array) -> jax.Array:
        return _classify(self, x_BND)["linear"]


class MultiTaskClassifier(nn.Module):
    """An attentive pooler with a query for each task and a linear classifier on each query.

    The probe of action anticipation on EPIC-Kitchens-100 has the tasks verb_classifier, noun_classifier and
    action_classifier (vjepa2 evals/action_anticipation_frozen/models.py).

    tasks: name and number of classes of every task, in the order of the queries.

    __call__(x_BND) returns {name: float32 logits [B, C]}.
    """

    tasks: Tasks
    num_heads: int = 16
    depth: int = 1
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    attention: str = "auto"
    eps: float = EPS

    @nn.compact
    def __call__(self, x_BND: jax.Array) -> dict[str, jax.Array]:
        return _classify(self, x_BND)


Classifier = AttentiveClassifier | MultiTaskClassifier


def layer_name(task: str) -> str:
    """The name of a task's linear layer in the parameter tree, where dots separate levels."""
    return task.replace(".", "_")


def _classify(model: Classifier, x_BND: jax.Array) -> dict[str, jax.Array]:
    """The logits of every task, inside of the compact call of `model`."""
    pooler = AttentivePooler(
        *(model.num_heads, model.depth, len(model.tasks), model.mlp_ratio, model.dtype, model.attention, model.eps),
        name="pooler",
    )
    pooled_BQD = pooler(x_BND)
    return {
        task: nn.Dense(classes, kernel_init=classifier_init, name=layer_name(task))(pooled_BQD[:, query])
        for query, (task, classes) in enumerate(model.tasks)
    }


def rescale_pooler(params: dict[str, Any]) -> dict[str, Any]:
    """The published initialisation of a pooler's fresh tree: self-attention blocks as in the encoder, and fc2 of the
    cross-attention divided by sqrt(2 i), i the number of self-attention blocks (1 if there are none)."""
    blocks = 0
    if "blocks" in params:
        params = rescale_blocks(params)
        blocks = params["blocks"]["norm1"]["scale"].shape[0]
    fc2 = params["cross"]["fc2"]
    fc2 = {**fc2, "kernel": fc2["kernel"] / (2.0 * max(blocks, 1)) ** 0.5}
    return {**params, "cross": {**params["cross"], "fc2": fc2}}


@functools.partial(jax.jit, static_argnums=0)
def init_classifier(model: Classifier, rng: jax.Array, x_BND: jax.Array) -> dict[str, Any]:
    """Fresh parameters with the published initialisation, for tokens shaped like `x_BND`; heads without an attentive
    pooler are initialised by themselves."""
    params = model.init(rng, x_BND)["params"]
    return {**params, "pooler": rescale_pooler(params["pooler"])} if "pooler" in params else params
