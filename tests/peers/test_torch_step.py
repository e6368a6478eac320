"""The peer of `vjepa bench step` computes what ours does: same weights and batches, same losses over several steps."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest
from transformers import VJEPA2Config, VJEPA2Model

import vjepa_jax
from vjepa_jax import bench_peer, cli, config_file
from vjepa_jax.bench_step import made_up_stream
from vjepa_jax.convert import hf
from vjepa_jax.convert.weights import Weights
from vjepa_jax.prepare import prepare
from vjepa_jax.training.state import init_state
from vjepa_jax.training.step import make_train_step

REPO = pathlib.Path(vjepa_jax.__file__).resolve().parent.parent
SCRIPT = REPO / "experiments/benchmarks/torch_step.py"
CONFIG = [
    f"{REPO}/experiments/pretrain/vjepa2.py:vitl",
    [
        f"--config.{key}={value}"
        for key, value in {
            **{"data.path": "v", "data.resolution": 64, "data.num_frames": 4, "batch_size": 2},
            **{"model.variant": "vit_micro", "model.depth": 2, "model.dtype": "float32", "model.remat": "none"},
            **{"model.predictor.embed_dim": 48, "model.predictor.depth": 2, "model.predictor.num_heads": 2},
            **{"optim.start_lr": 1e-3, "optim.lr": 1e-3, "optim.warmup_steps": 0, "ema.start": 0.9, "ema.end": 0.9},
        }.items()
    ],
]


@pytest.fixture(scope="module")
def torch_step():
    spec = importlib.util.spec_from_file_location("torch_step", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_losses_are_ours(torch_step, tmp_path):
    run = config_file.load(*CONFIG)
    setup = prepare(run)
    state = jax.jit(lambda: init_state(setup.objective, setup.optimizer, 0))()
    hf.write(tmp_path, Weights(run, state["params"]))
    spec = bench_peer.spec(run)
    model = VJEPA2Model.from_pretrained(tmp_path)
    assert VJEPA2Config(**spec["model"]).hidden_size == model.config.hidden_size
    theirs = torch_step.TorchStep(spec, "cpu", model)
    ours = jax.jit(make_train_step(setup.objective, setup.optimizer, run))
    losses = []
    for seed in range(6):
        batch = made_up_stream(run, setup.plan, seed)
        bench_peer.write_batch(tmp_path / "batch.npz", batch)
        state, metrics = ours(state, batch)
        losses.append((float(metrics["loss"]), theirs(*torch_step.read_batch(tmp_path / "batch.npz", "cpu")).item()))
    found, wanted = np.array(losses).T
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert abs(found[0] - found[-1]) > 0.01  # it learns, so that optimiser and target count


def test_the_command_prints_both(capsys, monkeypatch):
    monkeypatch.chdir(REPO)
    options = [*CONFIG[1], "--config.batch_size=8", "--repeats", "2", "--peer", str(SCRIPT)]  # 8 simulated devices
    code = cli.main(["bench", "step", "--config", CONFIG[0], *options])
    peer, ours = map(json.loads, capsys.readouterr().out.splitlines())
    assert code == 0 and peer["what"].endswith("peer torch_step") and ours["what"] == "step vjepa2 vit_micro"
    assert peer["shape"] == ours["shape"] and peer["flops_per_clip"] == ours["flops_per_clip"]
    assert peer["clips_per_s"] > 0 and {"torch", "transformers"} <= peer["versions"].keys()
