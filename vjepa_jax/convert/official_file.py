"""Checkpoint files of facebookresearch/vjepa2 (and of V-JEPA 1) <-> Weights.

A file is a dict with the towers `encoder`, `target_encoder` (or `ema_encoder`) and `predictor`, whose tensors are named
module.backbone.NAME, beside the state of its training, which is not read. A file of probes has `classifiers`.
"""

import dataclasses
import json
import pathlib
import re
from typing import Any

from vjepa_jax.config import ModelConfig, from_config_dict, to_dict
from vjepa_jax.convert import ConvertError, ac, official, probes, torch_file
from vjepa_jax.convert.sizes import LEVELS, infer_model, is_ac
from vjepa_jax.convert.weights import Hints, Params, State, Weights, make_run
from vjepa_jax.models.variants import encoder_size

TOWERS = ("target_encoder", "ema_encoder", "encoder")  # the first that is there is what published evaluations use
PREFIX = "module.backbone."
CONFIG_KEY = "vjepa_jax_config"  # the config as JSON text, in files that were written here


def read(path: str | pathlib.Path, hints: Hints) -> Weights:
    """The chosen encoder, and the predictor (of masked tokens or of actions) and the probe where there are any.

    Raises:
      ConvertError: not such a file, a tensor that is missing or left over or of another shape, or a size that the file
        does not tell (the line names the option that does).
    """
    content = torch_file.read(path)
    if not isinstance(content, dict):
        raise ConvertError(f"{path} holds a {type(content).__name__}, not a dict of state dicts")
    probe = probes.from_checkpoint(content, hints) if "classifiers" in content else None
    if "patch_embed.proj.weight" in _strip(content):
        content = {"encoder": content}  # a bare state dict
    if probe is not None and not any(tower in content for tower in TOWERS):
        return Weights(None, {}, probe)
    tower = _strip(_tower(path, content, hints.tower))
    predictor = _strip(content["predictor"]) if "predictor" in content else None
    if CONFIG_KEY in content:
        hints.refuse(path, allowed=("tower", "classifier"))
        run = from_config_dict(json.loads(content[CONFIG_KEY]))
        model = run.model
    else:
        model = infer_model(tower, predictor, _with_position(path, tower, predictor, hints))
        run = make_run(to_dict(model))
    return Weights(run, trees(tower, predictor, model), probe)


def trees(encoder: State, predictor: State | None, model: ModelConfig) -> Params:
    """Our trees from state dicts with official names. Raises ConvertError that names the tensor that does not fit."""
    params = {"encoder": official.encoder_from_official(encoder, model)}
    if predictor is None:
        return params
    if is_ac(predictor):
        return params | {"ac_predictor": ac.ac_predictor_from_official(predictor, model)}
    return params | {"predictor": official.predictor_from_official(predictor, model)}


def write(path: str | pathlib.Path, weights: Weights) -> None:
    """A file that the official code and torch.load(weights_only=True) read.

    The encoder lies there as `encoder` and as `target_encoder`, in one storage: official code reads either.

    Raises:
      ConvertError: a model that the official code does not have.
    """
    content: dict[str, Any] = {}
    if weights.run is not None:
        content = _towers(weights) | {CONFIG_KEY: json.dumps(to_dict(weights.run))}
    if weights.probe is not None:
        content |= probes.to_checkpoint(weights.probe)
    torch_file.write(path, content)


def _towers(weights: Weights) -> dict[str, Any]:
    check_published(weights, "the official code")
    model = weights.run.model
    _check_family(model)
    encoder = official.encoder_to_official(weights.params["encoder"], model)
    encoder = {PREFIX + name: array for name, array in encoder.items()}
    content = {"encoder": encoder, "target_encoder": encoder}
    if "predictor" in weights.params:
        predictor = official.predictor_to_official(weights.params["predictor"], model)
    elif "ac_predictor" in weights.params:
        predictor = ac.ac_predictor_to_official(weights.params["ac_predictor"])
    else:
        return content
    return content | {"predictor": {PREFIX + name: array for name, array in predictor.items()}}


def check_published(weights: Weights, where: str) -> None:
    """Raises ConvertError for a model that no published V-JEPA code can run."""
    model = weights.run.model
    for key, wrong in (
        ("objective", weights.run.objective not in ("vjepa2", "distill")),
        ("model.position", model.position == "sincos2d"),
        ("model.cls_token", model.cls_token),
        ("model.registers", model.registers),
        ("model.gelu", model.gelu != "erf"),
        ("model.predictor.kind", model.predictor.kind != "joint"),
    ):
        if wrong:
            raise ConvertError(f"{where} has no model with this {key}: convert to ours instead (--to ours)")


def _check_family(model: ModelConfig) -> None:
    """Raises ConvertError for settings that come together in no published family."""
    position, grid = ("rope_interleaved", 256 // model.patch_size) if model.levels else (model.position, None)
    if (model.position, model.rope_grid) != (position, grid) or (position == "rope_interleaved" and not model.levels):
        raise ConvertError(
            f"model.position={model.position} with rope_grid={model.rope_grid} and levels={model.levels} is neither "
            "V-JEPA 2 nor 2.1: convert to ours instead (--to ours)"
        )
    if model.levels and model.levels != LEVELS.get(encoder_size(model).depth):
        raise ConvertError(f"model.levels={model.levels} are not those of V-JEPA 2.1: convert to ours (--to ours)")


def _tower(path: Any, content: dict[str, Any], wanted: str | None) -> State:
    there = [name for name in TOWERS if name in content]
    if not there:
        raise ConvertError(f"{path} holds no encoder: its keys are {', '.join(map(str, content))}")
    if wanted is not None and wanted not in there:
        raise ConvertError(f"{path} has no {wanted}: --tower may be {', '.join(there)}")
    return content[wanted or there[0]]


def _strip(state: State) -> State:
    """The tensors without the names of their wrappers."""
    return {re.sub(r"^(module\.)?(backbone\.)?", "", str(name)): array for name, array in state.items()}


def _with_position(path: Any, tower: State, predictor: State | None, hints: Hints) -> Hints:
    """The hints, with the position of `like` for what may be V-JEPA 1: a table of positions and its two mask tokens.

    Files of V-JEPA 2 may hold the table too, which they do not use; those released have ten mask tokens.

    Raises:
      ConvertError: it may be V-JEPA 1, and no hint tells.
    """
    masked = predictor is not None and not is_ac(predictor)
    if hints.position is not None or not ("pos_embed" in tower and masked and "mask_tokens.2" not in predictor):
        return hints
    if hints.like is not None and hints.like.position in ("sincos", "rope_tiled"):
        return dataclasses.replace(hints, position=hints.like.position)
    raise ConvertError(
        f"{path} may be of V-JEPA 1, which has the tensors of V-JEPA 2 and other positions, and does not tell: "
        "give --position sincos for V-JEPA 1, --position rope_tiled for V-JEPA 2"
    )
