"""Benchmarks print what they should; what they measure is not tested."""

import json

import pytest

from vjepa_jax import bench, cli


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
