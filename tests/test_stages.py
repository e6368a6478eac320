"""Ladders: how a config is taken apart, what a stage starts from, stopping and going on anywhere."""

import json
import os
import signal

import jax
import numpy as np
import optax
import pytest

from vjepa_jax import cli, config_file, config_stages, stages, starting
from vjepa_jax import train as train_lib
from vjepa_jax.config import ConfigError, from_config_dict
from vjepa_jax.objectives import create
from vjepa_jax.parallel import partitioning
from vjepa_jax.training.checkpoint import load_parts
from vjepa_jax.training.optim import make_optimizer
from vjepa_jax.training.state import abstract_state

from .processes import finish, kill, losses, start, train, wait_for_step

FOLDERS = ("00_4f", "01_8f", "02_8f-24")


@pytest.fixture
def ladder(tiny_config):
    """4 frames of 16 px, 8 of 16, and 8 of 24 px where nothing is learned; keyword arguments go to the config."""

    def make(**changes):
        steps = (
            {"name": "4f", "steps": 4},
            {"name": "8f", "steps": 40, "data.num_frames": 8, "optim.lr": 5e-4, "seed": 1},
            {"name": "8f-24", "steps": 3, "data.num_frames": 8, "data.resolution": 24, "seed": 2,
             "optim.lr": 0.0, "optim.start_lr": 0.0, "ema.start": 1.0, "ema.end": 1.0},
        )  # fmt: skip
        checkpoint = {"every_steps": 10}
        return tiny_config(**({"stages": steps, "init": {"optimizer": True}, "checkpoint": checkpoint} | changes))

    return make


def losses_of(workdir):
    return {folder: losses(workdir / folder) for folder in FOLDERS}


def state_of(folder):
    """The whole training state that a run folder saved last."""
    run = from_config_dict(json.loads((folder / "config.json").read_text()))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = abstract_state(create(run), make_optimizer(run))
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), abstract)
    return jax.device_get(load_parts(folder, placed))


def adam_of(state):
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)
    return next(node for node in jax.tree.leaves(state["opt"], is_leaf=is_adam) if is_adam(node))


# ------------------------------------------------------------------------------------------------------- the config


def test_stages_differ_from_the_config_in_their_keys(ladder):
    config = ladder(init_from="elsewhere", init={"weights": "all", "optimizer": True})
    expanded = config_stages.expand(config)
    assert [name for name, _ in expanded] == ["4f", "8f", "8f-24"]
    first, second, third = (run for _, run in expanded)
    assert (first.steps, second.steps, third.steps) == (4, 40, 3)
    assert (first.grid, second.grid, third.grid) == ((2, 4, 4), (4, 4, 4), (4, 6, 6))
    assert second.optim.lr == 5e-4 and first.optim.lr == 1e-3 and third.optim.lr == 0.0
    assert first.init_from == "elsewhere" and second.init_from == ""
    assert (first.init.stage, second.init.stage, third.init.stage) == ("", "00_4f", "01_8f")
    assert all(run.init.weights == "all" and run.init.optimizer and run.stages == () for _, run in expanded)
    assert "stages" in config  # what was given is as it was


def test_a_config_without_stages_is_one_run(tiny_config):
    assert config_stages.expand(tiny_config()) == [("", from_config_dict(tiny_config()))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.nm_frames": 8}, r"stage '8f': unknown config key data.nm_frames; did you mean 'num_frames'\?"),
        ({"data.num_frames": 7}, r"stage '8f': data.num_frames=7 is not divisible"),
        ({"steps": "many"}, r"stage '8f': steps='many' must be of type int"),
        ({"data": {"num_frames": 8}}, r"stage '8f': data=.* is a group: set its keys one by one, as data.KEY"),
        ({"steps.x": 1}, r"stage '8f': unknown config key steps.x: steps is not a group"),
        ({"init_from": "x"}, r"stage '8f': init_from is not a stage's to set"),
        ({"init.stage": "x"}, r"stage '8f': init.stage is not a stage's to set"),
        ({"name": "4f"}, r"stage '4f': stages\[1\] and stages\[0\] have one name"),
        ({"name": "8 f"}, r"stages\[1\]: its name='8 f' must be letters"),
        ({"name": None}, r"stages\[1\]: its name=None must be"),
    ],
)
def test_a_wrong_stage_is_one_line_with_its_name(ladder, change, message):
    first, second, third = ladder()["stages"]
    with pytest.raises(ConfigError, match=message) as caught:
        config_stages.expand(ladder(stages=(first, second | change, third)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"), [({"name": "a"}, "must be a tuple of stages"), (["a"], "must be a dict")]
)
def test_stages_of_another_form_are_one_line(ladder, given, message):
    with pytest.raises(ConfigError, match=message):
        config_stages.expand(ladder(stages=given))


def test_a_ladder_is_no_single_run(repo):
    with pytest.raises(ConfigError, match="is a ladder of stages, and one run is wanted"):
        config_file.load(str(repo / "experiments/pretrain/progressive.py"))


# ------------------------------------------------------------------------------------------------------ the training


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ladder") / "whole"


@pytest.fixture
def whole(whole_folder, ladder):
    """Folder of the ladder climbed without a stop, on one device."""
    if not whole_folder.exists():
        (output,) = train(ladder(), whole_folder)
        assert "all 3 stages are finished; the last one is in" in output
    return whole_folder


def test_killed_and_stopped_inside_a_stage_and_continued_the_losses_are_the_same(whole, ladder, tmp_path):
    assert [len(steps) for steps in losses_of(whole).values()] == [4, 40, 3]
    process = start(ladder(), tmp_path / "killed")
    wait_for_step(tmp_path / "killed" / FOLDERS[1], 12, process)
    kill(process)
    assert not (tmp_path / "killed" / FOLDERS[2]).exists()
    moved = (tmp_path / "killed").rename(tmp_path / "moved")  # a stage finds the one before beside itself
    (process,) = start(ladder(), moved)
    wait_for_step(moved / FOLDERS[1], 25, [process])
    process.send_signal(signal.SIGTERM)
    (output,) = finish([process], train_lib.EXIT_RESUME)
    assert "run the same command again" in output
    (output,) = train(ladder(), moved)
    assert "stage 1 of 3, 4f: finished" in output
    assert losses_of(moved) == losses_of(whole)  # bitwise


@pytest.mark.parametrize("optimizer", [False, True])
@pytest.mark.parametrize("source", ["stage", "init_from"])
def test_a_run_starts_with_the_whole_state_of_the_one_before(whole, ladder, tiny_config, source, optimizer):
    init = {"weights": "all", "optimizer": optimizer}
    if source == "stage":
        run = config_stages.expand(ladder(init=init, optim={"clip_norm": 1.0}))[1][1]
    else:
        start = str(whole / FOLDERS[0])
        run = from_config_dict(tiny_config(init=init, init_from=start, optim={"clip_norm": 1.0}))
    objective, updates = create(run), make_optimizer(run)  # clipping, which the run before had not
    mesh = partitioning.make_mesh(run.mesh)
    abstract = abstract_state(objective, updates)
    shardings = partitioning.state_shardings(abstract, mesh)
    fresh = jax.tree.map(lambda a, s: jax.device_put(np.zeros(a.shape, a.dtype), s), abstract, shardings)
    begun, before = starting.begin(run, whole / FOLDERS[1], fresh, mesh), state_of(whole / FOLDERS[0])
    assert jax.tree.map(lambda x: x.sharding, begun) == shardings
    begun, fresh = jax.device_get((begun, fresh))
    for part in ("params", "aux"):
        jax.tree.map(np.testing.assert_array_equal, begun[part], before[part])
    apart = jax.tree.map(lambda a, b: bool((a != b).any()), begun["params"]["encoder"], begun["aux"]["target"])
    assert any(jax.tree.leaves(apart))  # the online encoder came along, not the target twice
    # Adam's moments and the count that corrects their bias; schedules count from 0 again
    adam = adam_of(before) if optimizer else adam_of(fresh)
    jax.tree.map(np.testing.assert_array_equal, adam_of(begun), adam)
    assert int(adam.count) == (4 if optimizer else 0)
    counts = [int(leaf) for leaf in jax.tree.leaves(begun["opt"]) if leaf.shape == ()]
    assert sorted(counts) == [0, 0, int(adam.count)] and int(begun["step"]) == 0


def test_a_stage_may_start_with_the_target_encoder_alone(whole, ladder):
    first, second, _ = ladder()["stages"]
    init = {"init.weights": "target", "init.optimizer": False}
    run = config_stages.expand(ladder(stages=(first, second | init)))[1][1]
    mesh, state = partitioning.make_mesh(run.mesh), state_of(whole / FOLDERS[0])
    fresh = jax.tree.map(lambda x: jax.device_put(np.zeros_like(x), partitioning.replicated(mesh)), state)
    begun = starting.begin(run, whole / FOLDERS[1], fresh, mesh)
    for encoder in (begun["params"]["encoder"], begun["aux"]["target"]):
        jax.tree.map(np.testing.assert_array_equal, encoder, state["aux"]["target"])
    jax.tree.map(np.testing.assert_array_equal, begun["params"]["predictor"], state["params"]["predictor"])
    assert not any(leaf.any() for leaf in jax.tree.leaves((begun["opt"], begun["step"])))


def test_parameters_cross_a_border_unchanged(whole):
    """The last stage learns nothing: what it saved is what it began with."""
    before, after = state_of(whole / FOLDERS[1]), state_of(whole / FOLDERS[2])
    for part in ("params", "aux"):
        jax.tree.map(np.testing.assert_array_equal, before[part], after[part])
    assert before["step"] == 40 and after["step"] == 3
    assert adam_of(before).count == 44 and adam_of(after).count == 47  # they go on through all stages


def test_a_finished_ladder_says_so_and_does_nothing(whole, ladder, capsys):
    times = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    assert stages.train(config_stages.expand(ladder()), whole) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"stage 1 of 3, 4f: finished, in {whole / FOLDERS[0]}",
        f"stage 2 of 3, 8f: finished, in {whole / FOLDERS[1]}",
        f"stage 3 of 3, 8f-24: finished, in {whole / FOLDERS[2]}",
        f"all 3 stages are finished; the last one is in {whole / FOLDERS[2]}",
    ]
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()} == times


def test_a_signal_in_the_last_step_of_a_stage_stops_the_ladder(ladder, tmp_path, monkeypatch, capsys):
    """The stage itself has finished then, and says 0."""
    begun = []

    def signalled(run, folder, command, stop, since):
        begun.append(folder.name)
        with stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return 0

    monkeypatch.setattr(train_lib, "train", signalled)
    assert stages.train(config_stages.expand(ladder()), tmp_path) == train_lib.EXIT_RESUME
    assert begun == ["00_4f"]
    assert "stopped by SIGTERM after stage 4f; run the same command again to go on" in capsys.readouterr().out
    last = config_stages.expand(ladder(stages=({"name": "only", "steps": 2},)))
    assert stages.train(last, tmp_path / "other") == 0  # nothing is left to go on with


def test_a_stage_may_be_edited_until_it_has_begun(whole, ladder, monkeypatch):
    first, second, third = ladder()["stages"]
    begun = []
    monkeypatch.setattr(train_lib, "train", lambda run, folder, *_: begun.append((folder.name, run.init.stage)) or 0)
    climb = lambda *steps: stages.train(config_stages.expand(ladder(stages=steps)), whole)
    assert climb(first, second, third, {"name": "more", "steps": 7}) == 0
    assert begun == [("03_more", "02_8f-24")]
    with pytest.raises(ConfigError, match=r"stage '8f-24': .*02_8f-24 holds a run of another config \(steps: 3 -> 9\)"):
        climb(first, second, third | {"steps": 9})
    with pytest.raises(ConfigError, match="holds the stage 02_8f-24, which the config has no more"):
        climb(first, second, third | {"name": "renamed"})


def test_folders_of_another_kind_are_left_alone(whole, ladder, tiny_config):
    with pytest.raises(ConfigError, match=r"holds a ladder \(00_4f\), the config is a single run"):
        stages.train(config_stages.expand(tiny_config()), whole)
    with pytest.raises(ConfigError, match="holds a single run, the config is a ladder"):
        stages.train(config_stages.expand(ladder()), whole / FOLDERS[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.embed_dim": 24}, "stage 'b' has another model than the first"),
        ({"batch_size": 9}, "stage 'b': batch_size = 9 is not divisible by"),
        ({"masks.groups": [{"context": 31, "target": 1}]}, r"stage 'b': masks.groups\[0\]"),
    ],
)
def test_what_a_later_stage_would_stumble_over_is_found_at_once(ladder, tmp_path, change, message):
    config = ladder(stages=({"name": "a", "steps": 1}, {"name": "b", **change}))
    with pytest.raises(ConfigError, match=message):
        stages.train(config_stages.expand(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_climbs_a_ladder(repo, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(stages, "train", lambda runs, workdir, command, since: given.extend([runs, workdir]) or 7)
    file = f"{repo / 'experiments/pretrain/progressive.py'}:runlocal"
    assert cli.main(["train", "--config", file, "--config.data.path=here", "--workdir", str(tmp_path)]) == 7
    runs, workdir = given
    assert [name for name, _ in runs] == ["4f-16", "8f-16", "8f-32"] and workdir == str(tmp_path)
    assert all(run.data.path == "here" for _, run in runs)
