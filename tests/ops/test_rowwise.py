"""The kernel that goes through matrices once, against numpy: interpreted here, compiled on an NVIDIA GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vjepa_jax.ops import rowwise, shards

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")


# one tile; several tiles a program; rows, columns and both that do not fill the last tile
@pytest.mark.parametrize("rows, columns", [(4, 16), (64, 32), (30, 32), (64, 20), (7, 3)])
@pytest.mark.parametrize("programs", [1, 3, 1000])
def test_outputs_numbers_and_sums(rows, columns, programs):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-9, 9, (rows, columns)).astype(np.float32) for _ in range(2))
    down, across = rng.integers(-9, 9, rows).astype(np.float32), rng.integers(-9, 9, columns).astype(np.float32)
    body = lambda a, b, down, across: ([a * down, b + across], [], [a * b, a])
    options = {"numbers": [down], "vectors": [across], "sums": 2, "name": "test"}
    options |= {"interpret": jax.default_backend() != "gpu"}
    got = rowwise.one_pass(body, [a, b], [jnp.float32, jnp.bfloat16], rowwise.Tile(4, 16, 4, programs), **options)
    want = [a * down[:, None], b + across, (a * b).sum(0), a.sum(0)]
    assert [x.dtype for x in got] == [jnp.float32, jnp.bfloat16, jnp.float32, jnp.float32]
    for one, exact in zip(got, want, strict=True):
        np.testing.assert_array_equal(np.asarray(one, np.float32), exact)


def test_numbers_of_rows():
    x = np.arange(6 * 16, dtype=np.float32).reshape(6, 16)
    body = lambda x: ([], [x.sum(-1, keepdims=True)], [])
    options = {"row_outputs": 1, "interpret": jax.default_backend() != "gpu", "name": "test"}
    (sums,) = rowwise.one_pass(body, [x], [], rowwise.Tile(4, 16), **options)
    np.testing.assert_array_equal(sums, x.sum(-1))


def test_sums_lie_where_the_rows_do():
    assert rowwise.sums_place(P(("replica", "fsdp"), "context", None)) == P(("replica", "fsdp", "context"), None)
    assert rowwise.sums_place(P("fsdp", None, "tensor")) == P(("fsdp",), "tensor")
    assert rowwise.sums_place(P(None, None)) == P(None, None)


def test_it_is_for_16_bits_on_nvidia(monkeypatch):
    x = jnp.ones((2, 3), jnp.bfloat16)
    assert rowwise.usable(x) == (jax.default_backend() == "gpu")
    monkeypatch.setattr(rowwise, "platform", lambda: "gpu")
    assert rowwise.usable(x) and not rowwise.usable(x.astype(jnp.float32))
    assert not rowwise.usable(jax.ShapeDtypeStruct((2**17, 2**14), jnp.bfloat16))
    monkeypatch.setattr(rowwise, "available", lambda: False)
    assert not rowwise.usable(x)
    assert shards.platform() == jax.default_backend()
