"""The command ``stepwell``: one module a subcommand, imported when it is used.

A subcommand's module has ``HELP`` (one line), ``add_arguments(parser)`` and ``run(args)``, and imports at its top
nothing slow: ``stepwell --help`` must not wait for torch.

Exit status: 0 done, 1 failed (one line on standard error says why), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from stepwell.serving.cli import bench, demo, explain, generate, ladder, profile, serve, simulate, train
from stepwell.serving.cli.output import CommandError, UsageError, say
from stepwell.serving.client_types import RequestFailedError
from stepwell.serving.errors import RequestError

COMMANDS = {
    "serve": serve,
    "demo": demo,
    "generate": generate,
    "ladder": ladder,
    "profile": profile,
    "explain": explain,
    "train": train,
    "bench": bench,
    "simulate": simulate,
}
USER_ERRORS = (CommandError, ValueError, OSError, RequestError, RequestFailedError)
"""Told in one line; anything else is our mistake and keeps its trace."""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="stepwell",
        description="Serve one nested model at every size: each request runs the sub-network it asks for.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"stepwell {metadata.version('stepwell')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status. Wrong usage ends the process with status 2 (argparse)."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model may generate what the terminal cannot show
    try:
        args.run(args)
    except UsageError as error:
        parser.error(str(error))
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except USER_ERRORS as error:
        say(f"error: {' '.join(str(error).split())}")
        return 1
    except KeyboardInterrupt:
        say("error: interrupted")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
