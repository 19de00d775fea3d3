"""The command `medq`: a table of sub-commands, each filled by one module that is imported only when it is called.

A module named here has `add_arguments(parser)` and `run(args)`; `run` returns an exit status, or None for success.
"""

import argparse
import importlib
import os
import sys
import warnings

from medq import __version__
from medq.errors import UserError

COMMANDS = {  # name: (module, what it does)
    "batch": ("medq.batch", "run every cell of a profile, or what is left of it"),
    "collect": ("medq.collect", "turn finished cells into the tidy tables that the book reads"),
    "data": ("medq.datasets.command", "check, audit or fetch a dataset"),
    "plan": ("medq.plan", "cells, hours and disk of a profile, before anything starts"),
    "doctor": ("medq.doctor", "what this machine can train, convert and time"),
    "advise": ("medq.advise", "which precision to ship, given limits of your own"),
    "export": ("medq.export", "write a model that runs without this package"),
}
INTERRUPTED = 130


def main(argv=None):
    """Run one command line; returns the exit status (2 after a user's mistake, 130 after Ctrl-C)."""
    argv = sys.argv[1:] if argv is None else argv
    warnings.formatwarning = _note
    try:
        end = argv.index("--") if "--" in argv and "batch" in argv[: argv.index("--")] else len(argv)
        args = _parser(argv[:end]).parse_args(argv[:end])
        for name, value in vars(args).items():  # a shell leaves `--root=~/data` alone
            if value == "":
                raise UserError(f"{name}: is empty; give a name, or leave it out.")
            if isinstance(value, (str, os.PathLike)):
                setattr(args, name, type(value)(os.path.expanduser(value)))
        args.snakemake = argv[end + 1 :]  # what follows `--` in a batch
        status = args.run(args) or 0
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"medq: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("medq: stopped; the same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` for one, has had enough
        sys.stderr.close()
        return 0


def _note(message, category, filename, line_number, line=None, plain=warnings.formatwarning):
    """A warning as text: one of our own as a note, without the line of code that gave it."""
    own = category.__module__.startswith("medq.")
    return f"note: {message}\n" if own else plain(message, category, filename, line_number, line)


def _parser(argv):
    """The parser, with the arguments of the one command that `argv` names."""
    parser = argparse.ArgumentParser(
        prog="medq", description="INT8 quantization of medical image classifiers: run it, measure it, decide."
    )
    parser.add_argument("--version", action="version", version=f"medq {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    called = next((word for word in argv if not word.startswith("-")), None)
    for name, (module, about) in COMMANDS.items():
        sub = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        if name == called:
            code = importlib.import_module(module)
            code.add_arguments(sub)
            sub.set_defaults(run=code.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
