"""Reading recorded arrivals: the Azure LLM inference traces (CSV) and Mooncake's (JSON lines), told apart by content.

Azure (Splitwise, ISCA'24): ``TIMESTAMP,ContextTokens,GeneratedTokens``. Mooncake (FAST'25): an object a line,
``{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [ids of the prompt's 512-token blocks]}``.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

from stepwell.serving.replay.workload import Arrival, Workload

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)?", re.ASCII)
_MOST_TOKENS = 10**8
"""More in one request is a mistake, not a request."""


class TraceError(ValueError):
    """A trace that cannot be read. The message names the file, the line, the field, its value and the remedy."""


def read_trace(path: str | Path, num_requests: int | None = None) -> Workload:
    """The arrivals of a trace file; only its first ``num_requests`` requests are read if that is given.

    Lengths of 0 count as 1: every request has a prompt, and an answer. Raises TraceError.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", errors="backslashreplace", newline="") as lines:
            arrivals = list(islice(_rows(path, lines), num_requests))
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror}); give the path of a trace") from error
    if not arrivals:
        raise TraceError(f"{path}: no requests in it; give a trace with at least one")
    return Workload.of(path.stem, arrivals)


def _rows(path: Path, lines: Iterable[str]) -> Iterator[Arrival]:
    """The file's arrivals, by the format of its first line."""
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    number, first = next(numbered, (1, ""))
    header = [name.strip() for name in first.split(",")]
    if first.lstrip().startswith("{"):
        yield from _mooncake(path, chain([(number, first)], numbered))
    elif set(AZURE_COLUMNS) <= set(header):
        yield from _azure(path, header, numbered)
    else:
        raise TraceError(
            f"{path}:{number}: neither of the known formats, got {_shown(first.strip())}; the first line must be the "
            f"header {','.join(AZURE_COLUMNS)} or a JSON object with timestamp, input_length and output_length"
        )


def _azure(path: Path, header: list[str], lines: Iterator[tuple[int, str]]) -> Iterator[Arrival]:
    time, prompt, output = (header.index(name) for name in AZURE_COLUMNS)
    for number, line in lines:
        where = f"{path}:{number}"
        cells = next(csv.reader([line]))
        if len(cells) != len(header):
            raise TraceError(
                f"{where}: {len(cells)} columns, got {_shown(line.strip())}; each line needs the {len(header)} columns "
                f"{','.join(header)}"
            )
        at_s = _checked(where, AZURE_COLUMNS[0], cells[time], _seconds, "write YYYY-MM-DD HH:MM:SS.fffffff")
        yield Arrival(
            at_s,
            _checked(where, AZURE_COLUMNS[1], cells[prompt], _tokens_of_text, _TOKENS_REMEDY),
            _checked(where, AZURE_COLUMNS[2], cells[output], _tokens_of_text, _TOKENS_REMEDY),
        )


def _mooncake(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[Arrival]:
    for number, line in lines:
        where = f"{path}:{number}"
        entry = _checked(where, "line", line.strip(), _object, "write one JSON object a line")
        yield Arrival(
            _checked(where, "timestamp", entry.get("timestamp"), _milliseconds, "give milliseconds, finite and >= 0"),
            _checked(where, "input_length", entry.get("input_length"), _tokens, _TOKENS_REMEDY),
            _checked(where, "output_length", entry.get("output_length"), _tokens, _TOKENS_REMEDY),
            prefix=_checked(where, "hash_ids", entry.get("hash_ids", []), _ids, "give a list of whole numbers >= 0"),
        )


_TOKENS_REMEDY = f"give a whole number of tokens, 0..{_MOST_TOKENS}"


def _checked(where: str, name: str, value: Any, read: Callable[[Any], Any], remedy: str) -> Any:
    try:
        return read(value)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise TraceError(f"{where}: {name}: not valid, got {_shown(value)}; {remedy}") from error


def _seconds(text: str) -> float:
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    date, time, fraction, zone = match.groups()
    zone = "+00:00" if zone in (None, "Z") else zone
    return datetime.fromisoformat(f"{date}T{time}{zone}").timestamp() + float(fraction or 0)


def _milliseconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(value)
    return value / 1e3


def _tokens_of_text(text: str) -> int:
    return _tokens(int(text))


def _tokens(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_TOKENS:
        raise ValueError(value)
    return max(1, value)


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise ValueError(value)
    return tuple(value)


def _object(line: str) -> Mapping[str, Any]:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(line)
    return value


def _shown(value: Any) -> str:
    """``value`` as it is written in a message: on one line, and not all of a long one."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
