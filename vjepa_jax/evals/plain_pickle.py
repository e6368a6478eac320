"""Annotations that are published as pickles: containers, plain values and NumPy's numbers and arrays, nothing else.

A pickle can call anything that can be imported. As in convert/torch_file.py, every other global is refused by its name
before it is looked up.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.sources import DataError

_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since NumPy 2
_multiarray = np._core.multiarray
_GLOBALS = {
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    **{(module, "scalar"): _multiarray.scalar for module in _NUMPY},
    **{(module, "_reconstruct"): _multiarray._reconstruct for module in _NUMPY},
    **{
        (module, "_frombuffer"): np._core.numeric._frombuffer
        for module in ("numpy.core.numeric", "numpy._core.numeric")
    },
}


def read(path: str | Path) -> Any:
    """What a pickle holds.

    Raises:
      DataError: damaged, or it holds other objects than those.
    """
    try:
        with open(path, "rb") as file:
            return _Unpickler(file, encoding="latin1").load()  # pickles of Python 2 too
    except (DataError, FileNotFoundError):
        raise
    except Exception as error:  # a damaged or hostile pickle may raise anything
        raise DataError(f"{path} cannot be read ({type(error).__name__}): fetch it again") from error


def _latin1(text: str, encoding: str) -> bytes:
    """codecs.encode as pickles of protocol 2 call it to write bytes, and no other codec: some read and run things."""
    if encoding != "latin1":
        raise DataError(f"it holds text in {encoding}, which is not loaded")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if (module, name) not in _GLOBALS:
            raise DataError(f"the pickle holds an object of {module}.{name}, which is not loaded: write it as JSON")
        return _GLOBALS[module, name]
