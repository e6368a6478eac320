"""What a compiled program sends between devices: collectives read from its HLO text, counted as often as they run.

XLA's own cost analysis counts the body of a loop once; here a layer scan counts with its number of layers. What TPU
programs do with collectives, and this module undoes: an asynchronous one appears in the fusions that start, carry and
finish it, all under one channel; a reduce-scatter is a fusion called all-reduce-scatter. With several slices the
program is that of one slice, whose devices its groups count. What slices exchange is a `send` to libtpu's runtime for
their network (megascale) and a `recv`, with attributes that say which collective they stand for and among which
devices. Of a collective that extends over a slice and over several, libtpu makes one of each kind.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(r"\b(?:body|calls|to_apply|branch_computations|called_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_FUSED = re.compile(r"^(fused_computation|async_collective_fusion)")
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_BITS = re.compile(r"[a-z]+(\d+)")

_MEGASCALE = '_xla_host_transfer_handler_name="xla_megascale_runtime"'
_TRANSFERS = {
    "ALL_GATHER": "all-gather",
    "ALL_REDUCE": "all-reduce",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}
_SLICE_IDS = 100_000  # libtpu numbers the devices of the first slice from this, of the second from twice this, ...


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: one of KINDS.
      size: bytes of its largest side on one device: the result of an all-gather, the operand of a reduce-scatter.
      times: how often a step runs it.
      groups: device numbers [groups, members] in the order of the mesh; of a permutation its (source, target) pairs.
      network: "dcn" of what slices exchange, "ici" of all else.
    """

    kind: str
    size: float
    times: int
    groups: np.ndarray
    network: str = "ici"

    @property
    def sent(self) -> float:
        """Bytes that one device sends for it in a step."""
        return self.times * sent_bytes(self.kind, self.size, self.groups.shape[1])

    def axes(self, mesh: Mapping[str, int]) -> tuple[str, ...]:
        """The axes of the mesh (name to size, in its order) along which its groups extend."""
        places = np.stack(np.unravel_index(self.groups, tuple(mesh.values())))
        varies = (places != places[:, :, :1]).any(axis=(1, 2))
        return tuple(name for name, differs in zip(mesh, varies, strict=True) if differs)


def sent_bytes(kind: str, size: float, members: int) -> float:
    """Bytes that each of a group's members sends for one collective, by the algorithms that send the least."""
    if kind == "collective-permute":
        return size
    return size * (1.0 - 1.0 / members) * (2.0 if kind == "all-reduce" else 1.0)


@dataclasses.dataclass
class _Instruction:
    name: str
    shape: str
    opcode: str
    rest: str


def slice_of(device: Any) -> int:
    """Which of several slices a jax.Device is in; 0 where there is one."""
    return getattr(device, "slice_index", 0) or 0


def read_collectives(hlo: str, devices: Sequence[Any]) -> list[Collective]:
    """The collectives of a compiled program (`jax.stages.Compiled.as_text`); those among one device are left out.

    Args:
      devices: of the mesh, in its order; where they are in several slices, with `id` and `slice_index`.

    Raises:
      ValueError: a loop whose number of rounds, or a collective or transfer between slices that cannot be read.
    """
    computations, entry = _computations(hlo)
    times = _times(computations, entry)
    places = _places(hlo, devices)
    found: list[Collective] = []
    fused: dict[tuple[str, str], list[Collective]] = defaultdict(list)
    for name, instructions in computations.items():
        for one in instructions if times[name] else ():
            if one.opcode == "send" and _MEGASCALE in one.rest:
                found.append(_transfer(one, times[name], devices))
            if (kind := one.opcode.removesuffix("-start")) not in KINDS:
                continue
            scattered = kind == "all-reduce" and name.startswith("all-reduce-scatter")
            groups = _groups(one.rest, places.shape[1])
            if groups.shape[1] > 1:
                size = _size(kind, one, groups.shape[1])
                groups = places[:, groups].reshape(-1, groups.shape[1])
                collective = Collective("reduce-scatter" if scattered else kind, size, times[name], groups)
                channel = re.search(r"channel_id=(\d+)", one.rest)
                if _FUSED.search(name) and not scattered and channel:
                    fused[channel[1], str(_ARRAY.findall(one.shape))].append(collective)
                else:
                    found.append(collective)
    # of the copies of an asynchronous one the start runs the least often: what carries it may sit in an inner loop
    return [*found, *(min(copies, key=lambda one: one.times) for copies in fused.values())]


def _places(hlo: str, devices: Sequence[Any]) -> np.ndarray:
    """Where the partitions of the program are in the mesh [programs, partitions]. Each slice runs one, and numbers its
    devices in the order of the mesh."""
    told = re.search(r"\bnum_partitions=(\d+)", hlo.partition("\n")[0])
    partitions = int(told[1]) if told else len(devices)
    if partitions == len(devices):
        return np.arange(partitions)[None]
    order = np.argsort([slice_of(device) for device in devices], kind="stable").reshape(-1, partitions)
    if any(len({slice_of(devices[i]) for i in row}) > 1 for row in order):
        raise ValueError(f"a program for {partitions} devices is none of one slice")
    return order


def _transfer(one: _Instruction, times: int, devices: Sequence[Any]) -> Collective:
    """What a chip gives to the network between slices."""
    place = {device.id: i for i, device in enumerate(devices)}
    kind = _TRANSFERS.get(_attribute(one, r'transfer_type="(\w+)"'))
    target = _attribute(one, r'target=("[^"]*"|\{\{.*?\}\})')
    if same := re.fullmatch(r'"\{([\d,]+)\}x\{([\d,:]+)\}"', target):  # these devices of each slice
        spans = [_numbers(span.replace(":", ",")) for span in same[2].split(",")]
        own = [i for span in spans for i in range(span[0], span[-1] + 1)]
        ids = [[number * _SLICE_IDS + i for number in _numbers(same[1])] for i in own]
    else:
        ids = [_numbers(group.replace("->", ",")) for group in re.findall(r"\{([\d,\->]+)\}", target)]
    uneven = len({len(group) for group in ids}) != 1
    if kind is None or uneven or any(i not in place for group in ids for i in group):
        raise ValueError(f"cannot read a transfer between slices: {one.name} {one.rest[:200]}")
    groups = np.array([[place[i] for i in group] for group in ids])
    size = _bytes(*_ARRAY.findall(one.shape)[0])
    return Collective(kind, size * (groups.shape[1] if kind == "all-gather" else 1), times, groups, "dcn")


def _attribute(one: _Instruction, pattern: str) -> str:
    found = re.search(rf"_xla_megascale_{pattern}", one.rest)
    return found[1] if found else ""


def _computations(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry = current = ""
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            current = header[2]
            computations[current] = []
            entry = current if header[1] else entry
        elif current and (found := _INSTRUCTION.match(line)):
            computations[current].append(_Instruction(*found.groups()))
    return computations, entry


def _times(computations: Mapping[str, Sequence[_Instruction]], entry: str) -> dict[str, int]:
    """How often each computation runs in a step. HLO defines a computation before it is called."""
    times = dict.fromkeys(computations, 0)
    times[entry] = 1
    for name in reversed(list(computations)):
        for one in computations[name] if times[name] else ():
            rounds = _rounds(computations, name, one) if one.opcode == "while" else 1
            for names in _CALLED.findall(one.rest):
                for called in re.findall(r"[\w.\-]+", names):
                    if called in times:
                        times[called] += times[name] * rounds
    return times


def _rounds(computations: Mapping[str, Sequence[_Instruction]], name: str, loop: _Instruction) -> int:
    """Rounds of a loop that counts up: where XLA does not say them, from the start of its counter to the bound in its
    condition, by the step in its body (an unrolled loop makes larger ones)."""
    if told := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(told[1])
    condition = computations[_called(loop, "condition")]
    of = {one.name: one for one in condition}
    compare = condition[-1]
    operands = [of[word] for word in _operands(compare) if word in of]
    counters = [one for one in operands if one.opcode == "get-tuple-element"]
    if compare.opcode == "fusion":  # of the comparison, with or without its bound
        operands += computations[_called(compare, "calls")]
        compare = operands[-1]
    bounds = [_constant(one) for one in operands if one.opcode == "constant"]
    if "direction=LT" not in compare.rest or len(bounds) != 1 or len(counters) != 1:
        raise ValueError(f"cannot read how often the loop {loop.name} runs")
    index = int(re.search(r"index=(\d+)", counters[0].rest)[1])
    start = _source({one.name: one for one in computations[name]}, _operands(loop)[0], index)
    body = computations[_called(loop, "body")]
    of = {one.name: one for one in body}
    update = _source(of, body[-1].name, index)
    steps = [_constant(of[word]) for word in _operands(update) if word in of and of[word].opcode == "constant"]
    if update.opcode != "add" or len(steps) != 1 or start.opcode != "constant":
        raise ValueError(f"cannot read how often the loop {loop.name} runs")
    return -(-(bounds[0] - _constant(start)) // steps[0])


def _source(of: Mapping[str, _Instruction], word: str, index: int) -> _Instruction:
    """Where element `index` of the tuple called `word` comes from within its computation."""
    while of[word].opcode in ("tuple", "copy", "bitcast", "opt-barrier"):
        operands = _operands(of[word])
        word = operands[index if of[word].opcode == "tuple" else 0]
    return of[word]


def _called(one: _Instruction, role: str) -> str:
    return re.search(rf"{role}=%?([\w.\-]+)", one.rest)[1]


def _operands(one: _Instruction) -> list[str]:
    return re.findall(r"%([\w.\-]+)", one.rest.split(")")[0])


def _constant(one: _Instruction) -> int:
    return int(one.rest.split(")")[0])


def _size(kind: str, one: _Instruction, members: int) -> float:
    """Bytes of the larger side: what is started asynchronously has operands and results in its shape."""
    sizes = [_bytes(dtype, dims) for dtype, dims in _ARRAY.findall(one.shape)]
    if one.opcode == "collective-permute-start":
        return sizes[0]
    if one.opcode == "all-gather-start":
        sizes = sizes[len(sizes) // 2 :]
    return sum(sizes) * (members if kind == "reduce-scatter" else 1)


def _bytes(dtype: str, dims: str) -> float:
    bits = 8 if dtype == "pred" else int(_BITS.match(dtype)[1])
    return math.prod(int(d) for d in dims.split(",") if d) * bits / 8


def _groups(rest: str, num_devices: int) -> np.ndarray:
    """Device numbers [groups, members]. HLO has three spellings: a list, a reshaped count, and axes of a mesh."""
    if pairs := re.search(r"source_target_pairs=\{(.*?\})\}", rest):
        pairs = np.array([_numbers(pair) for pair in re.findall(r"\{([\d,]+)\}?", pairs[1])])
        return pairs.reshape(-1, 2)
    if listed := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", rest):
        return np.array([_numbers(group) for group in re.findall(r"\{([\d,]+)\}", listed[1])])
    if counted := re.search(rf"replica_groups=\[([\d,]+)\]<={_IOTA}", rest):
        return _iota(counted[2], counted[3]).reshape(_numbers(counted[1]))
    if on_mesh := re.search(rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_IOTA}\))? \{{([^}}]*)\}}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", on_mesh[1])}
        places = _mesh_groups(sizes, on_mesh[4])
        return _iota(on_mesh[2], on_mesh[3])[places] if on_mesh[2] else places
    if "replica_groups={}" in rest:
        return np.arange(num_devices)[None]
    raise ValueError(f"cannot read the groups of a collective: {rest[:200]}")


def _iota(shape: str, order: str | None) -> np.ndarray:
    """0, 1, ... in a shape "4,2" with its axes in the order "1,0", flat."""
    dims = _numbers(shape)
    return np.arange(math.prod(dims)).reshape(dims).transpose(_numbers(order) if order else range(len(dims))).ravel()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _mesh_groups(sizes: Mapping[str, int], axes: str) -> np.ndarray:
    """Groups along `axes` of a mesh of devices 0, 1, ...: 'a','b' or, for a part of an axis, 'a':(before)size."""
    dims: list[int] = []
    chosen: list[int] = []
    parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    for name, size in sizes.items():
        cuts = sorted((int(before), int(own)) for axis, before, own in parts if axis == name and before)
        done = 1
        for before, own in cuts:
            dims += [before // done, own]
            chosen.append(len(dims) - 1)
            done = before * own
        dims.append(size // done)
        if any(axis == name and not before for axis, before, _ in parts):
            chosen.append(len(dims) - 1)
    kept = [i for i in range(len(dims)) if i not in chosen]
    members = math.prod(dims[i] for i in chosen)
    return np.arange(math.prod(dims)).reshape(dims).transpose([*kept, *chosen]).reshape(-1, members)
