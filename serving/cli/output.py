"""What commands print: results on standard output, as text or one JSON document; all else on standard error."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from typing import Any


class CommandError(Exception):
    """A command that could not do what was asked. The message names what was wrong and the remedy."""


class UsageError(Exception):
    """A command line that asks for nothing possible, beyond what argparse sees by itself."""


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """The option every command that reports has."""
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")


def say(text: str) -> None:
    """Progress and remarks, for people."""
    print(text, file=sys.stderr, flush=True)


def print_json(document: Any) -> None:
    """The one document of a command run with ``--json``."""
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False), flush=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str] = ()) -> str:
    """Aligned columns, two spaces apart; those whose header is in ``left`` to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if header in left else cell.rjust(width)
            for header, cell, width in zip(headers, cells, widths, strict=True)
        ]
        return "  ".join(aligned).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(headers), rule, *map(line, rows)])


def excerpt(text: str, width: int) -> str:
    """``text`` on one line: white space runs become one space, other unprintables are escaped, the rest is cut."""
    flat = " ".join(text.split())
    flat = "".join(c if c.isprintable() else repr(c)[1:-1] for c in flat)
    return flat if len(flat) <= width else flat[: width - 3] + "..."


def millions(count: int) -> str:
    """A number of parameters."""
    return f"{count / 1e6:.2f} M" if count >= 10_000 else str(count)
