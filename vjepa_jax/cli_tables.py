"""`vjepa tables`: results beside published numbers, or what would fill a table."""

import argparse


def main(argv: list[str]) -> int:
    """Print tables, or the plan of one. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="vjepa tables",
        usage="vjepa tables RUN [RUN ...] [--table T1 ...] [--workdir DIR]\n       vjepa tables --plan T1 [options]",
        description="The results of run folders beside published numbers, each with its source: Markdown on the "
        "terminal, and with --workdir tables.md, tables.html and tables.tex. --plan tells what would fill a table.",
        epilog="example: vjepa tables runs --workdir runs/tables   or   vjepa tables --plan T1 --chip v5p",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folder, or a folder of run folders")
    parser.add_argument("--table", action="append", metavar="T1", help="of experiments/tables, or a file; default: all")
    parser.add_argument("--workdir", metavar="DIR", help="folder that receives tables.md, tables.html and tables.tex")
    parser.add_argument("--unchecked", action="store_true", help="also published numbers that nobody has looked up")
    parser.add_argument("--plan", metavar="T1", help="commands, data, disk and device-hours that would fill this table")
    parser.add_argument("--devices", type=int, default=8, metavar="N", help="with --plan: for the hours of so many")
    parser.add_argument("--chip", default="h100", help="with --plan: h100, h200, a100, v4, v5e, v5p, v6e")
    parser.add_argument("--mfu", type=float, default=0.35, help="with --plan: share of the peak that is reached")
    options = parser.parse_args(argv)
    if options.plan and (options.runs or options.table or options.workdir):
        parser.error("--plan goes without runs, --table and --workdir")
    from vjepa_jax.evals import tables
    from vjepa_jax.parallel.chips import Machine

    options.machine = Machine(options.devices, options.chip, options.mfu)
    return tables.main(options)
