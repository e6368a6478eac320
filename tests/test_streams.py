"""Several streams of clips in every step, each with its own frames, size, batch and masks: batches, loss, program."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import pipeline
from vjepa_jax import config as config_lib
from vjepa_jax import config_file, dryrun, objectives
from vjepa_jax.config import ConfigError
from vjepa_jax.parallel import partitioning
from vjepa_jax.prepare import prepare
from vjepa_jax.training.step import MODEL_KEYS, make_train_step


@pytest.fixture
def config(tiny_config, tiny_world):
    """Clips of 4 frames, and beside them 8 frames, and 2 frames of 32 pixels."""

    def stream(batch_size, weight, groups, **data):
        data = {
            "path": str(tiny_world),
            "split": "pretrain",
            "frame_step": 1,
            "num_threads": 1,
            "resolution": 16,
        } | data
        return {"batch_size": batch_size, "weight": weight, "data": data, "masks": {"groups": groups}}

    def make(**changes):
        small = {"num_blocks": 2, "spatial_scale": [0.3, 0.3]}
        streams = {
            "long": stream(8, 0.5, [small, {"kind": "tube", "ratio": 0.5}], num_frames=8),
            "large": stream(16, 2.0, [small], num_frames=2, resolution=32),
        }
        return tiny_config(**({"streams": streams} | changes))

    return make


def close(iterator, count):
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def test_batches_hold_the_batches_of_every_stream(config):
    run = config_lib.from_config_dict(config())
    batches = close(pipeline.train_batches(run), 3)
    for name, alone in run.stream_runs.items():
        for batch, expected in zip(batches, close(pipeline.train_batches(alone), 3), strict=True):
            jax.tree.map(np.testing.assert_array_equal, batch["streams"][name]["video"], expected["video"])
            jax.tree.map(np.testing.assert_array_equal, batch["streams"][name]["masks"], expected["masks"])
    assert batches[0]["streams"]["long"]["video"].shape == (8, 8, 16, 16, 3)
    assert batches[0]["streams"]["large"]["video"].shape == (16, 2, 32, 32, 3)
    assert batches[0]["substituted"].shape == (8 + 8 + 16,)
    without = dataclasses.replace(run, streams={})
    np.testing.assert_array_equal(close(pipeline.train_batches(without), 1)[0]["video"], batches[0]["video"])
    (later,) = close(pipeline.train_batches(run, start_step=2), 1)
    jax.tree.map(np.testing.assert_array_equal, later, batches[2])
    assert len({alone.seed for alone in (run, *run.stream_runs.values())}) == 3


def test_the_loss_is_that_of_runs_on_each_stream(config):
    run = config_lib.from_config_dict(config())
    run = dataclasses.replace(run, streams={"large": run.streams["large"]})
    (batch,) = close(pipeline.train_batches(run), 1)
    batch = {key: batch[key] for key in MODEL_KEYS}
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(objectives.create(run).init, jax.random.key(0))
    params, aux = jax.tree.map(lambda x: rng.normal(0.0, 0.1, x.shape).astype(x.dtype), shapes)
    quickly_compiled = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

    def loss(run, batch):
        program = jax.jit(objectives.create(run).loss, compiler_options=quickly_compiled)
        return program(params, aux, batch, jax.random.key(0), jnp.int32(0))

    total, metrics = loss(run, batch)
    large, alone = loss(run.stream_runs["large"], batch["streams"]["large"])
    videos, _ = loss(dataclasses.replace(run, streams={}), batch)
    assert {f"large/{key}" for key in alone} <= metrics.keys()
    np.testing.assert_allclose(metrics["large/loss"], large, rtol=1e-6)
    np.testing.assert_allclose(metrics["videos/loss"], videos, rtol=1e-6)
    np.testing.assert_allclose(total, (videos + 2 * large) / 3, rtol=1e-6)


def test_all_streams_are_one_program_of_fixed_shapes(config):
    """What changes from step to step are numbers; FLOPs are those of all streams."""
    run = config_lib.from_config_dict(config())
    batches = [{key: batch[key] for key in MODEL_KEYS} for batch in close(pipeline.train_batches(run), 3)]
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), batch) for batch in batches]
    assert shapes[0] == shapes[1] == shapes[2]
    setup = prepare(run)
    step = make_train_step(setup.objective, setup.optimizer, run)
    state, metrics = jax.eval_shape(step, setup.abstract, batches[0])
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, setup.abstract)
    assert {"videos/loss", "long/loss", "long/loss/group1", "large/loss"} <= metrics.keys()
    alone = [prepare(stream).step_flops for stream in run.stream_runs.values()]
    assert setup.step_flops == pytest.approx(sum(alone) + setup.clip_flops * run.batch_size)
    plan = dryrun.format_plan([dryrun.describe("", run, dryrun.Machine(8))])
    assert "long a step" in plan and "large a step" in plan


def test_streams_in_a_config_file(config, tmp_path):
    """Keys of streams can be overridden; what changes no numbers may differ when a run goes on."""
    file = tmp_path / "config.py"
    file.write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({config()!r})\n"
    )
    run = config_file.load(
        str(file), ["--config.streams.long.weight=0.25", "--config.streams.large.data.num_workers=3"]
    )
    assert run.streams["long"].weight == 0.25 and run.streams["large"].data.num_workers == 3
    assert config_lib.from_config_dict(config_lib.to_dict(run)) == run
    saved = config_lib.to_dict(config_lib.from_config_dict(config()))
    assert config_lib.differences(saved, config_lib.to_dict(run)) == ["streams.long.weight: 0.5 -> 0.25"]
    with pytest.raises(ConfigError, match=r"unknown config key streams\.short\.weight; did you mean"):
        config_file.load(str(file), ["--config.streams.short.weight=1"])


def test_what_does_not_fit_is_one_clear_line(config):
    def refused(match, name="long", **changes):
        changed = config()
        changed["streams"] = {name: changed["streams"]["long"] | changes}
        with pytest.raises(ConfigError, match=match):
            config_lib.from_config_dict(changed)

    refused(r"streams.long.weight=-1.0 must be positive: leave streams.long out", weight=-1.0)
    refused(r"streams.long: data.num_frames=3 is not divisible", data={"path": "", "num_frames": 3})
    refused(r"streams.videos: a name must be letters, digits, '_' and '-', and none of images, videos", name="videos")
    refused(r"streams.a b: a name must be", name="a b")
    refused(r"unknown config key streams.long.wait; did you mean 'weight'", wait=1.0)
    with pytest.raises(ConfigError, match="streams=3 must be a group of names"):
        config_lib.from_config_dict(config(streams=3))
    uneven = config_lib.from_config_dict(config())
    uneven = dataclasses.replace(uneven, streams={"long": dataclasses.replace(uneven.streams["long"], batch_size=3)})
    with pytest.raises(ConfigError, match=r"long: batch_size = 3 is not divisible by mesh.replica \* mesh.fsdp = 8"):
        partitioning.check_batch(uneven, partitioning.make_mesh(uneven.mesh))
    ijepa = config(
        objective="ijepa", model={"tubelet_size": 1}, data={"num_frames": 1}, masks={"groups": [{"kind": "separate"}]}
    )
    with pytest.raises(ConfigError, match="objective='ijepa' has one stream of images, in data"):
        objectives.create(config_lib.from_config_dict(ijepa))
