"""Benchmarks print what they should; what they measure is not tested."""

import json

import jax
import pytest

from vjepa_jax import ahead, bench, bench_step, cli
from vjepa_jax.config import from_config_dict
from vjepa_jax.parallel import partitioning
from vjepa_jax.prepare import prepare


def test_predictors_side_by_side(capsys):
    options = ["--variant", "vit_micro", "--frames", "4", "--resolution", "64", "--dtype", "float32"]
    assert cli.main(["bench", "predictor", *options]) == 0
    joint, cross = map(json.loads, capsys.readouterr().out.splitlines())
    assert joint["what"] == "predictor joint, vit_micro" and cross["what"] == "predictor cross, vit_micro"
    assert joint["shape"] == cross["shape"] and len(joint["shape"]) == 3
    assert cross["flops_per_clip"] < joint["flops_per_clip"]
    assert all(r["ms"] > 0 and r["clips_per_s"] > 0 and r["versions"]["jax"] for r in (joint, cross))


def test_an_unknown_variant_is_one_line(capsys):
    assert cli.main(["bench", "predictor", "--variant", "vit_smal"]) == 2
    assert "did you mean 'vit_small'" in capsys.readouterr().err


def test_masks_take_no_options(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "masks", "--clips", "3"])
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_batch_goes_to_the_device():
    (record,) = bench.transfer(batch=2, num_frames=4, resolution=32)
    assert record["what"] == "transfer" and record["shape"] == [2, 4, 32, 32, 3]
    assert record["mb"] == 0.0 and record["ms"] > 0 and record["clips_per_s"] > 0


def test_data_wants_videos(tmp_path, capsys):
    assert cli.main(["bench", "data", "--quick", "--source", str(tmp_path)]) == 2
    assert "no videos in" in capsys.readouterr().err


STEP = ["bench", "step", "--config", "experiments/demo.py", "--config.batch_size=8"]


def test_a_step_is_timed_and_never_compiles_again(capsys, monkeypatch, repo):
    monkeypatch.chdir(repo)
    before = jax.config.jax_compilation_cache_dir
    assert cli.main([*STEP, "--repeats", "2"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["what"] == "step vjepa2 vit_micro" and record["shape"][0] == 8 and record["clip"] == [8, 32, 32]
    assert record["ms_min"] <= record["ms"] <= record["ms_max"] and record["clips_per_s"] > 0
    assert 0 < record["cached_compile_s"] and record["compile_s"] > 0 and "mfu" not in record
    assert record["losses"][0] != record["losses"][1] and all(0 < loss < 2 for loss in record["losses"])
    assert {"arguments", "temporary", "program"} <= record["gib_per_device"].keys()
    assert jax.config.jax_compilation_cache_dir == before


def test_made_up_batches_are_those_of_training(tiny_config):
    stream = {"data": {"path": "p", "num_frames": 4, "resolution": 16}, "batch_size": 8, "weight": 0.3}
    for options in ({}, {"masks": {"policy": "first_k"}}, {"streams": {"pictures": stream}}):
        run = from_config_dict(tiny_config(**options))
        setup = prepare(run)
        mesh = partitioning.make_mesh(run.mesh, jax.devices()[:1])
        batch = bench_step.made_up_batch(run, setup, seed=0)
        wanted = ahead.abstract_batch(run, setup, mesh)
        shapes = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)
        assert shapes(batch) == shapes(wanted)


def test_bench_step_refuses_what_it_cannot_do(capsys, monkeypatch, repo):
    monkeypatch.chdir(repo)
    with pytest.raises(SystemExit):
        cli.main([*STEP, "--repeats", "0"])
    assert "--repeats 0 must be at least 1" in capsys.readouterr().err


def test_a_peer_that_is_not_there_or_fails_is_one_line(capsys, monkeypatch, repo, tmp_path):
    monkeypatch.chdir(repo)
    script = tmp_path / "peer.py"
    config = ["bench", "step", "--config", "experiments/pretrain/vjepa2.py:vitl", "--config.data.path=v"]
    config += ["--config.batch_size=1", "--config.data.resolution=32", "--config.data.num_frames=2"]
    assert cli.main([*config, "--peer", str(script)]) == 2
    assert f"--peer {script}: there is no such file" in capsys.readouterr().err
    script.write_text("raise SystemExit('out of memory')")
    assert cli.main([*config, "--peer", str(script)]) == 2
    assert f"--peer {script} failed with exit code 1: out of memory" in capsys.readouterr().err
    for other in ("model.gelu=tanh", "model.registers=2", "model.predictor.kind=cross", "masks.policy=first_k"):
        assert cli.main([*config, f"--config.{other}", "--peer", str(script)]) == 2
        assert "--peer computes V-JEPA 2 as published" in capsys.readouterr().err
