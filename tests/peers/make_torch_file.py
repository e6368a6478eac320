"""Writes tests/fixtures/torch_save.pt: what torch.save makes of every kind of tensor that the reader knows.

.venv-peers/bin/python tests/peers/make_torch_file.py
"""

import collections
import pathlib

import torch


def contents():
    """The saved object; tests/convert/test_torch_file.py holds what it must read as."""
    base = torch.arange(24.0).reshape(4, 6)
    weights = collections.OrderedDict(
        whole=base,
        transposed=base.t(),
        slice=base[1:3, ::2],
        half=torch.tensor([1.5, -2.0]).half(),
        bfloat16=torch.tensor([1.5, -2.0, 3.0]).bfloat16(),
        double=torch.tensor([0.1], dtype=torch.float64),
        long=torch.arange(3),
        int=torch.arange(3).int(),
        short=torch.arange(3).short(),
        char=torch.tensor([-1]).char(),
        byte=torch.tensor([255]).byte(),
        bool=torch.tensor([True, False]),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.ones(2)),
    )
    linear = torch.nn.Linear(2, 1)
    torch.nn.init.ones_(linear.weight), torch.nn.init.zeros_(linear.bias)
    return {
        "weights": weights,
        "module": linear.state_dict(),  # carries attributes beside its items
        "optimizer": torch.optim.AdamW([torch.zeros(2)], lr=0.5).state_dict(),
        "size": base.shape,
        "epoch": 3,
        "loss": 0.25,
        "names": ["a", ("b", None, True)],
    }


if __name__ == "__main__":
    torch.save(contents(), pathlib.Path(__file__).parent.parent / "fixtures" / "torch_save.pt")
