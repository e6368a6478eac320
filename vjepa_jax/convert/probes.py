"""Official attentive probes (checkpoint["classifiers"]) <-> our AttentiveClassifier and MultiTaskClassifier.

Official names: vjepa2 src/models/attentive_pooler.py and, where there are several linear heads,
evals/action_anticipation_frozen/models.py. `xattn.kv` holds the key's rows, then the value's.
"""

import re
from typing import Any

import numpy as np

from vjepa_jax.convert import ConvertError, official
from vjepa_jax.convert.shapes import probe_shapes
from vjepa_jax.convert.sizes import ratio
from vjepa_jax.convert.weights import Hints, Params, Probe, State
from vjepa_jax.models.probe import EPS, AttentiveClassifier, Classifier, MultiTaskClassifier, Tasks, layer_name
from vjepa_jax.models.variants import ViTSize

_CROSS = "pooler.cross_attention_block"
_LINEAR = re.compile(r"(?!pooler\.)([^.]+(?:\.[^.]+)?)\.weight")  # a linear head, or one of a list or dict of them
HEADS = 16  # of every published probe; their files do not tell
ANTICIPATION = ("verb", "noun", "action")  # the queries of a probe for action anticipation, in their order


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
    if _in_order(probe.model.tasks) != probe.model.tasks:
        names = ", ".join(name for name, _ in probe.model.tasks)
        raise ConvertError(f"official queries are for {', '.join(ANTICIPATION)}, these for {names}: use --to ours")
    return {"classifiers": [{f"module.{name}": array for name, array in to_official(probe).items()}]}


def from_official(state: State, num_heads: int, eps: float = EPS, labels: tuple[str, ...] = ()) -> Probe:
    """A probe from tensors with official names. Raises ConvertError that names what is missing, left over or uneven."""
    model, dim = _model(state, num_heads, eps)
    state = official.admit(state, probe_shapes(model, dim))
    pooler = {"query_tokens": state["pooler.query_tokens"][0], "cross": _cross_from(state, num_heads)}
    if model.depth > 1:
        size = ViTSize(dim, model.depth - 1, num_heads, int(dim * model.mlp_ratio))
        pooler["blocks"] = official.blocks_from(state, "pooler.blocks", size)
    linears = {layer_name(task): official.linear_from(state, task) for task, _ in model.tasks}
    return Probe(model, {"pooler": pooler, **linears}, labels)


def to_official(probe: Probe) -> State:
    """The inverse of `from_official`."""
    pooler = probe.params["pooler"]
    state = {"pooler.query_tokens": np.asarray(pooler["query_tokens"])[None]}
    if "blocks" in pooler:
        state |= official.blocks_to(pooler["blocks"], "pooler.blocks")
    state |= _cross_to(pooler["cross"])
    for task, _ in probe.model.tasks:
        state |= official.linear_to(probe.params[layer_name(task)], task)
    return state


def _model(state: State, num_heads: int, eps: float) -> tuple[Classifier, int]:
    """The module that the tensors are for, and its width."""
    named = ((_LINEAR.fullmatch(name), array) for name, array in state.items() if array.ndim == 2)
    linears = tuple((match[1], len(array)) for match, array in named if match)
    for name in ("pooler.query_tokens", *(() if linears else ("linear.weight",)), f"{_CROSS}.mlp.fc1.weight"):
        if name not in state:
            raise ConvertError(f"tensor {name} is missing: this is not an attentive classifier")
    shape = state["pooler.query_tokens"].shape
    if len(shape) != 3:
        raise ConvertError(f"tensor pooler.query_tokens is {list(shape)} and must be [1, queries, channels]")
    _, queries, dim = shape
    if queries != len(linears):
        names = ", ".join(name for name, _ in linears)
        raise ConvertError(f"queries: {queries}, linear heads: {len(linears)} ({names}): a probe has one head a query")
    if dim % num_heads:
        raise ConvertError(f"a probe of width {dim} does not divide over {num_heads} heads")
    depth = 1 + len({name.split(".")[2] for name in state if name.startswith("pooler.blocks.")})
    rest = (num_heads, depth, ratio(state[f"{_CROSS}.mlp.fc1.weight"].shape[0], dim))
    if linears[0][0] == "linear" and queries == 1:
        return AttentiveClassifier(linears[0][1], *rest, eps=eps), dim
    return MultiTaskClassifier(_in_order(linears), *rest, eps=eps), dim


def _in_order(linears: Tasks) -> Tasks:
    """The linear heads in the order of the queries: that of ANTICIPATION where names tell, else that of the file.

    Raises ConvertError where only some names tell, or two the same.
    """
    names = [name for name, _ in linears]
    if len(set(map(layer_name, names))) < len(names):
        raise ConvertError(f"the linear heads {', '.join(names)} differ in a dot only: rename one")
    told = [[word for word in ANTICIPATION if word in name.lower()] for name in names]
    if not any(told):
        return linears
    words = [found[0] for found in told if len(found) == 1]
    if len(set(words)) < len(names):
        raise ConvertError(
            f"the linear heads {', '.join(names)} do not tell whose the queries are: name them after "
            f"{', '.join(ANTICIPATION)}, one each, or none so, in the order of the queries"
        )
    ordered = sorted(zip(map(ANTICIPATION.index, words), linears, strict=True))
    return tuple(linear for _, linear in ordered)


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
