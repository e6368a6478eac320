"""`init_from`: training starts from anything that `vjepa_jax.load` takes, or says why not before it writes."""

import jax
import numpy as np
import pytest

from vjepa_jax import starting
from vjepa_jax import train as train_lib
from vjepa_jax.config import from_config_dict
from vjepa_jax.convert import ac, formats, torch_file
from vjepa_jax.convert.official_file import CONFIG_KEY
from vjepa_jax.convert.weights import Weights, unflatten
from vjepa_jax.objectives import create
from vjepa_jax.parallel import partitioning
from vjepa_jax.training.optim import make_optimizer
from vjepa_jax.training.state import abstract_state


def random_weights(run):
    objective, rng = create(run), np.random.default_rng(0)
    shapes = objective.eval_params(*jax.eval_shape(objective.init, jax.random.key(0)))
    return Weights(run, jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes))


def without_config(path):
    """An official file as others write it: nothing in it tells the number of heads."""
    content = torch_file.read(path)
    del content[CONFIG_KEY]
    bare = path.with_name(f"bare_{path.name}")
    torch_file.write(bare, content)
    return bare


@pytest.fixture
def weights(tiny_config):
    return random_weights(from_config_dict(tiny_config()))


@pytest.fixture
def start(tiny_config, tmp_path):
    """Zeros of a state with what a run takes from a path, and the lines that it said."""

    def begin(path):
        run, said = from_config_dict(tiny_config(init_from=str(path))), []
        mesh = partitioning.make_mesh(run.mesh)
        abstract = abstract_state(create(run), make_optimizer(run))
        shardings = partitioning.state_shardings(abstract, mesh)
        zeros = jax.tree.map(lambda a, s: jax.device_put(np.zeros(a.shape, a.dtype), s), abstract, shardings)
        starting.check_source(run, tmp_path / "run", abstract)
        state = starting.begin(run, tmp_path / "run", zeros, mesh, said.append)
        assert jax.tree.map(lambda x: x.sharding, state) == shardings
        return jax.device_get(state), said

    return begin


@pytest.mark.parametrize("kind", ["ours", "hf", "official", "bare official"])
def test_every_kind_of_weights_is_a_start(weights, start, tmp_path, kind):
    path = tmp_path / "a.pt"
    formats.write(path, weights, kind.removeprefix("bare "))
    state, said = start(without_config(path) if kind == "bare official" else path)
    for encoder in (state["params"]["encoder"], state["aux"]["target"]):
        jax.tree.map(np.testing.assert_array_equal, encoder, weights.params["encoder"])
    jax.tree.map(np.testing.assert_array_equal, state["params"]["predictor"], weights.params["predictor"])
    assert said == [] and not any(leaf.any() for leaf in jax.tree.leaves((state["opt"], state["step"])))


@pytest.mark.parametrize("kind", ["no predictor", "V-JEPA 2-AC"])
def test_without_a_predictor_the_fresh_one_is_kept_and_said(weights, start, tmp_path, kind):
    params = {"encoder": weights.params["encoder"]}
    if kind == "V-JEPA 2-AC":
        shapes = ac.tree_shapes({}, weights.run.model)
        params["ac_predictor"] = unflatten({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    formats.write(tmp_path / "ours", Weights(weights.run, params), "ours")
    state, said = start(tmp_path / "ours")
    assert said == [f"{tmp_path / 'ours'} has no predictor of masked tokens: this run's starts fresh"]
    jax.tree.map(np.testing.assert_array_equal, state["aux"]["target"], params["encoder"])
    assert not any(leaf.any() for leaf in jax.tree.leaves(state["params"]["predictor"]))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("ours", {"model": {"embed_dim": 24}}, "another model: the encoder's embed_dim is 16 there and 24 in the con"),
        ("ours", {"model": {"num_heads": 1}}, "another model: the encoder's num_heads is 2 there and 1 in the config"),
        ("ours", {"model": {"patch_size": 2}}, "another model: model.patch_size is 4 there and 2 in the config: use"),
        ("ours", {"model": {"position": "sincos"}}, "model.position is rope_tiled there and sincos in the config"),
        ("ours", {"model": {"levels": (0, 1)}}, r"model.levels is \[\] there and \[0, 1\] in the config"),
        ("ours", {"model": {"registers": 2}}, "model.registers is 0 there and 2 in the config"),
        (
            "ours",
            {"model": {"predictor": {"embed_dim": 16, "depth": 1, "num_heads": 2, "predict_context": True}}},
            r"the shape of predictor.out_context.bias is absent there and \(16,\) in the config",
        ),
        (
            "ours",
            {"model": {"predictor": {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_mask_tokens": 3}}},
            "model.predictor.num_mask_tokens is 2 there and 3 in the config",
        ),
        (
            "bare",
            {"model": {"embed_dim": 24}},
            "an encoder of width 16, 2 blocks .* another than the config's of width",
        ),
        ("hf", {"init": {"weights": "all"}}, "needs a run, .* has no online encoder: set --config.init.weights=target"),
        ("official", {"init": {"weights": "all"}}, "needs a run, .* has no online encoder"),
        ("missing", {}, "missing is not a run folder"),
    ],
)
def test_what_is_no_start_is_one_line_and_leaves_nothing(weights, tiny_config, tmp_path, kind, changes, message):
    path = tmp_path / kind
    if kind != "missing":
        formats.write(path, weights, "official" if kind == "bare" else kind)
    path = without_config(path) if kind == "bare" else path
    run = from_config_dict(tiny_config(init_from=str(path), **changes))
    with pytest.raises(ValueError, match=message) as caught:
        train_lib.train(run, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_sizes_with_a_name_are_told_apart_by_it(tiny_config, tmp_path):
    named = {"embed_dim": None, "depth": None, "num_heads": None}
    weights = random_weights(from_config_dict(tiny_config(model=named)))
    formats.write(tmp_path / "ours", weights, "ours")
    run = from_config_dict(tiny_config(init_from=str(tmp_path / "ours"), model=named | {"variant": "vit_tiny"}))
    with pytest.raises(ValueError, match=r"model\.variant is vit_micro there and vit_tiny in the config"):
        train_lib.train(run, tmp_path / "run")
