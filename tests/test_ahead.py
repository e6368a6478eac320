"""The training step compiled for devices that are not here. What needs libtpu is skipped where it is not installed."""

import dataclasses
import importlib.util
import json
import math
import pathlib
import types

import jax
import numpy as np
import pytest

from data_pipelines import pipeline
from vjepa_jax import ahead, cli, config_file, dryrun
from vjepa_jax.config import from_config_dict
from vjepa_jax.models.variants import encoder_size, predictor_size
from vjepa_jax.parallel import partitioning
from vjepa_jax.parallel.chips import GIB
from vjepa_jax.parallel.compile import Topology
from vjepa_jax.prepare import jit_step, prepare
from vjepa_jax.training.step import MODEL_KEYS

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install 'vjepa_jax[tpu]'"
)
IMAGES = {
    "batch_size": 8,
    "data": {"path": "v", "num_frames": 1, "resolution": 16},
    "masks": {"groups": [{"kind": "random", "ratio": 0.5, "context": 8, "target": 8}]},
}


@pytest.mark.parametrize("policy", ["uniform", "first_k"])
def test_it_lowers_the_program_that_training_runs(tiny_config, policy):
    run = from_config_dict(tiny_config(masks={"policy": policy, "truncation_group": 2}))
    setup, mesh = prepare(run), partitioning.make_mesh(run.mesh)
    batches = pipeline.train_batches(run)
    batch = next(batches)
    batches.close()
    batch = partitioning.put_batch({key: batch[key] for key in MODEL_KEYS if key in batch}, mesh)
    kind = lambda x: (x.shape, x.dtype, x.sharding)
    assert jax.tree.map(kind, ahead.abstract_batch(run, setup, mesh)) == jax.tree.map(kind, batch)
    shardings = partitioning.state_shardings(setup.abstract, mesh)
    state = jax.tree.map(lambda a, s: jax.device_put(np.zeros(a.shape, a.dtype), s), setup.abstract, shardings)
    with partitioning.on_mesh(mesh):
        real = jit_step(run, setup, mesh).lower(state, batch)
    assert ahead.lower(run, setup, mesh).as_text() == real.as_text()


def test_further_streams_are_in_the_batch(tiny_config):
    run = from_config_dict(tiny_config(images=IMAGES, model={"image_tokenizer": True}))
    batch = ahead.abstract_batch(run, prepare(run), partitioning.make_mesh(run.mesh))
    assert batch["streams"]["images"]["video"].shape == (8, 1, 16, 16, 3)
    assert batch["streams"]["images"]["masks"][0]["target"].shape == (8, 8)


@pytest.mark.parametrize(("remat", "factor"), [("none", 3), ("dots", 3), ("full", 4)])
def test_executed_flops_count_what_is_recomputed(tiny_config, remat, factor):
    run = from_config_dict(tiny_config(model={"remat": remat}))
    setup = prepare(run)
    parts = setup.objective.flops(setup.plan.budgets)
    expected = parts["target"] + factor / 3 * (parts["context"] + parts["predictor"])
    assert ahead.executed_flops(run, setup) == pytest.approx(run.batch_size * expected)
    assert (ahead.executed_flops(run, setup) == pytest.approx(setup.step_flops)) == (factor == 3)


def test_the_share_of_padding_by_hand(repo):
    """ViT-L: 528 + 1056 and 128 + 1440 tokens of 2,048. Splash takes 640 for 528 and 1,920 for the predictor's."""
    run = config_file.load(f"{repo}/experiments/pretrain/vjepa2.py:vitl", ["--config.data.path=v"])
    setup = prepare(run)
    assert setup.plan.budgets == [(528, 1056), (128, 1440)]
    attention = lambda n, width, depth: 4.0 * n * n * width * depth
    extra = 3 * (attention(640, 1024, 24) - attention(528, 1024, 24))
    extra += 3 * (2 * attention(1920, 384, 12) - attention(1584, 384, 12) - attention(1568, 384, 12))
    assert ahead.padding_share(run, setup) == pytest.approx(extra / setup.clip_flops)
    assert ahead.padding_share(run, setup) < 0.05


@pytest.mark.parametrize(("objective", "reads"), [("vjepa2", 1), ("separate", 2)])
def test_weights_are_read_once_for_both_mask_groups(tiny_config, monkeypatch, objective, reads):
    """Of a model whose activations are nothing, what moves is the state and the weights of each pass."""
    monkeypatch.setattr(dryrun, "block_residuals", lambda *_, **__: 0.0)
    monkeypatch.setattr(ahead, "cuts_sequences", lambda: objective == "separate")
    group = {"kind": "random", "ratio": 0.5, "context": 8, "target": 8}
    run = from_config_dict(tiny_config(masks={"groups": [group, group]}))
    setup, mesh = prepare(run), partitioning.make_mesh(run.mesh)
    outcome = types.SimpleNamespace(memory={"arguments": 100.0})
    encoder, predictor = encoder_size(run.model).num_parameters(), predictor_size(run.model).num_parameters()
    assert run.model.remat == "none" and run.model.dtype == "float32"
    weights = 4.0 * (encoder + 2 * reads * (encoder + predictor))  # target; forward and backward of the others
    assert ahead.memory_traffic(run, setup, mesh, outcome) == pytest.approx(200.0 + 2.0 * weights)


def fake_describe(limit: dict[str, int]):
    """`describe` of a chip that holds so many clips, for each remat; recomputation is slower."""

    def describe(name, run, topology):
        clips = run.batch_size // topology.num_devices
        seconds = clips * (1.5 if run.model.remat == "full" else 1.0) + 1.0
        fits = clips <= limit[run.model.remat]
        row = {"stage": name, "remat": run.model.remat, "batch_size": run.batch_size, "fits": fits}
        return row | {"roofline": {"step": seconds}} if fits else row

    return describe


@pytest.mark.parametrize("limit", [{"none": 2, "dots": 3, "full": 64}, {"none": 0, "dots": 1, "full": 5}])
@pytest.mark.parametrize("guess", [1, 4, 128])
def test_search_finds_the_largest_batch(tiny_config, monkeypatch, limit, guess):
    monkeypatch.setattr(ahead, "describe", fake_describe(limit))
    monkeypatch.setattr(ahead, "_first_guess", lambda run, topology: guess)
    rows = list(ahead.search("", from_config_dict(tiny_config()), Topology("v5e:4x4")))
    for remat, most in limit.items():
        fitting = [row["batch_size"] // 16 for row in rows if row["remat"] == remat and row["fits"]]
        assert max(fitting, default=0) == (2 ** int(math.log2(most)) if most else 0)
    by_speed = lambda remat: 2 ** int(math.log2(limit[remat])) if limit[remat] else 0
    speeds = {r: by_speed(r) / (by_speed(r) * (1.5 if r == "full" else 1.0) + 1.0) for r in limit}
    assert ahead.best(rows)["remat"] == max(speeds, key=speeds.get)
    assert ahead.best([row for row in rows if not row["fits"]]) is None


def test_a_search_says_which_attempt_is_the_fastest():
    with (pathlib.Path(__file__).parent.parent / "experiments/benchmarks/aot_tpu_202611.jsonl").open() as file:
        found = [row for row in map(json.loads, file) if row.get("what") == "search"]
    *_, last = ahead.format_rows(found).splitlines()
    assert last == "most clips a second: batch 256, remat dots (838 at best)"
    refused = [row for row in found if not row["fits"]]
    assert "most clips" not in ahead.format_rows(refused) and "most clips" not in ahead.format_rows(found[:1])


def test_the_first_guess_is_the_estimate_of_the_dry_run(tiny_config):
    run, topology = from_config_dict(tiny_config()), Topology("v5e:4x4")
    attempt = lambda clips: dataclasses.replace(run, batch_size=16 * clips)
    clips = ahead._first_guess(attempt(1), topology)
    total = lambda n: dryrun.describe("", attempt(n), dryrun.Machine(16, "v5e"))["gib_per_device"]["total"]
    assert total(clips) < 16 <= total(2 * clips)


def test_bad_input_is_one_line(repo, capsys):
    config = f"{repo}/experiments/demo.py"
    assert cli.main(["compile", "--config", config, "--topology", "tpu4"]) == 2
    assert "vjepa compile: --topology tpu4 must be CHIP:SHAPE such as v5e:4x4" in capsys.readouterr().err


# --------------------------------------------------------------------------------------- with libtpu, a minute each


def small(**changes):
    """A step with every part whose tokens and widths are large enough for the TPU's kernels and blocks."""
    return {
        "steps": 10,
        "batch_size": 16,
        "data": {"path": "v", "num_frames": 16, "resolution": 64},
        "model": {
            "variant": "vit_micro", "patch_size": 8, "embed_dim": 128, "num_heads": 2, "depth": 3, "remat": "full",
            "predictor": {"embed_dim": 64, "depth": 1, "num_heads": 2},
        },
        "masks": {"groups": [{"kind": "random", "ratio": 0.5, "context": 256, "target": 256}]},
    } | changes  # fmt: skip


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "mesh"), [("v5e:4x4", {"replica": 4}), ("v6e:2x4", {"fsdp": 2, "context": 2, "tensor": 2})]
)
def test_a_step_on_a_small_topology(topology, mesh):
    run = from_config_dict(small(mesh=mesh))
    row = ahead.describe("", run, Topology(topology))
    assert row["fits"] and row["gib_per_device"]["total"] < row["hbm_gib"] and "MFU at best" in ahead.format_rows([row])
    json.dumps(row, allow_nan=False)
    # target 1 kernel, context and predictor 4 each: forward, recomputed, and two for the gradients
    assert row["kernels"] == 9
    split = {axis for key in row["network"] for axis in key.split()[0].split("+")}
    assert split >= {axis for axis, size in row["mesh"].items() if size > 1}
    # weights in bf16: gathered in 4 passes (target, forward, recomputed, backward), reduced in one
    sizes = ((encoder_size(run.model), 4), (predictor_size(run.model), 3))
    whole = sum(count * 2.0 * size.num_parameters() for size, count in sizes) / row["mesh"]["tensor"]
    share = 1 - 1 / row["mesh"]["fsdp"]
    sent = GIB * sum(row["collectives"].get(kind, {"gib": 0})["gib"] for kind in ("all-gather", "collective-permute"))
    assert 0.5 * share * whole < sent < 2.5 * share * whole if "context" not in mesh else sent > share * whole


@needs_libtpu
@pytest.mark.parametrize("replica", [2, 4])
def test_a_step_on_two_slices(replica):
    """Gradients in bf16 are added up within a slice first; each chip exchanges its share with one of the other."""
    run = from_config_dict(small(mesh={"replica": replica}))
    row = ahead.describe("", run, Topology("v5e:2x2", slices=2))
    assert row["fits"] and "over replica dcn" in ahead.format_rows([row])
    exchanged = row["collectives"]["all-reduce dcn"]
    assert exchanged["in_step"] > exchanged["in_program"]  # layers are scanned
    assert exchanged["gib"] == row["network"]["replica dcn"]["gib"]
    parameters = encoder_size(run.model).num_parameters() + predictor_size(run.model).num_parameters()
    least = 2.0 * parameters / 4  # of 4 chips of a slice, to 1 other slice: 2 (1 - 1/2) times its share
    assert least < GIB * exchanged["gib"] < 1.7 * least  # shards of these small widths are padded to tiles
    assert row["roofline"]["dcn"] == pytest.approx(GIB * exchanged["gib"] / Topology("v5e:2x2").chip.dcn)


@needs_libtpu
def test_a_step_that_does_not_fit_says_so(repo, capsys):
    run = from_config_dict(small(batch_size=65536, model=small()["model"] | {"remat": "none", "attention": "xla"}))
    row = ahead.describe("", run, Topology("v5e:2x2"))
    assert not row["fits"] and "RESOURCE_EXHAUSTED" in row["error"]
    assert row["gib_per_device"]["total"] > row["hbm_gib"]
    assert "does not fit: RESOURCE_EXHAUSTED" in ahead.format_rows([row])
