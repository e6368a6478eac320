"""Optional terms in the loss of V-JEPA 2: each adds its coefficient times its mean over mask groups."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import masking
from vjepa_jax import config as config_lib
from vjepa_jax import objectives
from vjepa_jax.ops import regularizers

COEFFICIENTS = {
    "spatial_coherence": 0.5,
    "temporal_smoothness": 0.3,
    "variance": 2.0,
    "covariance": 0.1,
    "sigreg": 0.01,
}


def test_every_term_adds_its_coefficient_times_its_mean_over_groups(tiny_config):
    groups = [{"num_blocks": 2, "spatial_scale": [0.3, 0.3]}, {"kind": "random", "ratio": 0.5}]
    run = config_lib.from_config_dict(tiny_config(masks={"groups": groups}, loss=COEFFICIENTS))
    plain = objectives.create(dataclasses.replace(run, loss=config_lib.LossConfig()))
    objective = objectives.create(run)
    params, aux = jax.jit(objective.init)(jax.random.key(0))
    # Large, so that neighbouring predictions differ: the second differences of almost equal ones are rounding errors.
    params = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(1), x.shape), params)
    plan = masking.make_plan(run)
    rows = [masking.draw_masks(plan, np.random.default_rng(i)) for i in range(3)]
    masks = [{key: np.stack([row[i][key] for row in rows]) for key in rows[0][i]} for i in range(2)]
    video = np.random.default_rng(0).integers(0, 256, (3, 4, 16, 16, 3), np.uint8)
    batch, rng = {"video": video, "masks": masks}, jax.random.key(5)

    loss, metrics = jax.jit(objective.loss)(params, aux, batch, rng, jnp.int32(0))
    base, base_metrics = jax.jit(plain.loss)(params, aux, batch, rng, jnp.int32(0))
    assert not any(f"loss/{name}" in base_metrics for name in COEFFICIENTS)
    outputs = objective.outputs(params, aux, batch).groups
    expected = {name: 0.0 for name in COEFFICIENTS}
    for i, g in enumerate(outputs):
        where = (g.prediction, g.target_ids, run.grid)
        expected["spatial_coherence"] += regularizers.spatial_coherence(*where) / 2
        expected["temporal_smoothness"] += regularizers.temporal_smoothness(*where) / 2
        expected["variance"] += regularizers.variance(g.context) / 2
        expected["covariance"] += regularizers.covariance(g.context) / 2
        expected["sigreg"] += regularizers.sigreg(g.context, jax.random.fold_in(rng, i)) / 2
    for name, value in expected.items():
        assert value > 0, name
        np.testing.assert_allclose(metrics[f"loss/{name}"], value, rtol=1e-5, err_msg=name)
    total = base + sum(COEFFICIENTS[name] * value for name, value in expected.items())
    np.testing.assert_allclose(loss, total, rtol=1e-4)
