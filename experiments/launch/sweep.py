"""Prints the commands of a sweep, one a line, for any launcher or for `xargs`: it starts nothing.

    python experiments/launch/sweep.py --workdir runs/lr optim.lr=1e-4,3e-4,6e-4 seed=0,1 -- \
      vjepa train --config experiments/pretrain/folder.py --config.data.path=videos

Every combination of the values gets a folder of its own below --workdir. Values are separated by commas outside of
brackets: mesh.fsdp=4,8 or data.random_resize_scale=(0.3,1.0),(0.5,1.0).
"""

import argparse
import itertools
import re
import shlex
import sys


def values_of(text: str) -> list[str]:
    """The parts of `text` between commas that are in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def commands(workdir: str, keys: list[str], command: list[str]) -> list[str]:
    """A shell command for every combination. Raises ValueError for a key that is not KEY=VALUE[,VALUE...]."""
    names, choices = [], []
    for key in keys:
        name, found, values = key.partition("=")
        if not (found and name and all(values_of(values))):
            raise ValueError(f"{key!r} must be KEY=VALUE[,VALUE...]")
        names.append(name)
        choices.append(values_of(values))
    lines = []
    for combination in itertools.product(*choices):
        pairs = list(zip(names, combination, strict=True))
        folder = "_".join(f"{name.split('.')[-1]}-{re.sub(r'[^A-Za-z0-9.+-]+', '-', value)}" for name, value in pairs)
        overrides = [f"--config.{name}={value}" for name, value in pairs]
        lines.append(shlex.join([*command, *overrides, f"--workdir={workdir}/{folder}"]))
    return lines


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the runs' folders")
    parser.add_argument("keys", nargs="+", metavar="KEY=VALUE[,VALUE...]")
    cut = argv.index("--") if "--" in argv else len(argv)
    args, command = parser.parse_args(argv[:cut]), argv[cut + 1 :]
    if not command:
        parser.error("give the command to complete after --")
    try:
        print("\n".join(commands(args.workdir, args.keys, command)))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
