"""Frames by index: the right ones from every kind of file, and one kind of error from broken ones."""

import io

import av
import numpy as np
import pytest

from data_pipelines.decode import DecodeError, VideoReader, probe

from .videos import HEIGHT, WIDTH, numbered_frame, read_numbers, write_video

UNEVEN = np.cumsum([0, *(1 + i % 3 for i in range(59))]).tolist()
EDGE_CASES = 21

# name: how it is written, how its frames are found, whether seeks are expected
FILES = {
    "plain.mp4": ({}, "index", True),
    "open_gop.mp4": ({"options": {"x264-params": "open-gop=1:bframes=3:b-pyramid=2"}}, "index", True),
    "late_start.mp4": ({"times": list(range(30, 90))}, "index", True),
    "hevc.mp4": ({"codec": "libx265", "options": {"x265-params": "log-level=none"}}, "index", True),
    "uneven.mp4": ({"times": UNEVEN}, "scan", True),
    "fragmented.mp4": ({"muxer": {"movflags": "frag_keyframe+empty_moov"}}, "scan", True),
    "plain.mkv": ({}, "scan", True),
    "uneven.mkv": ({"times": UNEVEN}, "scan", True),
    "plain.ts": ({}, "scan", True),
    "vp9.webm": ({"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}, "scan", True),
    "vp8.webm": ({"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}, "scan", True),
    "mpeg4.avi": ({"codec": "mpeg4"}, "scan", True),
    "plain.gif": ({"codec": "gif", "pix_fmt": "rgb8", "fps": 25}, "scan", False),
    "reordered.avi": ({"codec": "mpeg4", "options": {"bf": "2"}}, "order", False),
    "guessed_times.avi": ({}, "order", False),
    "intra_refresh.ts": ({"options": {"x264-params": "intra-refresh=1"}}, "order", True),
    "timeless.mp4": ({"timeless": True}, "order", False),
    "raw.h264": ({"format": "h264"}, "order", False),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / "plain.mp4")


@pytest.mark.parametrize("name", FILES)
def test_frames_are_exact(tmp_path, name, monkeypatch):
    how, way, seeks = FILES[name]
    path = write_video(tmp_path / name, **how)
    keys = []
    go_to = VideoReader._go_to
    monkeypatch.setattr(VideoReader, "_go_to", lambda self, key: (keys.append(key), go_to(self, key)))
    rng = np.random.default_rng(0)
    with VideoReader(path) as reader:
        assert reader.num_frames == 60
        for indices in ([0], [59], [11, 12, 13], [58, 3, 3, 40], *rng.integers(0, 60, (6, 5)).tolist()):
            np.testing.assert_array_equal(read_numbers(reader.read(indices)), indices)
        assert reader._timeline.way == way
    assert any(key is not None for key in keys) == seeks


def test_pixels_are_those_of_plain_decoding(plain):
    with av.open(str(plain)) as container:
        expected = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    with VideoReader(plain) as reader:
        frames = reader.read(range(0, 60, 7))
    assert frames.dtype == np.uint8 and frames.shape == (9, HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(frames, expected[::7])
    assert np.abs(frames[1].astype(int) - numbered_frame(7)).mean() < 8


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_seek_decodes_only_what_it_needs(tmp_path, suffix):
    """Late frames of a long video: from the last key frame to the last packet that is needed, and over a gap."""
    path = write_video(tmp_path / f"long.{suffix}", 200, gop=10)
    with VideoReader(path) as reader:
        container = reader._container
        read = []

        class Counting:
            def __getattr__(self, name):
                return getattr(container, name)

            def demux(self, stream):
                for packet in container.demux(stream):
                    read.append(packet.pts)
                    yield packet

        reader._container = Counting()
        assert read_numbers(reader.read([195])) == [195]
        assert len(read) <= 10  # frames 190 to 195, a few of which are shown later
        read.clear()
        np.testing.assert_array_equal(read_numbers(reader.read([51, 192])), [51, 192])
        assert len(read) <= 20  # two groups of pictures
        reader._container = container


def test_an_open_group_of_pictures_starts_one_earlier(tmp_path):
    """Frames shown before the key frame that comes first in the file also need the group before; no scan is needed."""
    options = {"x265-params": "log-level=none:open-gop=1:keyint=10:min-keyint=10:bframes=3:scenecut=0"}
    path = write_video(tmp_path / "open.mp4", codec="libx265", options=options)
    with VideoReader(path) as reader:
        for index in range(60):
            assert read_numbers(reader.read([index])) == [index]
        assert reader._timeline.way == "index"


def test_frames_come_one_at_a_time_and_repeat(plain):
    with VideoReader(plain) as reader:
        frames = list(reader.frames([4, 4, 9]))
        assert frames[0] is frames[1]
        np.testing.assert_array_equal(read_numbers(np.stack(frames)), [4, 4, 9])
        with pytest.raises(ValueError, match="must ascend"):
            next(reader.frames([3, 2]))


def test_bytes_and_reuse(plain):
    file = io.BytesIO(plain.read_bytes())
    for _ in range(2):
        with VideoReader(file) as reader:
            np.testing.assert_array_equal(read_numbers(reader.read([50, 1])), [50, 1])
            np.testing.assert_array_equal(read_numbers(reader.read([2])), [2])


@pytest.mark.parametrize(
    ("rotation", "turns", "mirrored"),
    [({"degrees": 90}, 1, False), ({"degrees": -90}, -1, False), ({"degrees": 180}, 2, False),
     ({"degrees": 0, "hflip": True}, 0, True)],
)  # fmt: skip
def test_display_matrix_is_applied(tmp_path, plain, rotation, turns, mirrored):
    with VideoReader(plain) as reader:
        upright = reader.read([7, 30])
    with VideoReader(write_video(tmp_path / "turned.mp4", rotation=rotation)) as reader:
        shown = reader.read([7, 30])
    expected = upright[:, :, ::-1] if mirrored else np.rot90(upright, turns, axes=(1, 2))
    np.testing.assert_array_equal(shown, expected)


def test_probe(tmp_path, plain):
    info = probe(plain)
    assert (info.num_frames, info.height, info.width) == (60, HEIGHT, WIDTH)
    assert (info.fps, info.duration) == pytest.approx((30.0, 2.0))
    turned = probe(write_video(tmp_path / "turned.mkv", rotation={"degrees": 90}))
    assert (turned.height, turned.width) == (WIDTH, HEIGHT)
    assert turned.fps == pytest.approx(30.0, rel=1e-3)
    # The mean rate of an uneven file is that of its frames, whatever its header says.
    uneven = probe(write_video(tmp_path / "uneven.mkv", times=UNEVEN))
    assert uneven.fps == pytest.approx(30 * 59 / UNEVEN[-1], rel=1e-3)


@pytest.mark.parametrize("name", ["timeless.mp4", "raw.h264", "guessed_times.avi"])
def test_rate_without_time_stamps(tmp_path, name):
    info = probe(write_video(tmp_path / name, fps=20, **FILES[name][0]))
    assert (info.num_frames, info.fps) == (60, 20.0)


def test_broken_files_raise_decode_errors(tmp_path, plain):
    content = plain.read_bytes()
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
    header_first = write_video(tmp_path / "first.mp4", muxer={"movflags": "faststart"}).read_bytes()
    transport = write_video(tmp_path / "whole.ts").read_bytes()
    cases = {
        "empty.mp4": (b"", "Invalid data"),
        "text.mp4": (b"this is no video\n" * 50, "Invalid data"),
        "no_header.mp4": (content[: len(content) // 2], "Invalid data"),
        "cut.mp4": (header_first[: len(header_first) * 2 // 3], "the file is truncated"),
        "no_frames.ts": (transport[: 188 * 3], "no frames|no video stream"),
        "sound_only.mp4": ((tmp_path / "sound.wav").read_bytes(), "no video stream"),
    }
    for name, (broken, message) in cases.items():
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(DecodeError, match=message) as error:
            probe(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(DecodeError, match="No such file"):
        probe(tmp_path / "absent.mp4")
    with VideoReader(plain) as reader, pytest.raises(DecodeError, match="frame 60 does not exist"):
        reader.read([60])


def test_damage_never_crashes(tmp_path, plain):
    """Cut and overwritten files decode or raise DecodeError, within seconds."""
    rng = np.random.default_rng(0)
    contents = [plain.read_bytes()] + [
        write_video(tmp_path / name, 30, **FILES[name][0]).read_bytes() for name in ("plain.mkv", "plain.ts")
    ]
    outcomes = {True: 0, False: 0}
    for trial in range(45):
        content = np.frombuffer(contents[trial % 3], np.uint8).copy()
        if trial % 2:
            content = content[: rng.integers(len(content))]
        else:
            content[rng.integers(0, len(content), 20)] = rng.integers(0, 256, 20)
        try:
            with VideoReader(io.BytesIO(content.tobytes())) as reader:
                frames = reader.read(np.linspace(0, reader.num_frames - 1, 4).astype(int))
            assert frames.dtype == np.uint8 and len(frames) == 4
            outcomes[True] += 1
        except DecodeError:
            outcomes[False] += 1
    assert min(outcomes.values()) > 3, "the damage should break some files and spare others"


def test_edge_cases_agree_with_plain_decoding(shared_data):
    """The 21 real files that break decoders: equal to decoding everything in order, or a DecodeError."""
    broken, checked = [], 0
    for path in sorted((shared_data / "edge_cases").iterdir()):
        checked += 1
        try:
            with VideoReader(path) as reader:
                indices = np.unique(np.linspace(0, min(reader.num_frames, 60) - 1, 4).astype(int))
                frames = reader.read(indices)
        except DecodeError:
            broken.append(path.name)
            continue
        if frames.nbytes > 4e6 * len(frames):  # several seconds for nothing new
            continue
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "NONE"
            expected = [f.to_ndarray(format="rgb24") for i, f in zip(range(60), container.decode(video=0), strict=False)
                        if i in indices]  # fmt: skip
        turned = any(word in path.name for word in ("_90", "_180", "_270"))
        if not turned:
            np.testing.assert_array_equal(frames, expected)
    assert checked == EDGE_CASES
    assert broken == ["decord__corrupted.mp4", "moviepy__result.webm"]
