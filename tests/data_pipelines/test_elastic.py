"""The global batches are the same for 1, 2 and 4 processes, 0, 1 and 3 workers, and from any step."""

import contextlib
import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from data_pipelines.pipeline import train_batches
from data_pipelines.sources import open_sources
from vjepa_jax.config import DataConfig, MaskConfig, MaskGroupConfig, ModelConfig, RunConfig

from .videos import write_video

BATCH, STEPS = 8, 9
GROUPS = (
    MaskGroupConfig(num_blocks=2, spatial_scale=(0.3, 0.5), temporal_scale=(0.5, 1.0)),
    MaskGroupConfig(kind="tube", ratio=0.5),
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A manifest of three clusters, one of which holds a broken video, and a folder of videos and a picture."""
    root = tmp_path_factory.mktemp("elastic")
    rows = ["path,label,cluster"]
    for i in range(9):
        write_video(root / "clusters" / f"{i}.mp4", 9, video=i)
        rows.append(f"clusters/{i}.mp4,{i % 4},{'abc'[i % 3]}")
    (root / "clusters" / "4.mp4").write_bytes(b"no video")
    (root / "list.csv").write_text("\n".join(rows))
    (root / "weights.csv").write_text("cluster,weight\na,0.5\nb,0.3\nc,0.2\n")
    for i in range(2):
        write_video(root / "folder" / "x" / f"{i}.mp4", 9, video=20 + i)
    Image.new("RGB", (64, 48), (200, 30, 60)).save(root / "folder" / "y.png")
    return root


def config(sources, workers=0, policy="uniform"):
    return RunConfig(
        steps=STEPS,
        batch_size=BATCH,
        data=DataConfig(
            path=f"{sources}/list.csv,{sources}/folder",
            weights=(3.0, 1.0),
            cluster_weights=f"{sources}/weights.csv",
            no_repeat_window=2,
            clips_per_video=2,
            pictures="repeat",
            num_frames=4,
            frame_step=1,
            resolution=32,
            num_workers=workers,
            num_threads=1,
        ),
        model=ModelConfig(patch_size=8),
        masks=MaskConfig(groups=GROUPS, policy=policy, truncation_group=3),
    )


def leaves(batch):
    """All arrays of a batch by name."""
    masks = {f"masks[{i}].{k}": v for i, group in enumerate(batch["masks"]) for k, v in group.items()}
    return {key: value for key, value in batch.items() if key != "masks"} | masks


@pytest.fixture(scope="module")
def whole(sources):
    """The batches of one uninterrupted process without workers, for both policies of masks."""
    result = {}
    for policy in ("uniform", "first_k"):
        with contextlib.closing(train_batches(config(sources, policy=policy))) as batches:
            result[policy] = [leaves(batch) for batch in itertools.islice(batches, STEPS)]
    return result


def compare(sources, whole, policy, workers, process, processes, start):
    """Two batches of one process: example e of a global batch lies in the share of process e % processes."""
    run = config(sources, workers, policy)
    share = train_batches(run, process_index=process, process_count=processes, start_step=start)
    with contextlib.closing(share):
        for step in (start, start + 1):
            batch, expected = leaves(next(share)), whole[policy][step]
            assert batch.keys() == expected.keys()
            for key, value in batch.items():
                np.testing.assert_array_equal(value, expected[key][process::processes], err_msg=f"{key} of step {step}")


def test_what_is_compared(sources, whole):
    """Batches differ, hold every kind of source, and some of their videos are stand-ins."""
    for batches in whole.values():
        assert len({batch["video"].tobytes() for batch in batches}) == STEPS
        index = np.concatenate([batch["index"] for batch in batches])
        assert set(index) == set(range(12)) - {4}
        assert sum(batch["substituted"].sum() for batch in batches) > 0
        pictures = np.concatenate([batch["video"] for batch in batches])[index == 11]
        assert len(pictures) and (pictures == pictures[:, :1]).all()
    without = dataclasses.replace(config(sources).data, pictures="skip")
    assert [len(source) for source in open_sources(without)] == [9, 2]


@pytest.mark.parametrize("policy", ["uniform", "first_k"])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_any_number_of_processes(sources, whole, processes, policy):
    for start in np.random.default_rng(processes).choice(STEPS - 1, 3, replace=False).tolist():
        for process in range(processes):
            compare(sources, whole, policy, 0, process, processes, start)


@pytest.mark.parametrize(
    ("workers", "process", "processes"),
    [(1, 0, 1), (3, 0, 1), (1, 1, 2), (3, 0, 2), (1, 2, 4), (3, 3, 4)],
)
def test_any_number_of_workers(sources, whole, workers, process, processes):
    """A process knows nothing of the others, so that one of them is enough."""
    policy = "first_k" if workers == 1 else "uniform"
    start = int(np.random.default_rng([workers, process, processes]).integers(STEPS - 1))
    compare(sources, whole, policy, workers, process, processes, start)
