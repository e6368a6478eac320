"""Official attentive probes (checkpoint["classifiers"]) <-> our AttentiveClassifier, and probes in folders of ours.

Official names: vjepa2 src/models/attentive_pooler.py. `xattn.kv` holds the key's rows, then the value's.
"""

import re
from typing import Any

import numpy as np

from vjepa_jax.convert import ConvertError, official
from vjepa_jax.convert.shapes import probe_shapes
from vjepa_jax.convert.sizes import ratio
from vjepa_jax.convert.weights import Hints, Params, Probe, State
from vjepa_jax.models.probe import EPS, AttentiveClassifier
from vjepa_jax.models.variants import ViTSize

_CROSS = "pooler.cross_attention_block"
HEADS = 16  # of every published probe; their files do not tell


def from_checkpoint(content: dict[str, Any], hints: Hints) -> Probe:
    """The probe of an official file. Raises ConvertError for one that does not fit, or several and none chosen."""
    found = content["classifiers"]
    if hints.classifier is None and len(found) != 1:
        raise ConvertError(f"the file holds {len(found)} probes: choose one with --classifier 0 to {len(found) - 1}")
    index = hints.classifier or 0
    if not 0 <= index < len(found):
        raise ConvertError(f"--classifier {index} is not there: the file holds {len(found)} probes")
    state = {re.sub(r"^module\.", "", name): array for name, array in found[index].items()}
    return from_official(state, HEADS)


def to_checkpoint(probe: Probe) -> dict[str, Any]:
    """The inverse of `from_checkpoint`. Raises ConvertError for a probe that the official code does not have."""
    if probe.model.num_heads != HEADS or probe.model.eps != EPS:
        raise ConvertError(
            f"official probes have {HEADS} heads and eps {EPS}, this one {probe.model.num_heads} and {probe.model.eps}"
        )
    return {"classifiers": [{f"module.{name}": array for name, array in to_official(probe).items()}]}


def from_official(state: State, num_heads: int, eps: float = EPS, labels: tuple[str, ...] = ()) -> Probe:
    """A probe from tensors with official names. Raises ConvertError that names what is missing, left over or uneven."""
    for name in ("pooler.query_tokens", "linear.weight", f"{_CROSS}.mlp.fc1.weight"):
        if name not in state:
            raise ConvertError(f"tensor {name} is missing: this is not an attentive classifier")
    _, queries, dim = state["pooler.query_tokens"].shape
    if queries != 1:
        raise ConvertError(
            f"a probe with {queries} queries (action anticipation) is not read, one with a single query is"
        )
    if dim % num_heads:
        raise ConvertError(f"a probe of width {dim} does not divide over {num_heads} heads")
    depth = 1 + len({name.split(".")[2] for name in state if name.startswith("pooler.blocks.")})
    mlp_ratio = ratio(state[f"{_CROSS}.mlp.fc1.weight"].shape[0], dim)
    model = AttentiveClassifier(state["linear.weight"].shape[0], num_heads, depth, mlp_ratio, eps=eps)
    state = official.admit(state, probe_shapes(model, dim))
    pooler = {"query_tokens": state["pooler.query_tokens"][0], "cross": _cross_from(state, num_heads)}
    if depth > 1:
        size = ViTSize(dim, depth - 1, num_heads, int(dim * mlp_ratio))
        pooler["blocks"] = official.blocks_from(state, "pooler.blocks", size)
    return Probe(model, {"pooler": pooler, "linear": official.linear_from(state, "linear")}, labels)


def to_official(probe: Probe) -> State:
    """The inverse of `from_official`."""
    pooler = probe.params["pooler"]
    state = {"pooler.query_tokens": np.asarray(pooler["query_tokens"])[None]}
    if "blocks" in pooler:
        state |= official.blocks_to(pooler["blocks"], "pooler.blocks")
    return state | _cross_to(pooler["cross"]) | official.linear_to(probe.params["linear"], "linear")


def _cross_from(state: State, num_heads: int) -> Params:
    query, kv = official.linear_from(state, f"{_CROSS}.xattn.q"), official.linear_from(state, f"{_CROSS}.xattn.kv")
    dim = query["bias"].shape[0]
    heads = lambda p, part: {name: p[name][..., part].reshape(*p[name].shape[:-1], num_heads, -1) for name in p}
    return {
        "query": heads(query, slice(None)),
        "key": heads(kv, slice(dim)),
        "value": heads(kv, slice(dim, None)),
        **{name: official.norm_from(state, f"{_CROSS}.{name}") for name in ("norm1", "norm2")},
        **{name: official.linear_from(state, f"{_CROSS}.mlp.{name}") for name in ("fc1", "fc2")},
    }


def _cross_to(cross: Params) -> State:
    flat = {
        part: {"kernel": np.asarray(cross[part]["kernel"]), "bias": np.asarray(cross[part]["bias"]).reshape(-1)}
        for part in ("query", "key", "value")
    }
    for linear in flat.values():
        linear["kernel"] = linear["kernel"].reshape(len(linear["kernel"]), -1)
    kv = {name: np.concatenate([flat["key"][name], flat["value"][name]], -1) for name in ("kernel", "bias")}
    state = official.linear_to(flat["query"], f"{_CROSS}.xattn.q") | official.linear_to(kv, f"{_CROSS}.xattn.kv")
    for name in ("norm1", "norm2"):
        state |= official.norm_to(cross[name], f"{_CROSS}.{name}")
    for name in ("fc1", "fc2"):
        state |= official.linear_to(cross[name], f"{_CROSS}.mlp.{name}")
    return state
