"""Batches from a store of the real protocol: moto's S3 server in this process, with failures put before it."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
import threading

import numpy as np
import pytest

from data_pipelines import array_records, pipeline, storage
from data_pipelines.index import IndexWriter
from data_pipelines.sources import open_source
from vjepa_jax.config import DataConfig, MaskConfig, MaskGroupConfig, ModelConfig, RunConfig

from .videos import write_video

pytest.importorskip("s3fs", reason="needs s3fs (the extra `s3`)")
fsspec = pytest.importorskip("fsspec")
moto_server = pytest.importorskip("moto.server", reason="needs moto[server] to play the store")


class Faults:
    """Answers the next `count` requests for a key with `status`, before the application of the store is asked."""

    def __init__(self, application):
        self._application, self._faults = application, {}

    def set(self, key, count, status=500, code="InternalError"):
        self._faults[key] = [count, f"{status} x", f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()]

    def __call__(self, environ, start_response):
        fault = self._faults.get(environ["PATH_INFO"])
        if environ["REQUEST_METHOD"] == "GET" and fault and fault[0] > 0:
            fault[0] -= 1
            start_response(fault[1], [("Content-Type", "application/xml")])
            return [fault[2]]
        return self._application(environ, start_response)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four videos, as files and in a shard with an index."""
    root = tmp_path_factory.mktemp("videos")
    for i in range(4):
        write_video(root / "ab"[i % 2] / f"{i}.mp4", 12, video=i)
    source = open_source(str(root))
    rows = [source.row(i) for i in range(len(source))]
    videos = [pathlib.Path(row.path).read_bytes() for row in rows]
    (root / "set").mkdir()
    spans = array_records.write(str(root / "set" / "0.array_record"), videos)
    with IndexWriter(str(root / "set" / "index.arrow"), source.class_names) as writer:
        for row, video, (offset, length) in zip(rows, videos, spans, strict=True):
            place = {"path": "0.array_record", "offset": offset, "length": length}
            writer.write(dataclasses.replace(row, sha256=hashlib.sha256(video).digest(), **place))
    return root


@pytest.fixture(scope="module")
def store(folder, tmp_path_factory):
    """The folder as s3://bucket; yields where faults are set."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *args):
            pass

    faults = Faults(moto_server.DomainDispatcherApplication(moto_server.create_backend_app))
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        server = make_server("127.0.0.1", 0, faults, threaded=True, request_handler=Quiet)
        stack.callback(server.server_close)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("VJEPA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(storage, "_FIRST_PAUSE_S", 1e-3)
        files = fsspec.filesystem("s3")
        files.mkdir("bucket")
        for path in folder.rglob("*.*"):
            files.pipe(f"bucket/{path.relative_to(folder)}", path.read_bytes())
        yield faults
        type(files).clear_instance_cache()


def take(path, count, *, ledger=None, workers=0, clips=8):
    data = DataConfig(path=str(path), num_frames=2, resolution=32, num_workers=workers)
    masks = MaskConfig(groups=(MaskGroupConfig(kind="tube", ratio=0.5),))
    run = RunConfig(steps=1, batch_size=clips, data=data, model=ModelConfig(patch_size=8), masks=masks)
    with contextlib.closing(pipeline.train_batches(run, ledger=ledger)) as batches:
        return list(itertools.islice(batches, count))


def assert_same(expected, found):
    for a, b in zip(expected, found, strict=True):
        assert not b["substituted"].any()
        for key in ("video", "index", "label"):
            np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize(("path", "workers"), [("a", 0), ("set", 0), ("set/index.arrow", 1)])
def test_same_batches_as_from_this_machine(store, folder, path, workers):
    assert_same(take(folder / path, 2), take(f"s3://bucket/{path}", 2, workers=workers))


def test_a_manifest_beside_its_videos(store, folder):
    text = b"a/0.mp4 3\nb/1.mp4 1\n"
    (folder / "list.txt").write_bytes(text)
    fsspec.filesystem("s3").pipe("bucket/list.txt", text)
    assert_same(take(folder / "list.txt", 1), take("s3://bucket/list.txt", 1))


def test_errors_that_pass_leave_no_trace(store, folder):
    storage.take_retries()
    store.set("/bucket/set/0.array_record", 2)
    assert (
        storage.read_range("s3://bucket/set/0.array_record", 100, 50)
        == ((folder / "set" / "0.array_record").read_bytes()[100:150])
    )
    assert storage.take_retries() == 2
    store.set("/bucket/set/0.array_record", 3)
    assert_same(take(folder / "set", 1), take("s3://bucket/set", 1))


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (500, "InternalError", r"gave up after 7 tries in \d+ s"),
        (403, "AccessDenied", "PermissionError: no; check the credentials"),
        (404, "NoSuchKey", "no such file or folder: s3://bucket/b/3.mp4"),
    ],
)
def test_a_video_that_cannot_be_read_is_replaced_counted_and_named(store, tmp_path, status, code, reason):
    store.set("/bucket/b/3.mp4", 10**6, status, code)
    ledger = tmp_path / "bad_videos.jsonl"
    batches = take("s3://bucket/b", 2, ledger=str(ledger))
    store.set("/bucket/b/3.mp4", 0)
    assert sum(int(b["substituted"].sum()) for b in batches) >= 8
    assert all(set(b["index"].tolist()) == {0} for b in batches)
    (entry,) = map(json.loads, ledger.read_text().splitlines())
    assert entry["path"] == "s3://bucket/b/3.mp4"
    assert re.search(reason, entry["error"]), entry


def test_a_shard_with_wrong_bytes(store, folder, tmp_path):
    """One video of the shard is overwritten: the checksum of the index tells."""
    source = open_source(str(folder / "set"))
    row = source.row(2)
    shard = bytearray((folder / "set" / "0.array_record").read_bytes())
    shard[row.offset + 40] ^= 1
    files = fsspec.filesystem("s3")
    files.pipe({"bucket/damaged/0.array_record": bytes(shard)})
    files.pipe("bucket/damaged/index.arrow", (folder / "set" / "index.arrow").read_bytes())
    batches = take("s3://bucket/damaged", 2, ledger=str(tmp_path / "bad.jsonl"))
    assert sum(int(b["substituted"].sum()) for b in batches) >= 4
    (entry,) = map(json.loads, (tmp_path / "bad.jsonl").read_text().splitlines())
    assert entry["path"].startswith("s3://bucket/damaged/0.array_record#") and "checksum" in entry["error"]
