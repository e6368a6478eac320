"""Checkpoints: retention, fallback to the last good one, clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from vjepa_jax.config import CheckpointConfig
from vjepa_jax.training.checkpoint import CheckpointError, Checkpoints, load_parts


def state_at(step):
    return {"step": jnp.int32(step), "params": {"a": jnp.full((4, 3), float(step))}, "aux": {"b": jnp.ones(2)}}


def abstract_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def save_all(folder, steps, config=None):
    checkpoints = Checkpoints(folder, config)
    for step in steps:
        assert checkpoints.save(step, state_at(step)) is None
    assert checkpoints.wait() is None
    checkpoints.close()


def test_keeps_the_last_and_the_marked(tmp_path):
    save_all(tmp_path, range(1, 8), CheckpointConfig(keep_last=2, keep_every_steps=3))
    assert Checkpoints(tmp_path).steps == [3, 6, 7]
    restored = Checkpoints(tmp_path).restore(abstract_of(state_at(0)))
    jax.tree.map(np.testing.assert_array_equal, restored, state_at(7))


def test_nothing_saved_gives_none(tmp_path):
    assert Checkpoints(tmp_path).restore(abstract_of(state_at(0))) is None


def damage(folder, what):
    """Truncate the files of an index ("manifest") or of array contents ("data")."""
    files = [f for f in folder.rglob("*") if f.is_file() and f.stat().st_size > 20 and "METADATA" not in f.name]
    files = [f for f in files if ("manifest" in f.name) == (what == "manifest")]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:10])


@pytest.mark.parametrize("what", ["manifest", "data"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, what):
    save_all(tmp_path, [1, 2])
    damage(tmp_path / "checkpoints" / "2", what)
    with pytest.raises(CheckpointError, match=r"checkpoints/2 is damaged \(.*\): give the --step of another one"):
        load_parts(tmp_path, abstract_of(state_at(0)))
    said = []
    restored = Checkpoints(tmp_path).restore(abstract_of(state_at(0)), warn=said.append)
    assert int(restored["step"]) == 1
    assert len(said) == 1 and "2 does not load" in said[0] and "trying the one before it" in said[0]
    damage(tmp_path / "checkpoints" / "1", what)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* loads \(.*\): start again in another --workdir"):
        Checkpoints(tmp_path).restore(abstract_of(state_at(0)), warn=said.append)


def test_two_failures_in_a_row_are_both_told(tmp_path, monkeypatch):
    """The first is known when the second save begins, which fails as well, at once."""
    save_all(tmp_path, [1])
    checkpoints = Checkpoints(tmp_path)
    save = ocp.training.Checkpointer.save_checkpointables_async

    class Late:
        def result(self):
            raise OSError("disk full")

    def refused(self, step, state):
        if step == 2:
            return Late()
        if step == 3:
            raise OSError("no folder")
        return save(self, step, state)

    monkeypatch.setattr(ocp.training.Checkpointer, "save_checkpointables_async", refused)
    assert checkpoints.save(2, state_at(2)) is None
    assert checkpoints.save(3, state_at(3)) == (
        "checkpoint of step 2 could not be saved (OSError: disk full) and "
        "checkpoint of step 3 could not be saved (OSError: no folder); "
        f"the checkpoint of step 1 is whole. Free space in {tmp_path / 'checkpoints'}"
    )
    assert checkpoints.wait() is None and checkpoints.save(4, state_at(4)) is None and checkpoints.wait() is None
    assert checkpoints.steps == [1, 4]
    checkpoints.close()


@pytest.mark.parametrize("step", [3, 4, 8])
def test_what_did_not_load_gives_way_to_the_next_save(tmp_path, step):
    """Below the damaged ones, as after a signal, or in the place of one."""
    save_all(tmp_path, [2, 4, 8], CheckpointConfig(keep_last=3))
    for damaged in ("4", "8"):
        damage(tmp_path / "checkpoints" / damaged, "data")
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=2))
    assert int(checkpoints.restore(abstract_of(state_at(0)), warn=str)["step"]) == 2
    assert checkpoints.steps == [2, 4, 8]  # nothing is removed before there is something to save
    assert checkpoints.save(step, state_at(step)) is None and checkpoints.wait() is None
    assert checkpoints.steps == [2, step]
    checkpoints.close()
    assert int(Checkpoints(tmp_path).restore(abstract_of(state_at(0)), warn=str)["step"]) == step


def test_a_save_that_orbax_declines_is_told(tmp_path):
    save_all(tmp_path, [4])
    checkpoints = Checkpoints(tmp_path)
    assert "step 3 could not be saved (orbax did not write it); the" in checkpoints.save(3, state_at(3))
    checkpoints.close()


@pytest.mark.parametrize(
    "other, what",
    [
        ({"params": {"a": jnp.zeros((5, 3))}}, r"params/a is float32 \(4, 3\) there and float32 \(5, 3\) here"),
        ({"params": {"a": jnp.zeros((4, 3), jnp.bfloat16)}}, r"params/a is float32 .* and bfloat16 .* here"),
        ({"params": {"a": jnp.zeros((4, 3)), "c": jnp.zeros(1)}}, r"params/c is absent there and float32 \(1,\) here"),
        ({"aux": {}}, r"aux/b is float32 \(2,\) there and absent here"),
    ],
)
def test_another_model_is_one_clear_line(tmp_path, other, what):
    save_all(tmp_path, [1])
    with pytest.raises(CheckpointError, match=rf"is of another model \({what}\): use another --workdir") as caught:
        Checkpoints(tmp_path).restore(abstract_of(state_at(0) | other))
    assert "\n" not in str(caught.value)


def test_parts_are_loaded_without_the_rest(tmp_path):
    save_all(tmp_path, [1, 2])
    wanted = {"params": abstract_of(state_at(0))["params"]}
    np.testing.assert_array_equal(load_parts(tmp_path, wanted)["params"]["a"], np.full((4, 3), 2.0))
    np.testing.assert_array_equal(load_parts(tmp_path, wanted, step=1)["params"]["a"], np.full((4, 3), 1.0))
    with pytest.raises(CheckpointError, match=r"another model than its config \(params/c is absent there"):
        load_parts(tmp_path, {"params": {"c": wanted["params"]["a"]}})
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_parts(tmp_path / "nowhere", wanted)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3 in .*: it has 1, 2"):
        load_parts(tmp_path, wanted, step=3)
