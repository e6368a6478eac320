"""What `vjepa train --dry-run` promises, against real arrays, what autodiff keeps, and published costs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vjepa_jax import cli, config_file, dryrun
from vjepa_jax.config import ConfigError, MeshConfig, ModelConfig, from_config_dict
from vjepa_jax.dryrun import GIB, Machine
from vjepa_jax.models.variants import encoder_size
from vjepa_jax.models.vit import Encoder
from vjepa_jax.objectives import create
from vjepa_jax.parallel import chips, partitioning
from vjepa_jax.training.optim import make_optimizer
from vjepa_jax.training.state import abstract_state


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"replica": 2, "fsdp": 4}, {"fsdp": 4, "tensor": 2}])
def test_memory_is_what_the_state_takes_on_a_device(tiny_config, mesh):
    run = from_config_dict(tiny_config(mesh=mesh))
    told = dryrun.describe("", run, Machine(8))["gib_per_device"]
    real, abstract = partitioning.make_mesh(run.mesh), abstract_state(create(run), make_optimizer(run))
    assert dict(real.shape) == dict(partitioning.abstract_mesh(run.mesh, 8).shape)
    shardings = partitioning.state_shardings(abstract, real)
    state = jax.tree.map(lambda a, s: jax.device_put(np.zeros(a.shape, a.dtype), s), abstract, shardings)
    here = lambda tree: sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
    for part, tree in (("parameters", state["params"]), ("target", state["aux"]), ("moments", state["opt"])):
        assert told[part] * GIB == pytest.approx(here(tree), rel=1e-12)
    assert told["gradients"] == told["parameters"]
    assert told["total"] == pytest.approx(sum(size for part, size in told.items() if part != "total"))
    twice = from_config_dict(tiny_config(mesh=mesh, batch_size=16, optim={"accumulate": 2}))
    assert dryrun.describe("", twice, Machine(8))["gib_per_device"]["gradients"] == 2 * told["gradients"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_activations_are_what_autodiff_keeps(remat, dtype):
    """Of the residuals of jax.vjp those stacked over the blocks, with attention in XLA."""
    model, tokens = ModelConfig(variant="vit_tiny", depth=3, remat=remat, dtype=dtype, attention="xla"), 40

    def residuals():
        encoder, grid, ids = Encoder(model), (4, 4, 4), jnp.zeros((1, tokens), jnp.int32)
        patches = jnp.zeros((1, tokens, 2 * 16 * 16 * 3), dtype)
        params = encoder.init(jax.random.key(0), patches, grid, ids)
        return jax.vjp(lambda params: encoder.apply(params, patches, grid, ids).mean(), params)[1]

    leaves = [
        leaf for leaf in jax.tree.leaves(jax.eval_shape(residuals)) if leaf.shape[0] == 3 and tokens in leaf.shape
    ]
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    block = dryrun.block_residuals(encoder_size(model), tokens, model, remat, fused=False)
    assert kept / 3 == pytest.approx(block, rel=0.02)  # the rest are means and variances of LayerNorm
    fused = dryrun.block_residuals(encoder_size(model), tokens, model, remat, fused=True)
    kept_output = {"dots": tokens * 192 * jnp.dtype(dtype).itemsize, "full": 0}  # of the attention kernel
    assert fused < block if remat == "none" else fused - block == kept_output[remat]


@pytest.mark.parametrize(("variant", "teraflops"), [("vitl", 3.5), ("vith", 6.4), ("vitg", 9.7)])
def test_flops_of_the_published_first_stage(repo, variant, teraflops):
    """Forward and backward of a clip at the mean token counts of the released truncation; 3072 clips a step."""
    groups = '({"context":492,"target":978},{"num_blocks":2,"spatial_scale":(0.7,0.7),"context":132,"target":1438})'
    run = config_file.load(f"{repo}/experiments/pretrain/vjepa2.py:{variant}", [f"--config.masks.groups={groups}"])
    row = dryrun.describe("", run, Machine(128))
    assert row["flops_per_clip"] / 1e12 == pytest.approx(teraflops, rel=0.02)
    assert row["flops_per_step"] == 3072 * row["flops_per_clip"] and row["clips"] == 3072 * 240_000
    assert row["device_hours"] == pytest.approx(240_000 * row["flops_per_step"] / (0.35 * 989e12) / 3600)
    assert row["hours"] * 128 == pytest.approx(row["device_hours"])


def test_the_command_needs_no_data_and_builds_nothing(repo, capsys):
    before = len(jax.live_arrays())
    options = ["--dry-run", "--devices", "128", "--chip", "v5e", "--mfu", "0.4"]
    ladder = f"{repo}/experiments/pretrain/progressive.py:vitl"
    assert cli.main(["train", "--config", ladder, *options, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["stage"] for row in rows] == ["8f-128", "16f-224", "16f-256", "32f-256", "64f-384", "128f-384"]
    assert rows[0]["parameters"]["encoder"] == 303_885_312 and rows[-1]["tokens"] == 36_864
    text = dryrun.format_plan(rows)
    assert text.startswith("128 x v5e at 40% MFU; mesh: fsdp 128;")
    for word in ("8f-128", "128f-384", "303.9 M", "64x24x24 = 36,864", "activations, estimate", "in all "):
        assert word in text
    assert cli.main(["train", "--config", f"{repo}/experiments/demo.py", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("8 x h100 at 35% MFU; mesh: fsdp 8;")  # the devices here
    assert len(jax.live_arrays()) == before


def test_attention_in_xla_costs_memory_that_a_fused_kernel_does_not(tiny_config):
    def activations(attention: str) -> float:
        run = from_config_dict(tiny_config(model={"dtype": "bfloat16", "attention": attention}))
        return dryrun.describe("", run, Machine(8))["gib_per_device"]["activations_estimate"]

    assert activations("xla") > activations("auto") == activations("splash") > 0


def test_a_mesh_that_cuts_nothing_is_told(tiny_config):
    told = lambda devices: dryrun.describe("", from_config_dict(tiny_config(batch_size=48)), Machine(devices))["note"]
    assert told(8) == told(1) == "" and "mesh.fsdp=3 does not divide the model's width" in told(3)
    assert "note: mesh.fsdp=3" in dryrun.format_plan(
        [dryrun.describe("", from_config_dict(tiny_config(batch_size=48)), Machine(3))]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chip", "v7"], "--chip v7 is not one of h100, h200, a100, v4, v5e, v5p, v6e"),
        (["--devices", "0"], "--devices 0 must be at least 1"),
        (["--mfu", "35"], "--mfu 35.0 must lie in (0, 1]"),
        (["--devices", "7"], "batch_size = 64 is not divisible by mesh.replica * mesh.fsdp = 7"),
        (["--devices", "6", "--config.mesh.tensor=4"], "do not multiply to 6 devices"),
    ],
)
def test_a_wrong_option_is_one_line(repo, capsys, options, message):
    assert cli.main(["train", "--config", f"{repo}/experiments/pretrain/folder.py", "--dry-run", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("mesh", [{"fsdp": -1, "replica": -1}, {"fsdp": 0}, {"fsdp": 3}])
def test_an_abstract_mesh_refuses_what_a_real_one_refuses(mesh):
    for make in (lambda m: partitioning.abstract_mesh(m, 8), partitioning.make_mesh):
        with pytest.raises(ConfigError):
            make(MeshConfig(**mesh))


def test_training_needs_a_workdir_and_a_dry_run_does_not(repo, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--config", f"{repo}/experiments/pretrain/folder.py"])
    assert "required: --workdir" in capsys.readouterr().err


def test_peaks_are_known_for_every_chip():
    assert np.isfinite([Machine(1, chip).flops for chip in chips.CHIPS]).all()
    assert Machine(1, "v4", 1.0).flops == 275e12 and Machine(1, "h200", 0.5).flops == 989e12 / 2
