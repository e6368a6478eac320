"""Bytes by path: files of this machine, and objects of a remote store (s3://, gs://, memory://, ...) through fsspec.

Only this module knows of fsspec, and a path of this machine never touches it. What a store refuses for a moment
(timeouts, lost connections, status 5xx, 408 and 429) is asked for again, with pauses that double; what stays wrong
becomes one OSError. Safe in threads and worker processes: the file system is looked up for each call, and fsspec keeps
one a process.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_CACHE = "VJEPA_CACHE"  # environment variable: where downloaded files and compiled programs are kept

_TRIES = 7
_FIRST_PAUSE_S = 0.25  # doubles with every try: up to 16 s in all
_GIVE_UP_S = 120.0  # no further try so long after the first, however few there were
_CONNECT_S, _SILENCE_S = 10, 60  # the longest wait for a connection, and between two pieces of an answer

_PASSING_STATUS = (408, 425, 429)  # and all from 500 on
_PASSING_ERRNO = tuple(
    getattr(errno, name)
    for name in "EIO EREMOTEIO EBUSY EAGAIN ETIMEDOUT ECONNRESET EPIPE ENETUNREACH EHOSTUNREACH".split()
    if hasattr(errno, name)
)
# Lost connections and garbled answers, by the names that botocore, aiohttp, requests and gcsfs give them
_PASSING_NAMES = (
    "HTTPClientError", "ConnectionError", "ClientConnectionError", "ClientPayloadError", "Timeout", "ChecksumError",
)  # fmt: skip

_thread = threading.local()


class StorageError(ValueError):
    """Remote paths cannot be read here at all: a package is missing. The message is one line that says which."""


def is_remote(path: str) -> bool:
    """Whether a path starts with a scheme, as in s3://bucket/key."""
    return _SCHEME.match(path) is not None


def read(path: str) -> bytes:
    """A whole file. Raises OSError where it cannot be read, StorageError where its kind of store cannot."""
    if not is_remote(path):
        with open(path, "rb") as file:
            return file.read()
    return _patiently(path, lambda store: store.cat_file(path))


def read_range(path: str, offset: int, length: int) -> bytes:
    """`length` bytes of a file from byte `offset` on.

    Raises:
      OSError: the file cannot be read, or ends before.
      StorageError: its kind of store cannot be read here.
    """
    if not length:
        return b""  # HTTP knows no empty range
    if is_remote(path):
        data = _patiently(path, lambda store: store.cat_file(path, start=offset, end=offset + length))
    else:
        with open(path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), length, offset)
            while 0 < len(data) < length and (more := os.pread(file.fileno(), length - len(data), offset + len(data))):
                data += more  # the kernel returns at most 2 GiB at once
    if len(data) < length:
        raise OSError(f"{path} is truncated: it ends at byte {offset + len(data)}, {offset + length} are needed")
    return data


def list_files(folder: str) -> list[str]:
    """All files below a folder, sorted, each starting with `folder`; empty if there are none. Raises as `read`."""
    if not is_remote(folder):
        return sorted(os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names)
    folder = folder.rstrip("/")

    def find(store: Any) -> list[str]:
        start = len(store._strip_protocol(folder))
        return sorted(folder + name[start:] for name in store.find(folder))

    return _patiently(folder, find)


def cache_folder() -> str:
    """$VJEPA_CACHE, by default ~/.cache/vjepa_jax; it may not exist yet."""
    return os.environ.get(_CACHE) or os.path.join(os.path.expanduser("~"), ".cache", "vjepa_jax")


def open_local(path: str) -> str:
    """A path of this machine with the content of `path`: itself, or a copy of the remote file (an index, a manifest).

    Copies are kept in $VJEPA_CACHE (see `cache_folder`) by name and state, so that a file that has changed is
    fetched anew, and one that has not is fetched once a machine, also by several processes at once. Raises as `read`.
    """
    if not is_remote(path):
        return path
    state = _patiently(path, lambda store: store.ukey(path))
    folder = cache_folder()
    key = hashlib.sha256(f"{path} {state}".encode()).hexdigest()[:16]
    copy = os.path.join(folder, f"{key}-{os.path.basename(path)}")
    if os.path.exists(copy):
        return copy
    os.makedirs(folder, exist_ok=True)
    with open(f"{copy}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held until the file is closed
        if not os.path.exists(copy):
            _patiently(path, lambda store: store.get_file(path, f"{copy}.partial"))
            os.replace(f"{copy}.partial", copy)
    return copy


def take_retries() -> int:
    """How many times this thread has asked a store again since the last call."""
    count = getattr(_thread, "retries", 0)
    _thread.retries = 0
    return count


def pause(path: str, tries: int) -> float:
    """Seconds to wait after so many failed tries, from 1: twice as long each time, less up to a half that the path
    decides, so that many readers do not come back at once and a run can be repeated."""
    spread = zlib.crc32(f"{path} {tries}".encode()) / 2**32
    return _FIRST_PAUSE_S * 2 ** (tries - 1) * (1 - spread / 2)


def _patiently(path: str, call: Callable[[Any], T]) -> T:
    """`call` of the path's file system, repeated while errors may pass. Raises OSError or StorageError."""
    begin, tries = time.monotonic(), 0
    while True:
        try:
            return call(_store(path))
        except StorageError:
            raise
        except Exception as error:
            tries += 1
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"no such file or folder: {path}") from error
            waited = time.monotonic() - begin
            if not _may_pass(error) or tries == _TRIES or waited > _GIVE_UP_S:
                raise OSError(f"cannot read {path}: {_reason(error)}{_patience(tries, waited)}") from error
            _thread.retries = getattr(_thread, "retries", 0) + 1
            time.sleep(pause(path, tries))


def _store(path: str) -> Any:
    """The fsspec file system of a remote path. Raises StorageError."""
    scheme = _SCHEME.match(path)[1]
    try:
        import fsspec

        kind, options = fsspec.get_filesystem_class(scheme), _options(scheme)
    except ImportError as error:
        package = f'"vjepa_jax[{_EXTRAS[scheme]}]"' if scheme in _EXTRAS else f"what {scheme}:// needs ({error})"
        raise StorageError(f"{path} needs a package that is not installed: pip install {package}") from error
    except ValueError as error:
        raise StorageError(f"{path}: {scheme}:// is no known kind of storage; use s3:// or gs://") from error
    return kind(use_listings_cache=False, **options)  # objects come and go


def _options(scheme: str) -> dict[str, Any]:
    """Time limits; and botocore asks once, so that there is one way to try again, which is bounded and counted."""
    match _EXTRAS.get(scheme):
        case "s3":
            once = {"connect_timeout": _CONNECT_S, "read_timeout": _SILENCE_S, "retries": {"max_attempts": 0}}
            return {"config_kwargs": once}
        case "gcs":
            import aiohttp

            limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
            return {"requests_timeout": limits}
    return {}


def _may_pass(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    status = _status(error)
    if status is not None:
        return status >= 500 or status in _PASSING_STATUS
    if isinstance(error, (TimeoutError, ConnectionError)):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING_ERRNO
    return any(kind.__name__ in _PASSING_NAMES for kind in type(error).__mro__)


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error of botocore, gcsfs or aiohttp; None if there is none."""
    while error is not None:
        response = getattr(error, "response", None)
        with contextlib.suppress(KeyError, TypeError):
            return int(response["ResponseMetadata"]["HTTPStatusCode"])
        for status in (getattr(error, "status", None), getattr(error, "code", None)):
            if isinstance(status, int):
                return status
        error = error.__cause__
    return None


def _reason(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    hint = "; check the credentials" if isinstance(error, PermissionError) else ""
    return f"{type(error).__name__}{text and ': '}{text}{hint}"


def _patience(tries: int, waited: float) -> str:
    return f" (gave up after {tries} tries in {waited:.0f} s)" if tries > 1 else ""
