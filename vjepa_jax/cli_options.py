"""What the verbs of the `vjepa` command share."""

import argparse
import sys

USAGE_ERROR = 2


def part(verb: str, argv: list[str], known: tuple[str, ...], text: str) -> int | None:
    """The exit code where `argv` asks for help or names no known part of a verb, else None."""
    if not argv or argv[0] in ("-h", "--help"):
        print(text)
        return 0 if argv else USAGE_ERROR
    if argv[0] not in known:
        print(f"vjepa {verb}: unknown part {argv[0]!r}; there is: {', '.join(known)}", file=sys.stderr)
        return USAGE_ERROR
    return None


def reject_unknown(parser: argparse.ArgumentParser, extra: list[str]) -> None:
    for word in extra:
        if not word.startswith("--config."):
            parser.error(f"unknown option {word} (config keys are set with --config.KEY=VALUE)")
