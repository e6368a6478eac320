"""Folders of converted weights: what `vjepa convert --to ours` writes and `vjepa_jax.load` reads.

config.json           the RunConfig
params.safetensors    float32, named as in our trees: encoder.blocks.qkv.kernel, predictor.mask_tokens, ...
classifier.json       where there is a probe: the fields of AttentiveClassifier or MultiTaskClassifier, and `labels`
classifier.safetensors its parameters: pooler.query_tokens, linear.kernel, ...
"""

import json
import pathlib
from typing import Any

import numpy as np

from vjepa_jax.config import from_config_dict, to_dict
from vjepa_jax.config_build import flatten
from vjepa_jax.convert import ConvertError
from vjepa_jax.convert.tensors import read_tensors, write_tensors
from vjepa_jax.convert.weights import Params, Probe, Weights, float32, read_json, unflatten
from vjepa_jax.models.probe import AttentiveClassifier, Classifier, MultiTaskClassifier

CONFIG, PARAMS = "config.json", "params.safetensors"
PROBE_CONFIG, PROBE_PARAMS = "classifier.json", "classifier.safetensors"
_PROBE_KEYS = ("num_heads", "depth", "mlp_ratio", "eps")  # beside num_classes or, with several heads, tasks


def read(folder: str | pathlib.Path) -> Weights:
    """The weights of a folder. Raises ConvertError for a missing or damaged file."""
    folder = pathlib.Path(folder)
    run, params, probe = None, {}, None
    if (folder / PARAMS).is_file():
        run = from_config_dict(read_json(folder / CONFIG))
        params = unflatten(float32(read_tensors(folder / PARAMS)))
    if (folder / PROBE_CONFIG).is_file():
        model, labels = _read_classifier(folder / PROBE_CONFIG)
        probe = Probe(model, unflatten(float32(read_tensors(folder / PROBE_PARAMS))), labels)
    return Weights(run, params, probe)


def write(folder: str | pathlib.Path, weights: Weights) -> None:
    """Write weights into an existing folder."""
    folder = pathlib.Path(folder)
    if weights.run is not None:
        _write_json(folder / CONFIG, to_dict(weights.run))
        write_tensors(folder / PARAMS, _flat(weights.params), {"format": "vjepa_jax"})
    if weights.probe is not None:
        own = "num_classes" if isinstance(weights.probe.model, AttentiveClassifier) else "tasks"
        config = {key: getattr(weights.probe.model, key) for key in (own, *_PROBE_KEYS)}
        _write_json(folder / PROBE_CONFIG, config | {"labels": list(weights.probe.labels)})
        write_tensors(folder / PROBE_PARAMS, _flat(weights.probe.params), {"format": "vjepa_jax"})


def _read_classifier(path: pathlib.Path) -> tuple[Classifier, tuple[str, ...]]:
    config = read_json(path)
    labels = tuple(config.pop("labels", ()))
    own = "tasks" if "tasks" in config else "num_classes"
    if sorted(config) != sorted((own, *_PROBE_KEYS)):
        raise ConvertError(f"{path} must have the keys labels, num_classes (or tasks), {', '.join(_PROBE_KEYS)}")
    if own == "num_classes":
        return AttentiveClassifier(**config), labels
    try:
        tasks = tuple((str(name), int(classes)) for name, classes in config.pop("tasks"))
    except (TypeError, ValueError) as error:
        raise ConvertError(f"{path}: tasks must list [name, number of classes] in the order of the queries") from error
    return MultiTaskClassifier(tasks, **config), labels


def _flat(tree: Params) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf, np.float32) for name, leaf in flatten(tree).items()}


def _write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
