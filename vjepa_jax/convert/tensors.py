"""safetensors files and sharded folders as dicts of numpy arrays.

The package is imported where it is used, so that nothing but converted weights needs it.
"""

import pathlib

import numpy as np

from vjepa_jax.convert import ConvertError
from vjepa_jax.convert.weights import State, read_json

INDEX = "model.safetensors.index.json"


def read_tensors(path: pathlib.Path) -> State:
    """All tensors of one file; bfloat16 as `ml_dtypes.bfloat16`. Raises ConvertError for a missing or damaged file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ConvertError(f"{path} does not exist: fetch the whole folder")
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ConvertError(f"{path} is damaged ({error}): fetch it again") from error


def read_folder(folder: pathlib.Path) -> State:
    """All tensors of a Hugging Face folder: model.safetensors, or the shards that its index names.

    Raises:
      ConvertError: no safetensors file, a missing shard, or a shard without a tensor that the index places there.
    """
    if not (folder / INDEX).is_file():
        return read_tensors(folder / "model.safetensors")
    places = read_json(folder / INDEX).get("weight_map", {})
    shards = {name: read_tensors(folder / name) for name in sorted(set(places.values()))}
    for name, shard in places.items():
        if name not in shards[shard]:
            raise ConvertError(f"tensor {name} is not in {folder / shard}, where the index places it: fetch it again")
    return {name: shards[shard][name] for name, shard in places.items()}


def write_tensors(path: pathlib.Path, state: State, metadata: dict[str, str]) -> None:
    """Write one file. `metadata`: short texts in its header; transformers wants {"format": "pt"}."""
    from safetensors.numpy import save_file

    # the file holds the bytes of each array in memory order, which for a transposed view is not the order of its shape
    path.touch()
    mode = path.stat().st_mode  # the package makes files that only their owner may read
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, path, metadata)
    path.chmod(mode)
