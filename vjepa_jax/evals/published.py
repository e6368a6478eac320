"""Published numbers and what is known of data sets, from published.csv and datasets.csv beside this file.

Every number stands as its source has it, with the protocol it was measured by and how well it was checked:

  paper        read in the paper's text
  code         read in the authors' repository (README, model zoo)
  issue        said in an issue of the authors' repository
  second-hand  read in somebody else's notes or paper
  recall       remembered, not read: no table prints it unless it is asked for
"""

import csv
import dataclasses
import functools
import importlib.resources
from collections.abc import Iterator

CHECKED = ("paper", "code", "issue", "second-hand", "recall")


@dataclasses.dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
      model, size: "V-JEPA 2", "ViT-g 384"; the size is "" where the source names none.
      benchmark, metric: "ssv2", "top-1".
      protocol: numbers of different protocols are not comparable and never share a column.
      value: the digits as printed.
      unit: "%" for shares of 100, "" for pure numbers.
      source: the paper or repository.
      checked: one of CHECKED.
      note: what else must be known, or "".
    """

    model: str
    size: str
    benchmark: str
    metric: str
    protocol: str
    value: str
    unit: str
    source: str
    checked: str
    note: str


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What is known of a data set. Numbers are 0 where they are not known.

    Attributes:
      name: as benchmarks are called.
      train, test: labelled videos (or images, segments) of the split that the protocol uses.
      gigabytes: of the download.
      where, licence: as far as known.
      note: of the split.
    """

    name: str
    title: str
    train: int
    test: int
    gigabytes: float
    where: str
    licence: str
    note: str


@functools.cache
def published() -> tuple[Published, ...]:
    """All published numbers, in the order of the file."""
    return tuple(Published(**row) for row in _rows("published.csv"))


@functools.cache
def datasets() -> dict[str, DataSet]:
    """All data sets by name."""
    kinds = {"train": int, "test": int, "gigabytes": float}
    rows = [{key: kinds.get(key, str)(value or 0) if key in kinds else value for key, value in row.items()}
            for row in _rows("datasets.csv")]  # fmt: skip
    return {row["name"]: DataSet(**row) for row in rows}


def _rows(name: str) -> Iterator[dict[str, str]]:
    with (importlib.resources.files("vjepa_jax.evals") / name).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)
