"""A Pallas kernel (Triton) for NVIDIA GPUs that reads and writes matrices once, with sums over their rows on the way.

XLA makes several kernels of a gradient that is summed over rows, and writes float32 values between them.

Shape suffixes: R rows, D columns.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from vjepa_jax.ops.shards import platform

LARGEST_SIZE = 2**31  # elements: places are counted in 32 bits
PREFIX = "one_pass_"  # of the names of these kernels


@dataclasses.dataclass(frozen=True)
class Tile:
    """Rows and columns (a power of two each) that a program holds at a time, and its warps.

    programs: of which there are about so many where rows are summed up, 4 or 8 for each processor of an H100.
    """

    rows: int
    columns: int
    warps: int = 4
    programs: int = 1056


@functools.cache
def available() -> bool:
    """Whether this jax has Pallas on Triton."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None


def usable(x: jax.Array) -> bool:
    """Whether it is the way for a matrix of 16-bit values: on NVIDIA."""
    return platform() == "gpu" and available() and x.dtype.itemsize == 2 and x.size < LARGEST_SIZE


def kernel(*options: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a function of arrays, and of arguments named `options`, as a program within the program: the layers of
    a model, which call it on the same shapes, share one. Making each anew took 10 s of a start of 24 layers."""
    return functools.partial(jax.jit, static_argnames=options)


def power_of_two(size: int) -> int:
    """The smallest one that is not less."""
    return 1 << (size - 1).bit_length()


def one_pass(
    body: Callable[..., tuple[Sequence[jax.Array], Sequence[jax.Array], Sequence[jax.Array]]],
    matrices: Sequence[jax.Array],
    outputs: Sequence[Any],
    tile: Tile,
    *,
    numbers: Sequence[jax.Array] = (),
    vectors: Sequence[jax.Array] = (),
    row_outputs: int = 0,
    sums: int = 0,
    interpret: bool = False,
    name: str,
) -> list[jax.Array]:
    """Outputs [R, D] of the dtypes `outputs`, then `row_outputs` of one number a row, float32 [R], then so many sums
    over rows, float32 [D].

    Args:
      body: given a tile of every matrix, then of `numbers` and `vectors`, all float32 and of two axes, it returns tiles
        of the outputs, numbers [rows, 1] and tiles of what is summed. Outside of the matrices zeros are read, which
        must add nothing to sums.
      matrices: [R, D], any dtypes, below LARGEST_SIZE.
      numbers: one for every row, [R].
      vectors: one for every column, [D].
      interpret: run without a GPU, slowly.
    """
    from jax.experimental import pallas as pl  # only where it is used: experimental, and slow to import
    from jax.experimental.pallas import triton

    rows, columns = matrices[0].shape
    blocks = pl.cdiv(columns, tile.columns)
    passes = _passes(rows, tile, blocks) if sums else 1
    programs = pl.cdiv(rows, tile.rows * passes)
    whole_rows, whole_columns = rows % (tile.rows * passes) == 0, columns % tile.columns == 0
    counts = len(matrices), len(numbers), len(vectors), len(outputs), row_outputs, sums

    def program(*refs):
        parts, first = [], 0
        for count in counts:
            parts.append(refs[first : first + count])
            first += count
        number, column = pl.program_id(0), pl.program_id(1) * tile.columns
        in_columns = None if whole_columns else column + jnp.arange(tile.columns) < columns
        at_columns = pl.ds(column, tile.columns)
        load = lambda at, mask: triton.load(at, mask=mask, other=None if mask is None else 0.0).astype(jnp.float32)
        across = [load(ref.at[at_columns], in_columns)[None, :] for ref in parts[2]]

        def step(i, totals):
            start = (number * passes + i) * tile.rows
            at_rows = pl.ds(start, tile.rows)
            in_rows = None if whole_rows else start + jnp.arange(tile.rows) < rows
            inside = _both(in_rows, in_columns, tile)
            tiles = [load(ref.at[at_rows, at_columns], inside) for ref in parts[0]]
            down = [load(ref.at[at_rows], in_rows)[:, None] for ref in parts[1]]
            results, along, terms = body(*tiles, *down, *across)
            for ref, values in zip(parts[3], results, strict=True):
                triton.store(ref.at[at_rows, at_columns], values.astype(ref.dtype), mask=inside)
            for ref, values in zip(parts[4], along, strict=True):
                triton.store(ref.at[at_rows], values[:, 0], mask=in_rows)
            return tuple(total + term for total, term in zip(totals, terms, strict=True))

        totals = lax.fori_loop(0, passes, step, (jnp.zeros((tile.rows, tile.columns), jnp.float32),) * sums)
        for ref, total in zip(parts[5], totals, strict=True):
            triton.store(ref.at[number, at_columns], total.sum(0), mask=in_columns)

    whole = lambda shape: pl.BlockSpec(shape, lambda i, j: (0,) * len(shape))
    shapes = [jax.ShapeDtypeStruct((rows, columns), dtype) for dtype in outputs]
    shapes += [jax.ShapeDtypeStruct((rows,), jnp.float32)] * row_outputs
    shapes += [jax.ShapeDtypeStruct((programs, columns), jnp.float32)] * sums
    inputs = (*matrices, *numbers, *vectors)
    results = pl.pallas_call(
        program,
        grid=(programs, blocks),
        in_specs=[whole(x.shape) for x in inputs],
        out_specs=[whole(x.shape) for x in shapes],
        out_shape=shapes,
        compiler_params=triton.CompilerParams(num_warps=tile.warps),
        interpret=interpret,
        name=PREFIX + name,
    )(*inputs)
    own = len(outputs) + row_outputs
    return [*results[:own], *(part.sum(0) for part in results[own:])]


def _both(in_rows: jax.Array | None, in_columns: jax.Array | None, tile: Tile) -> jax.Array | None:
    """The mask of a tile; None: all of it is there."""
    masks = [mask for mask in (None if in_rows is None else in_rows[:, None], in_columns) if mask is not None]
    return jnp.broadcast_to(functools.reduce(jnp.logical_and, masks), (tile.rows, tile.columns)) if masks else None


def _passes(rows: int, tile: Tile, blocks: int) -> int:
    """Tiles that one program goes through, for `blocks` of columns; so that there is no part of one where it can be."""
    most = max(1, rows * blocks // (tile.rows * tile.programs))
    if rows % tile.rows:
        return most
    return max(count for count in range(1, most + 1) if rows // tile.rows % count == 0)


def sums_place(place: PartitionSpec, kept: int = 1) -> PartitionSpec:
    """Where every device's own sums lie, over all but the last `kept` axes of matrices at `place`: [devices that share
    what is summed, ...]."""
    axes = [(axis,) if isinstance(axis, str) else axis or () for axis in place[:-kept]]
    return PartitionSpec(sum(axes, ()) or None, *place[-kept:])
