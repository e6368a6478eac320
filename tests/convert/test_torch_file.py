"""PyTorch files without torch: what torch.save wrote, what we write, and what is refused."""

import io
import mmap
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from vjepa_jax.convert import ConvertError, torch_file

BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
# what tests/peers/make_torch_file.py saved
EXPECTED = {
    "whole": BASE,
    "transposed": BASE.T,
    "slice": BASE[1:3, ::2],
    "half": np.array([1.5, -2.0], np.float16),
    "bfloat16": np.array([1.5, -2.0, 3.0], ml_dtypes.bfloat16),
    "double": np.array([0.1]),
    "long": np.arange(3),
    "int": np.arange(3, dtype=np.int32),
    "short": np.arange(3, dtype=np.int16),
    "char": np.array([-1], np.int8),
    "byte": np.array([255], np.uint8),
    "bool": np.array([True, False]),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "parameter": np.ones(2, np.float32),
}


def assert_same(given, expected):
    assert given.keys() == expected.keys()
    for name, array in expected.items():
        assert given[name].dtype == array.dtype and given[name].shape == array.shape, name
        np.testing.assert_array_equal(given[name], array, err_msg=name)


def test_reads_what_torch_saved(repo):
    content = torch_file.read(repo / "tests/fixtures/torch_save.pt")
    weights = content["weights"]
    assert_same(weights, EXPECTED)
    assert np.shares_memory(weights["whole"], weights["transposed"])
    assert np.shares_memory(weights["whole"], weights["slice"])
    assert not weights["whole"].flags.writeable  # it is the file
    assert_same(content["module"], {"weight": np.ones((1, 2), np.float32), "bias": np.zeros(1, np.float32)})
    assert content["optimizer"]["param_groups"][0]["lr"] == 0.5
    assert (content["size"], content["epoch"], content["loss"]) == ((4, 6), 3, 0.25)
    assert content["names"] == ["a", ("b", None, True)]


def test_reads_what_it_writes(tmp_path):
    plain = {"a": [1, -1, 2**40, -(2**31)], "b": ("text \u00e9", 0.1, None, True, False), "empty": {}, "list": []}
    tree = {**plain, "weights": {**EXPECTED, "again": EXPECTED["whole"]}}
    torch_file.write(tmp_path / "file.pt", tree)
    content = torch_file.read(tmp_path / "file.pt")
    weights = content.pop("weights")
    assert np.shares_memory(weights["whole"], weights.pop("again"))  # one storage for one array
    assert_same(weights, EXPECTED)
    assert content == plain
    with zipfile.ZipFile(tmp_path / "file.pt") as archive:
        assert archive.testzip() is None
        raw = (tmp_path / "file.pt").read_bytes()
        for info in archive.infolist():
            name, extra = np.frombuffer(raw[info.header_offset + 26 : info.header_offset + 30], np.uint16)
            assert (info.header_offset + 30 + name + extra) % 64 == 0  # torch maps records that start so


def test_tensors_lie_in_a_memory_map_of_the_file(tmp_path):
    """So the system reads the pages that are used, and one tower of a large checkpoint costs its own size."""
    torch_file.write(tmp_path / "file.pt", {"encoder": np.ones(4, np.float32), "opt": np.zeros((8, 8), np.float32)})
    content = torch_file.read(tmp_path / "file.pt")
    for array in content.values():
        while isinstance(array.base, np.ndarray):
            array = array.base
        assert isinstance(memoryview(array.base).obj, mmap.mmap)


def test_values_without_a_place_are_refused(tmp_path):
    with pytest.raises(ConvertError, match="a value of type set has no place in a PyTorch file"):
        torch_file.write(tmp_path / "a.pt", {"a": {1}})
    with pytest.raises(ConvertError, match="an array of complex64 has no PyTorch storage: use float32"):
        torch_file.write(tmp_path / "b.pt", {"a": np.zeros(1, np.complex64)})


def archive(path, data_pkl, storage=b"\0" * 16, **records):
    """A zip file as torch writes it, with any pickle in it."""
    with zipfile.ZipFile(path, "w", records.pop("compression", zipfile.ZIP_STORED)) as file:
        file.writestr("archive/data.pkl", data_pkl)
        file.writestr("archive/data/0", storage)
        for name, data in records.items():
            file.writestr(f"archive/{name}", data)
    return path


class Evil:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def pickled(function, *args, protocol=2):
    return pickle.dumps({"encoder": Evil(function, *args)}, protocol)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_calls_anything_else_is_refused_unrun(tmp_path, protocol):
    import os

    flag = tmp_path / "ran"
    for function, args, name in (
        (os.system, (f"touch {flag}",), f"{os.system.__module__}.system"),
        (eval, (f"open({str(flag)!r}, 'w')",), r"(builtins|__builtin__).eval"),
        (getattr, (flag, "touch"), r"(builtins|__builtin__).getattr"),
        (np.zeros, (3,), r"numpy.*"),
    ):
        path = archive(tmp_path / "evil.pt", pickled(function, *args, protocol=protocol))
        with pytest.raises(
            ConvertError, match=f"evil.pt: it holds an object of {name}.* which is not a tensor"
        ) as caught:
            torch_file.read(path)
        assert "\n" not in str(caught.value)
    assert not flag.exists()


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0%bX\3\0\0\0cpuK%ctQ"


def tensor(offset, shape, stride, record=b"0", count=4):
    """A pickled tensor of the 16 bytes of `archive`; numbers below 256."""
    head = TENSOR % (record, bytes([count]))
    numbers = lambda values: b"(" + b"".join(b"K" + bytes([v]) for v in values) + b"t"
    return b"\x80\x02" + head + b"K" + bytes([offset]) + numbers(shape) + numbers(stride) + b"\x89)tR."


def test_a_tensor_stays_inside_of_its_storage(tmp_path):
    storage = np.arange(4, dtype=np.float32).tobytes()
    good = torch_file.read(archive(tmp_path / "a.pt", tensor(1, (3,), (1,)), storage))
    np.testing.assert_array_equal(good, [1.0, 2.0, 3.0])
    for pickle_bytes in (
        tensor(2, (3,), (1,)),
        tensor(0, (2, 2), (4, 1)),
        tensor(0, (5,), (1,)),
        tensor(200, (1,), (1,)),
    ):
        with pytest.raises(ConvertError, match=r"its data.pkl is damaged \(\w+\): fetch the file again"):
            torch_file.read(archive(tmp_path / "b.pt", pickle_bytes, storage))
    with pytest.raises(ConvertError, match="tensor data 0 is cut off"):
        torch_file.read(archive(tmp_path / "c.pt", tensor(0, (4,), (1,), count=5), storage))
    with pytest.raises(ConvertError, match="tensor data 7 is missing"):
        torch_file.read(archive(tmp_path / "d.pt", tensor(0, (4,), (1,), record=b"7"), storage))


def test_a_pickle_changes_nothing_for_the_next_one(tmp_path):
    """BUILD sets attributes; what stands for torch's functions and classes must not take any."""
    for state in (b"}X\4\0\0\0namec", b"N}X\4\0\0\0nameX\4\0\0\0Sizes\x86"):
        code = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + state + b"b."
        with pytest.raises(ConvertError, match="damaged"):
            torch_file.read(archive(tmp_path / "a.pt", code))
    np.testing.assert_array_equal(torch_file.read(archive(tmp_path / "b.pt", tensor(0, (1,), (1,)))), [0.0])


def test_other_files_are_one_line(tmp_path):
    buffer = io.BytesIO()
    pickle.dump(0x1950A86A20F9469CFC6C, buffer, 2)  # how a file from before torch 1.6 begins
    cases = {
        "legacy.pt": (buffer.getvalue(), "if it was written before torch 1.6, load it with torch and save it again"),
        "empty.pt": (b"", "is not a zip file of PyTorch, or is cut off: fetch it again"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConvertError, match=message):
            torch_file.read(tmp_path / name)
    whole = archive(tmp_path / "whole.pt", tensor(0, (4,), (1,))).read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConvertError, match="or is cut off"):
        torch_file.read(tmp_path / "half.pt")
    with pytest.raises(ConvertError, match="does not exist"):
        torch_file.read(tmp_path / "nothing.pt")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("readme", "hello")
    with pytest.raises(ConvertError, match="holds no data"):
        torch_file.read(tmp_path / "other.zip")
    with pytest.raises(ConvertError, match="big-endian"):
        torch_file.read(archive(tmp_path / "big.pt", tensor(0, (4,), (1,)), byteorder=b"big"))
    packed = archive(tmp_path / "packed.pt", tensor(0, (4,), (1,)), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ConvertError, match="tensor data 0 is compressed: save the file again"):
        torch_file.read(packed)
    with pytest.raises(ConvertError, match="unknown kind of data 'file'"):
        torch_file.read(
            archive(tmp_path / "kind.pt", tensor(0, (4,), (1,)).replace(b"\x07\0\0\0storage", b"\4\0\0\0file"))
        )
