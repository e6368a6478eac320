"""What every format is read into and written from."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from vjepa_jax.config import ModelConfig, RunConfig, from_config_dict
from vjepa_jax.convert import ConvertError
from vjepa_jax.models.probe import Classifier
from vjepa_jax.models.variants import encoder_size

State = dict[str, np.ndarray]
Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Probe:
    """A trained attentive classifier: the module, its parameters, and a name for each class (or none)."""

    model: Classifier
    params: Params
    labels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model as float32 numpy arrays in our trees.

    run: the config; None where there is only a probe.
    params: {"encoder"} and where there is one "predictor" (an objective's `eval_params`) or "ac_predictor", that of
      V-JEPA 2-AC: `models.ac_predictor.ACPredictor(run.model)` applies it, and run.model.predictor holds its sizes.

    Raises ConvertError for a probe of another width than the encoder.
    """

    run: RunConfig | None
    params: Params
    probe: Probe | None = None

    def __post_init__(self):
        if self.run is None or self.probe is None:
            return
        width, given = encoder_size(self.run.model).embed_dim, self.probe.params["pooler"]["query_tokens"].shape[-1]
        if given != width:
            raise ConvertError(f"the probe reads tokens of {given} channels and the encoder gives {width}")


@dataclasses.dataclass(frozen=True)
class Hints:
    """What an official file does not say about itself. None: taken from the file where only one answer fits.

    Each is a keyword of `vjepa_jax.load`, and all but the last are options of `vjepa convert` (num_heads: --heads).

    tower: which of the file's encoders: target_encoder, ema_encoder or encoder.
    variant: the size by name (models/variants.py). Files hold no number of heads, and two sizes differ in nothing else.
    num_heads, predictor_heads: for sizes without a name.
    position: sincos for a file of V-JEPA 1, whose tensors have the names and shapes of V-JEPA 2 (rope_tiled).
    classifier: which probe of a file with several.
    like: the model that the weights are for; it tells what neither the file nor another hint does.
    """

    tower: str | None = None
    variant: str | None = None
    num_heads: int | None = None
    predictor_heads: int | None = None
    position: str | None = None
    classifier: int | None = None
    like: ModelConfig | None = None

    def refuse(self, path: Any, allowed: tuple[str, ...] = ()) -> None:
        """Raises ConvertError where a hint (but `like`) is given for something that describes its model itself."""
        allowed = (*allowed, "like")
        given = [name for name, value in vars(self).items() if value is not None and name not in allowed]
        if given:
            raise ConvertError(f"{path} says itself what model it holds: leave out {', '.join(given)}")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ConvertError where it is missing or is none."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path} cannot be read ({error}): fetch the whole folder again") from error
    if not isinstance(value, dict):
        raise ConvertError(f"{path} holds no JSON object")
    return value


def make_run(model: Params, data: Params | None = None) -> RunConfig:
    """The config of a model that no run of ours trained: what concerns training is a placeholder."""
    return from_config_dict({"steps": 1, "batch_size": 1, "data": {"path": "", **(data or {})}, "model": model})


def float32(state: State) -> State:
    """The tensors as float32, in which parameters are kept. Raises ConvertError for one that would lose digits."""
    return {name: _float32(name, array) for name, array in state.items()}


def _float32(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind in "iub" or array.dtype.itemsize > 4:
        raise ConvertError(f"tensor {name} is {array.dtype}, parameters are float32: cast it before converting")
    return np.asarray(array, np.float32)


def unflatten(flat: dict[str, Any]) -> Params:
    """{"a.b": value} to nested dicts: the inverse of config_build.flatten."""
    tree: Params = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
