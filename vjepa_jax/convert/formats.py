"""Any weights by their path: what a path is, reading it, and writing one of the three formats."""

import os
import pathlib
import shutil

from vjepa_jax.convert import ConvertError, hf, official_file, ours
from vjepa_jax.convert.weights import Hints, Weights, read_json

FORMATS = {"ours": ours.write, "official": official_file.write, "hf": hf.write}


def kind(path: str | os.PathLike[str]) -> str:
    """What is at a path: "official" (a file), "hf" or "ours" (folders of weights), else "run"."""
    path = pathlib.Path(path)
    if path.is_file():
        return "official"
    if (path / ours.PARAMS).is_file() or (path / ours.PROBE_CONFIG).is_file():
        return "ours"
    if (path / "config.json").is_file() and "model_type" in read_json(path / "config.json"):
        return "hf"
    return "run"


def read(path: str | os.PathLike[str], hints: Hints | None = None) -> Weights:
    """Official file, Hugging Face folder or folder of ours; not a run folder, which takes orbax (vjepa_jax.encoder).

    Raises:
      ConvertError: none of these, or one that cannot be read whole.
    """
    what = kind(path)
    if str(path).endswith(".safetensors") and what == "official":
        raise ConvertError(f"{path} does not say what model it holds: name its folder, which has a config.json")
    if what == "run":
        raise ConvertError(f"{path} is neither a PyTorch file nor a folder of converted or Hugging Face weights")
    if what == "official":
        return official_file.read(path, hints or Hints())
    (hints or Hints()).refuse(path)
    return hf.read(path) if what == "hf" else ours.read(path)


def write(path: str | os.PathLike[str], weights: Weights, to: str) -> None:
    """Write weights as `to`: a folder for ours and hf, a .pt file for official. It appears whole or not at all.

    Raises:
      ConvertError: something is there already, an unknown format, or a model that the format cannot hold.
    """
    path = pathlib.Path(path)
    if to not in FORMATS:
        raise ConvertError(f"there is no format {to!r}: {', '.join(FORMATS)}")
    if path.exists():
        raise ConvertError(f"{path} is there already: remove it or name another destination")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f".{path.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)  # of a conversion that was killed
    folder.mkdir()
    try:
        written = folder / path.name if to == "official" else folder
        FORMATS[to](written, weights)
        os.replace(written, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
