"""PyTorch's zip files (.pt, .pth, .pth.tar) to nested containers of numpy arrays and back, without torch.

The format (torch.save since 1.6, pytorch caffe2/serialize/inline_container.h): a zip archive whose records are stored
uncompressed. `NAME/data.pkl` is a pickle in which a tensor is a call of torch._utils._rebuild_tensor_v2 on a storage,
and a storage is a persistent id ("storage", its class, record, device, number of elements) of `NAME/data/RECORD`.

A pickle can call anything that can be imported. This reader admits containers, plain values and tensors, and nothing
else: every other global is refused by its name before it is looked up.
"""

import collections
import io
import mmap
import pathlib
import pickle
import struct
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from vjepa_jax.convert import ConvertError

_STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_STORAGE_OF = {dtype: name for name, dtype in _STORAGES.items()}
_ALIGNMENT = 64  # of a record in the file, as torch has it: its memory map needs this


def read(path: str | pathlib.Path) -> Any:
    """The contents of a PyTorch file, tensors as read-only numpy arrays that lie in a memory map of the file.

    Only what is used is read from the disk, so that one part of a large checkpoint costs no more than its size.
    bfloat16 is `ml_dtypes.bfloat16`. Tensors that share a storage share memory, as they do in torch.

    Raises:
      ConvertError: not such a file, a damaged one, or one that holds other objects than containers and tensors.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ConvertError(f"{path} does not exist")
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            return _read(archive, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (zipfile.BadZipFile, ValueError) as error:  # an empty file cannot be mapped: ValueError
        if isinstance(error, ConvertError):
            raise ConvertError(f"{path}: {error}") from error
        raise ConvertError(
            f"{path} is not a zip file of PyTorch, or is cut off: fetch it again; if it was written before torch 1.6, "
            "load it with torch and save it again with torch.save"
        ) from error


def _read(archive: zipfile.ZipFile, memory: mmap.mmap) -> Any:
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ConvertError("this zip file holds no data.pkl, so torch.save did not write it")
    prefix = pickles[0].removesuffix("data.pkl")
    records = {info.filename: info for info in archive.infolist()}
    if f"{prefix}byteorder" in records and archive.read(f"{prefix}byteorder") != b"little":
        raise ConvertError("it was written on a big-endian machine, which is not read: save it again on another")
    unpickler = _Unpickler(io.BytesIO(archive.read(pickles[0])), _Storages(records, f"{prefix}data/", memory))
    try:
        return unpickler.load()
    except ConvertError:
        raise
    except Exception as error:  # a damaged or hostile pickle may raise anything
        raise ConvertError(f"its data.pkl is damaged ({type(error).__name__}): fetch the file again") from error


class _Storages:
    """The tensor data of an archive as flat arrays over the memory map, each made once."""

    def __init__(self, records: dict[str, zipfile.ZipInfo], prefix: str, memory: mmap.mmap):
        self._records, self._prefix, self._memory = records, prefix, memory
        self._made: dict[tuple[str, np.dtype], np.ndarray] = {}

    def get(self, record: str, dtype: np.dtype) -> np.ndarray:
        if (record, dtype) not in self._made:
            info = self._records.get(f"{self._prefix}{record}")
            if info is None:
                raise ConvertError(f"tensor data {record} is missing: the file is damaged, fetch it again")
            if info.compress_type != zipfile.ZIP_STORED:
                raise ConvertError(f"tensor data {record} is compressed: save the file again with torch.save")
            name, extra = struct.unpack_from("<HH", self._memory, info.header_offset + 26)
            start = info.header_offset + 30 + name + extra  # the local header's extra field pads to the alignment
            count = info.file_size // dtype.itemsize
            self._made[record, dtype] = np.frombuffer(self._memory, dtype, count, start)
        return self._made[record, dtype]


class _StorageType(NamedTuple):
    """Stands for a storage class of torch. Immutable, so that a pickle cannot change what others are read with."""

    dtype: np.dtype


class _Call(NamedTuple):
    """Stands for a function of torch; immutable as well."""

    name: str

    def __call__(self, *args: Any) -> Any:
        if self.name == "Size":
            return tuple(args[0])
        return args[0] if self.name == "_rebuild_parameter" else _tensor(*args[:4])


_GLOBALS = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): _Call("Size"),
    ("torch._utils", "_rebuild_tensor_v2"): _Call("_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"): _Call("_rebuild_parameter"),
    **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, storages: _Storages):
        super().__init__(file)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            raise ConvertError(
                f"it holds an object of {module}.{name}, which is not a tensor and is not loaded: save a file with "
                "state dicts only"
            )
        return _GLOBALS[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage_type, record, _, count = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise ConvertError(f"it refers to an unknown kind of data {kind!r}")
        storage = self._storages.get(str(record), storage_type.dtype)
        if len(storage) < count:
            raise ConvertError(f"tensor data {record} is cut off: the file is damaged, fetch it again")
        return storage


def _tensor(storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """A view; numpy checks that it stays inside of the storage."""
    size = storage.dtype.itemsize
    return np.ndarray(tuple(shape), storage.dtype, storage, offset * size, tuple(size * s for s in strides))


def write(path: str | pathlib.Path, tree: Any) -> None:
    """Write nested dicts, lists and plain values with numpy arrays so that torch.load(weights_only=True) reads them.

    Raises:
      ConvertError: a value or a dtype that has no place in such a file.
    """
    pickled = _Pickle()
    pickled.add(tree)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _record(archive, "archive/data.pkl", pickled.finish())
        _record(archive, "archive/byteorder", b"little")
        for i, array in enumerate(pickled.arrays):
            _record(archive, f"archive/data/{i}", np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        _record(archive, "archive/version", b"3\n")


def _record(archive: zipfile.ZipFile, name: str, data: Any) -> None:
    info = zipfile.ZipInfo(name)
    start = archive.fp.tell() + 30 + len(name) + 4  # header, name, and the frame of the field that pads
    padding = -start % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    archive.writestr(info, data)


class _Pickle:
    """Protocol 2, with the few opcodes that torch's own weights-only reader knows."""

    def __init__(self):
        self.arrays: list[np.ndarray] = []
        self._numbers: dict[int, int] = {}  # of an array that was met before, by its identity: one storage for both
        self._out = bytearray(b"\x80\x02")

    def finish(self) -> bytes:
        return bytes(self._out + b".")

    def add(self, value: Any) -> None:
        if isinstance(value, np.ndarray):
            self._add_tensor(value)
        elif isinstance(value, dict):
            self._out += b"}("
            for key, item in value.items():
                self.add(key)
                self.add(item)
            self._out += b"u"
        elif isinstance(value, (list, tuple)):
            self._out += b"](" if isinstance(value, list) else b"("
            for item in value:
                self.add(item)
            self._out += b"e" if isinstance(value, list) else b"t"
        else:
            self._out += _plain(value)

    def _add_tensor(self, array: np.ndarray) -> None:
        if array.dtype not in _STORAGE_OF:
            raise ConvertError(f"an array of {array.dtype} has no PyTorch storage: use float32")
        self._out += b"ctorch._utils\n_rebuild_tensor_v2\n(("
        self.add("storage")
        self._out += f"ctorch\n{_STORAGE_OF[array.dtype]}\n".encode()
        number = self._numbers.setdefault(id(array), len(self.arrays))
        if number == len(self.arrays):
            self.arrays.append(array)
        for part in (str(number), "cpu", array.size):
            self.add(part)
        self._out += b"tQ"
        strides = tuple(int(np.prod(array.shape[i + 1 :])) for i in range(array.ndim))
        for part in (0, array.shape, strides, False):
            self.add(part)
        self._out += b"ccollections\nOrderedDict\n)RtR"  # no hooks


def _plain(value: Any) -> bytes:
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, str):
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(value, int):
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    raise ConvertError(f"a value of type {type(value).__name__} has no place in a PyTorch file")
