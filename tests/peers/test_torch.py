"""PyTorch files against torch itself: each reads what the other wrote."""

import ml_dtypes
import numpy as np
import pytest
import torch

from vjepa_jax.convert import ConvertError, torch_file

from .make_torch_file import contents


def assert_same(ours, theirs):
    """Arrays that we read or wrote against tensors of torch, in containers of any depth."""
    if isinstance(theirs, torch.Tensor):
        assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.") and ours.shape == tuple(theirs.shape)
        np.testing.assert_array_equal(np.asarray(ours, np.float64), theirs.detach().double().numpy())
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert_same(ours[key], value)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    else:
        assert ours == theirs


def test_we_read_what_torch_writes(repo, tmp_path):
    torch.save(contents(), tmp_path / "a.pt")
    assert_same(torch_file.read(tmp_path / "a.pt"), contents())
    assert_same(torch_file.read(repo / "tests/fixtures/torch_save.pt"), contents())


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_we_write(tmp_path, mmap):
    rng = np.random.default_rng(0)
    base = rng.normal(size=(3, 5)).astype(np.float32)
    tree = {
        "weights": {"a": base, "transposed": base.T, "bfloat16": base.astype(ml_dtypes.bfloat16)},
        "integers": [np.arange(4), np.arange(4, dtype=np.uint8), np.array(True)],
        "plain": {"epoch": 3, "big": -(2**40), "loss": 0.25, "none": None, "names": ("a", "\u00e9")},
        "empty": np.zeros((0, 2), np.float32),
    }  # fmt: skip
    torch_file.write(tmp_path / "a.pt", tree)
    assert_same(tree, torch.load(tmp_path / "a.pt", weights_only=True, mmap=mmap))
    assert_same(torch_file.read(tmp_path / "a.pt"), torch.load(tmp_path / "a.pt", weights_only=True))


def test_a_module_loads_our_file(tmp_path):
    linear = torch.nn.Linear(3, 2)
    state = {"weight": np.ones((2, 3), np.float32), "bias": np.full(2, 2.0, np.float32)}
    torch_file.write(tmp_path / "a.pt", state)
    linear.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    assert linear(torch.ones(3)).tolist() == [5.0, 5.0]


def test_legacy_files_and_whole_modules_are_refused(tmp_path):
    torch.save(contents(), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ConvertError, match=r"if it was written before torch 1\.6"):
        torch_file.read(tmp_path / "legacy.pt")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pt")
    with pytest.raises(ConvertError, match=r"holds an object of torch.nn.modules.linear.Linear, which is not a tensor"):
        torch_file.read(tmp_path / "module.pt")
