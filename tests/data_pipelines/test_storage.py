"""Remote paths on a file system in memory that fails as it is told to; test_s3.py reads from a real server."""

import errno
import os
import sys

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_pipelines import storage

BYTES = bytes(range(256)) * 8


class StatusError(Exception):
    """As gcsfs has them."""

    def __init__(self, code):
        super().__init__(f"status {code}")
        self.code = code


class HTTPClientError(Exception):
    """As botocore has them."""


class ReadTimeoutError(HTTPClientError):
    """A lost connection is one of several kinds."""


class FlakyFileSystem(MemoryFileSystem):
    """Raises what `errors` holds before it answers."""

    protocol = "flaky"
    errors: list = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("flaky://"))

    def cat_file(self, *args, **kwargs):
        if self.errors:
            raise self.errors.pop(0)
        return super().cat_file(*args, **kwargs)

    def get_file(self, *args, **kwargs):
        if self.errors:
            raise self.errors.pop(0)
        return super().get_file(*args, **kwargs)


@pytest.fixture
def flaky(monkeypatch, tmp_path):
    """flaky://data holds two files; waiting takes no time."""
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    monkeypatch.setattr(storage, "_FIRST_PAUSE_S", 1e-4)
    monkeypatch.setenv("VJEPA_CACHE", str(tmp_path / "cache"))
    FlakyFileSystem.errors = []
    files = fsspec.filesystem("flaky")
    files.pipe({"/data/a.bin": BYTES, "/data/b/c.bin": b"c"})
    storage.take_retries()
    yield files
    files.rm("/data", recursive=True)


@pytest.mark.parametrize("path", ["s3://bucket/key", "gs://b/k", "memory://x", "file:///x"])
def test_remote_paths(path):
    assert storage.is_remote(path)


@pytest.mark.parametrize("path", ["/data/s3://x", "data", "C:\\x", "://x", "a b://x", ""])
def test_local_paths(path):
    assert not storage.is_remote(path)


def test_files_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_store", None)  # fsspec is not asked
    (tmp_path / "b").mkdir()
    (tmp_path / "a.bin").write_bytes(BYTES)
    (tmp_path / "b" / "c.bin").write_bytes(b"c")
    path = str(tmp_path / "a.bin")
    assert storage.read(path) == BYTES and storage.read_range(path, 300, 40) == BYTES[300:340]
    assert storage.read_range(path, 300, 0) == b"" and storage.open_local(path) == path
    assert storage.list_files(str(tmp_path)) == [path, str(tmp_path / "b" / "c.bin")]
    with pytest.raises(OSError, match=r"a\.bin is truncated: it ends at byte 2048, 2050 are needed"):
        storage.read_range(path, 2040, 10)


def test_files_of_a_store(flaky):
    path = "flaky://data/a.bin"
    assert storage.read(path) == BYTES and storage.read_range(path, 300, 40) == BYTES[300:340]
    assert storage.list_files("flaky://data/") == storage.list_files("flaky://data") == [path, "flaky://data/b/c.bin"]
    assert storage.list_files(path) == [path] and storage.read_range(path, 300, 0) == b""
    assert storage.list_files("flaky://nothing") == []
    with pytest.raises(OSError, match=r"flaky://data/a\.bin is truncated: it ends at byte 2048, 2050 are needed"):
        storage.read_range(path, 2040, 10)
    with pytest.raises(FileNotFoundError, match=r"^no such file or folder: flaky://data/absent$"):
        storage.read("flaky://data/absent")


PASSING = [
    TimeoutError("slow"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    OSError(errno.EBUSY, "slow down"),
    StatusError(503),
    StatusError(429),
    ReadTimeoutError("no answer"),
]
FINAL = [
    PermissionError("Access Denied"),
    StatusError(401),
    OSError("Forbidden: bucket"),
    OSError(errno.EINVAL, "no such range"),
    ValueError("bad bucket name"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_errors_that_pass_are_waited_for_and_counted(flaky, error):
    FlakyFileSystem.errors = [error, error]
    assert storage.read("flaky://data/a.bin") == BYTES
    assert storage.take_retries() == 2 and storage.take_retries() == 0


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_patience_ends(flaky, error):
    FlakyFileSystem.errors = [error] * storage._TRIES
    with pytest.raises(OSError, match=r"cannot read flaky://data/a.bin: .* \(gave up after 7 tries in 0 s\)") as found:
        storage.read_range("flaky://data/a.bin", 0, 1)
    assert "\n" not in str(found.value) and storage.take_retries() == storage._TRIES - 1


@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_other_errors_are_not_tried_again(flaky, error):
    FlakyFileSystem.errors = [error]
    hint = "; check the credentials" if isinstance(error, PermissionError) else ""
    with pytest.raises(OSError, match=f"cannot read flaky://data/a.bin: .*{hint}$"):
        storage.read("flaky://data/a.bin")
    assert storage.take_retries() == 0


def test_patience_has_a_limit_in_time(flaky, monkeypatch):
    monkeypatch.setattr(storage, "_GIVE_UP_S", 0.0)
    FlakyFileSystem.errors = [TimeoutError()]
    with pytest.raises(OSError, match=r"cannot read flaky://data/a\.bin: TimeoutError$"):
        storage.read("flaky://data/a.bin")


def test_pauses_double_and_differ_between_paths():
    for tries in range(1, storage._TRIES):
        pauses = [storage.pause(f"s3://b/{i}", tries) for i in range(100)]
        longest = 0.25 * 2 ** (tries - 1)
        assert all(longest / 2 <= p <= longest for p in pauses) and max(pauses) - min(pauses) > longest / 3
        assert pauses[0] == storage.pause("s3://b/0", tries)


def test_copies_are_made_once_and_follow_the_file(flaky):
    path = "flaky://data/a.bin"
    FlakyFileSystem.errors = [TimeoutError()]
    copy = storage.open_local(path)
    FlakyFileSystem.errors = [RuntimeError("read again")]
    assert storage.open_local(path) == copy and os.path.basename(copy).endswith("-a.bin")
    FlakyFileSystem.errors = []
    with open(copy, "rb") as file:
        assert file.read() == BYTES
    flaky.pipe("/data/a.bin", b"new")
    with open(storage.open_local(path), "rb") as file:
        assert file.read() == b"new"
    with pytest.raises(FileNotFoundError, match="no such file or folder: flaky://data/absent"):
        storage.open_local("flaky://data/absent")


@pytest.mark.parametrize(
    ("scheme", "missing", "message"),
    [
        ("s3", "", r's3://b/k needs a package that is not installed: pip install "vjepa_jax\[s3\]"'),
        ("gs", "", r'gs://b/k needs a package that is not installed: pip install "vjepa_jax\[gcs\]"'),
        ("s3", "fsspec", r'pip install "vjepa_jax\[s3\]"'),
        ("ftp", "fsspec", r"pip install what ftp:// needs \(import of fsspec"),
        ("nowhere", None, r"nowhere://b/k: nowhere:// is no known kind of storage; use s3:// or gs://"),
    ],
)
def test_what_cannot_be_read_here(monkeypatch, scheme, missing, message):
    def without_package(scheme):
        raise ImportError(f"Install something to access {scheme}")

    if missing == "":
        monkeypatch.setattr(fsspec, "get_filesystem_class", without_package)
    elif missing:
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(storage.StorageError, match=message) as error:
        storage.read(f"{scheme}://b/k")
    assert "\n" not in str(error.value) and not isinstance(error.value, OSError)
