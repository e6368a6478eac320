"""The loop end to end on a tiny model: what a run leaves, exact resume, faults, meshes."""

import errno
import json
import os
import random
import re
import resource
import signal

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from data_pipelines import masking
from vjepa_jax import cli
from vjepa_jax import config as config_lib
from vjepa_jax import train as train_lib
from vjepa_jax.config import ConfigError
from vjepa_jax.convert import formats
from vjepa_jax.convert.weights import Weights
from vjepa_jax.encoder import load
from vjepa_jax.training import metrics as metrics_lib
from vjepa_jax.training import spikes
from vjepa_jax.training.checkpoint import Checkpoints
from vjepa_jax.training.chrono import KINDS

from .processes import assert_same, finish, kill, losses, start, train, wait_for_step


def run_of(config):
    return config_lib.from_config_dict(config)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Folder in which runs of this module are compared; see `uninterrupted`."""
    return tmp_path_factory.mktemp("reference")


@pytest.fixture
def long_config(tiny_config):
    return tiny_config(steps=60, checkpoint={"every_steps": 10}, seed=3)


@pytest.fixture
def uninterrupted(reference, long_config):
    """Losses of 60 steps on one device, never stopped."""
    workdir = reference / "whole"
    if not (workdir / "run.json").exists():
        train(long_config, workdir)
    return losses(workdir)


def test_what_a_run_leaves(tiny_config, tmp_path, capsys):
    config = tiny_config(
        eval={"path": tiny_config()["data"]["path"], "probes": ("linear", "knn"), "seeds": 2, "batch_size": 16},
        log={"every_steps": 2, "health_every_steps": 3, "images_every_steps": 100, "report": True},
        checkpoint={"every_steps": 3, "keep_last": 1},
    )
    assert train_lib.train(run_of(config), tmp_path, command="vjepa train x") == 0
    records = metrics_lib.read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 4, 6]
    wanted = ["loss", "loss/group0", "lr", "weight_decay", "ema", "grad_norm", "grad_norm/encoder", "update_norm"]
    wanted += ["grad_norm/predictor", "param_norm", "substituted"]
    assert all(np.isfinite(r[key]) for r in records for key in wanted)
    vitals = ["rankme", "rankme_max", "feature_std", "pair_cosine", "health_loss", "baseline_copy", "baseline_mean"]
    assert [r["step"] for r in records if all(key in r for key in vitals)] == [1, 3, 6]
    assert config_lib.from_config_dict(json.loads((tmp_path / "config.json").read_text())) == run_of(config)
    described = json.loads((tmp_path / "run.json").read_text())
    assert described["command"] == "vjepa train x" and described["totals"]["steps"] == 6
    spent = {kind: described["totals"][f"{kind}_seconds"] for kind in KINDS}
    assert all(spent[kind] > 0 for kind in ("init", "compile", "data_wait", "step", "checkpoint")) and not spent["lost"]
    assert described["versions"]["jax"] == jax.__version__
    rows = json.loads((tmp_path / "probes.json").read_text())
    assert {(r["encoder"], r["probe"]) for r in rows} == {
        (e, p) for e in ("trained", "random init", "raw pixels") for p in ("linear", "knn")
    }
    assert Checkpoints(tmp_path).steps == [6]
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {
        f"{kind}_{step:08d}.{form}" for kind, form in (("masks", "png"), ("pca", "webp")) for step in (1, 6)
    }
    assert "linear" in (tmp_path / "report.html").read_text()
    assert "report: " in capsys.readouterr().out

    # probed again from its folder, row by row
    assert cli.main(["eval", "--workdir", str(tmp_path), "--probes", "knn", "--seeds", "1"]) == 0
    assert capsys.readouterr().out.startswith("trained, knn, 32 labels: ")
    assert {r["probe"] for r in json.loads((tmp_path / "probes.json").read_text())} == {"knn"}

    # started again, the finished run only repeats its evaluation and report
    assert train_lib.train(run_of(config), tmp_path) == 0
    assert [r["step"] for r in metrics_lib.read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 6]

    # what was saved is what the loop had, and it loads as an encoder
    encoder = load(tmp_path)
    video = np.zeros((2, 4, 16, 16, 3), np.uint8)
    assert encoder(video).shape == (2, 2, 4, 4, 16)


def test_killed_at_a_random_moment_and_continued_with_workers(uninterrupted, long_config, tmp_path):
    workdir = tmp_path / "killed"
    process = start(long_config, workdir)
    wait_for_step(workdir, random.Random(os.getpid()).randint(15, 55), process)
    kill(process)
    saved = max(Checkpoints(workdir).steps, default=0)  # a save that the kill hit does not count
    assert saved < 60
    again = long_config | {"data": long_config["data"] | {"num_workers": 2}}
    (output,) = train(again, workdir)
    assert (f"going on from step {saved}" in output) == (saved > 0), output
    assert losses(workdir) == uninterrupted  # bitwise


def test_sigterm_saves_and_exits_with_its_own_code(uninterrupted, long_config, tmp_path):
    workdir = tmp_path / "stopped"
    config = long_config | {"checkpoint": {"every_steps": 1000}}
    config["data"] = config["data"] | {"num_workers": 2}
    (process,) = start(config, workdir)
    wait_for_step(workdir, 5, [process])
    os.killpg(process.pid, signal.SIGTERM)  # as a cluster does: the data workers are hit as well
    (output,) = finish([process], train_lib.EXIT_RESUME)
    (saved,) = Checkpoints(workdir).steps
    assert f"stopped by SIGTERM after step {saved}; run the same command again" in output
    train(config, workdir)
    assert losses(workdir) == uninterrupted


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"replica": 2, "fsdp": 4}])
def test_a_mesh_gives_the_losses_of_one_device(uninterrupted, long_config, tmp_path, mesh):
    config = long_config | {"mesh": mesh, "steps": 20}
    train(config, tmp_path / "mesh", devices=8)
    assert_same(tmp_path / "mesh", {step: uninterrupted[step] for step in range(1, 21)})


def test_a_checkpoint_of_eight_devices_continues_on_one(uninterrupted, long_config, tmp_path):
    workdir = tmp_path / "moved"
    (process,) = start(long_config, workdir, devices=8)
    wait_for_step(workdir, 15, [process])
    process.send_signal(signal.SIGTERM)
    finish([process], train_lib.EXIT_RESUME)
    train(long_config, workdir)
    assert_same(workdir, uninterrupted, atol=1e-4)


def test_a_loss_that_is_not_finite_stops_with_a_dump(tiny_config, tmp_path):
    config = tiny_config(optim={"lr": 1e30, "start_lr": 1e30}, checkpoint={"every_steps": 1}, steps=20)
    with pytest.raises(train_lib.NonFiniteLossError, match=r"the loss is (nan|inf) at step \d+ .*Lower optim.lr") as e:
        train_lib.train(run_of(config), tmp_path)
    (dump,) = tmp_path.glob("nonfinite_step_*.json")
    assert str(dump) in str(e.value) and "\n" not in str(e.value)
    content = json.loads(dump.read_text())
    assert np.isfinite(content["metrics_of_step_before"]["loss"])
    assert max(Checkpoints(tmp_path).steps) < content["step"]


def test_too_many_skipped_steps_in_a_row_stop_the_run(tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(spikes, "MAX_IN_ROW", 0)
    optim = {"lr": 0.0, "start_lr": 0.0, "skip_spikes": 1e-6, "spike_window": 4, "spike_after": 0}
    config = tiny_config(optim=optim, checkpoint={"every_steps": 1}, steps=20)
    with pytest.raises(spikes.LossSpikeError, match=r"at step \d+, the 1th in a row above optim.skip_spikes"):
        train_lib.train(run_of(config), tmp_path)
    records = metrics_lib.read_metrics(tmp_path / "metrics.jsonl")
    assert [r["skipped"] for r in records] == [0.0] * len(records) and len(records) >= 2
    assert max(Checkpoints(tmp_path).steps) == len(records)


def test_a_folder_of_another_config_is_left_alone(tiny_config, tmp_path):
    assert train_lib.train(run_of(tiny_config(steps=2)), tmp_path) == 0
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ConfigError, match=r"holds a run of another config \(optim.lr: 0.001 -> 0.01\)"):
        train_lib.train(run_of(tiny_config(steps=2, optim={"lr": 0.01})), tmp_path)
    assert (tmp_path / "config.json").read_text() == before
    strange = tmp_path / "strange"
    (strange / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"holds checkpoints without a config\.json"):
        train_lib.train(run_of(tiny_config()), strange)


def test_a_workdir_that_cannot_be_written_is_one_line(tiny_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to --workdir"):
        train_lib.train(run_of(tiny_config()), tmp_path / "file" / "run")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax gathers only the first error
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_while_saving_loses_nothing(tiny_config, tmp_path, monkeypatch, capsys):
    """A file size limit makes the operating system refuse the second save's writes, as a full disk does."""
    save, soft_hard = Checkpoints.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(self, step, state):
        assert self.wait() is None
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if step == 4 else soft_hard[0], soft_hard[1]))
        problem = save(self, step, state)
        return problem or (self.wait() if step == 4 else None)

    monkeypatch.setattr(Checkpoints, "save", limited)
    try:
        code = train_lib.train(run_of(tiny_config(steps=6, checkpoint={"every_steps": 2, "keep_last": 3})), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft_hard)
    output = capsys.readouterr().out
    assert "checkpoint of step 4 could not be saved" in output
    assert "the checkpoint of step 2 is whole. Free space in" in output
    assert code == 0 and Checkpoints(tmp_path).steps == [2, 6]


def test_a_last_save_that_fails_at_once_fails_the_run(tiny_config, tmp_path, monkeypatch, capsys):
    """As where no folder can be made. What failed before is no reason to fail: step 4 of the second run."""
    save = ocp.training.Checkpointer.save_checkpointables_async
    full: set[int] = {6}

    def refused(self, step, state):
        if step in full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(self, step, state)

    monkeypatch.setattr(ocp.training.Checkpointer, "save_checkpointables_async", refused)
    run = run_of(tiny_config(steps=6, checkpoint={"every_steps": 2, "keep_last": 3}))
    reason = r"could not be saved \(OSError: \[Errno 28\] No space left on device\)"
    assert train_lib.train(run, tmp_path / "last") == train_lib.EXIT_FAILED
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "could not be saved" in line]
    assert re.search(f"checkpoint of step 6 {reason}; the checkpoint of step 4 is whole. Free space in", line)
    full.clear()
    assert train_lib.train(run, tmp_path / "last") == 0 and Checkpoints(tmp_path / "last").steps == [2, 4, 6]
    full.add(4)
    assert train_lib.train(run, tmp_path / "middle") == 0 and Checkpoints(tmp_path / "middle").steps == [2, 6]
    assert "checkpoint of step 4 could not be saved" in capsys.readouterr().out


def test_undecodable_videos_are_counted_and_named_once(tiny_config, tiny_world, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for i, path in enumerate(sorted((tiny_world.parent / "videos" / "pretrain").glob("*.mp4"))[:4]):
        (videos / f"{i}.mp4").write_bytes(path.read_bytes())
    (videos / "broken.mp4").write_bytes(b"not a video")
    config = tiny_config(data={"path": str(videos), "split": ""}, steps=4)
    assert train_lib.train(run_of(config), tmp_path / "run") == 0
    assert sum(r["substituted"] for r in metrics_lib.read_metrics(tmp_path / "run" / "metrics.jsonl")) > 0
    (line,) = (tmp_path / "run" / train_lib.LEDGER).read_text().splitlines()
    assert json.loads(line)["path"].endswith("broken.mp4")


def test_weights_of_another_run_are_the_start(tiny_config, tmp_path, capsys):
    """As an official file of the encoder alone, which is mapped into memory; tests/convert has the other kinds."""
    assert train_lib.train(run_of(tiny_config(steps=3)), tmp_path / "first") == 0
    source, path = load(tmp_path / "first"), tmp_path / "first.pt"
    given = jax.device_get(source.params["encoder"])
    formats.write(path, Weights(source.run, {"encoder": given}), "official")
    before = path.read_bytes()
    config = tiny_config(steps=1, init_from=str(path), optim={"lr": 0.0, "start_lr": 0.0}, seed=5)
    assert train_lib.train(run_of(config), tmp_path / "second") == 0
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "second").params["encoder"], given)
    assert f"warning: {path} has no predictor of masked tokens" in capsys.readouterr().err
    assert path.read_bytes() == before
    wider = tiny_config(init_from=str(tmp_path / "first"), model={"embed_dim": 24})
    with pytest.raises(ValueError, match="holds another model"):
        train_lib.train(run_of(wider), tmp_path / "third")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, "init.weights='all' needs the run to take them from: set --config.init_from=RUN"),
        ({"init_from": "nowhere"}, "nowhere is not a run folder"),
        ({"model": {"embed_dim": 24}}, "holds another model"),
        ({"init": {"optimizer": True}}, "init.optimizer=True needs init.weights='all'"),
        ({"init": {"weights": "al"}}, "init.weights='al' is not one of target, all; did you mean 'all'"),
    ],
)
def test_nothing_to_go_on_from_is_one_line_and_leaves_nothing(tiny_config, tmp_path, changes, message):
    source = tmp_path / "first"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config_lib.to_dict(run_of(tiny_config()))))
    with pytest.raises(ValueError, match=re.escape(message)):
        config = tiny_config(**({"init_from": str(source), "init": {"weights": "all"}} | changes))
        train_lib.train(run_of(config), tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_nothing_compiles_after_warm_up(tiny_config, tmp_path, monkeypatch):
    compiled, counts = [0], []
    counter = lambda name, *_, **__: compiled.__setitem__(0, compiled[0] + ("backend_compile" in name))
    jax.monitoring.register_event_duration_secs_listener(counter)
    tick = metrics_lib.RunLog.tick
    monkeypatch.setattr(metrics_lib.RunLog, "tick", lambda self: (counts.append(compiled[0]), tick(self)))
    try:
        config = tiny_config(steps=8, log={"health_every_steps": 3, "images_every_steps": 100, "report": False})
        assert train_lib.train(run_of(config), tmp_path) == 0
    finally:
        jax.monitoring.clear_event_listeners()
    assert counts[0] > 0 and len(set(counts[2:])) == 1, counts


def test_mask_budgets_that_nothing_meets_are_refused_before_anything_is_written(tiny_config, tmp_path):
    groups = [{"num_blocks": 2, "spatial_scale": [0.3, 0.3], "context": 31, "target": 1}]
    with pytest.raises(ConfigError, match=r"masks.groups\[0\]"):
        train_lib.train(run_of(tiny_config(masks={"groups": groups})), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert masking.make_plan(run_of(tiny_config())).groups[0].context == 8
