"""Those that may run in a step, in order of due times: in columns, as most steps take them, or one by one."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from stepwell.schedulers.outlook import Dues
from stepwell.schedulers.pace import Assignment
from stepwell.schedulers.request import Request


class Candidate(NamedTuple):
    """A request that may run in this step, and where."""

    due_s: float
    """When its next token is due, from now: the order in which the step is filled."""
    request: Request
    level: int
    lowest: int
    """The lowest level that it allows."""
    token_s: float
    """A generated token at ``level``."""
    backfill_s: float
    """What it takes to get there, once."""


class Lineup(NamedTuple):
    """Candidates in order of their due times: the fields of :class:`Candidate`, a sequence each."""

    due_s: list[float]
    requests: tuple[Request, ...]
    levels: tuple[int, ...]
    lowest: tuple[int, ...]
    token_s: tuple[float, ...]
    backfill_s: tuple[float, ...]

    @classmethod
    def of(cls, dues: Dues, requests: Sequence[Request], assigned: Assignment) -> Lineup:
        """Those of ``dues``, whose indices are those of ``requests`` and ``assigned``."""
        if not dues.indices:
            return _NOBODY
        columns: tuple[Sequence[Any], ...] = (requests, *assigned)
        if len(dues.indices) > 1:
            pick = itemgetter(*dues.indices)
            return cls(dues.due_s, *[pick(column) for column in columns])
        return cls(dues.due_s, *[tuple([column[i] for i in dues.indices]) for column in columns])

    @property
    def num(self) -> int:
        """Candidates."""
        return len(self.due_s)

    def candidates(self, first: int, end: int | None = None) -> list[Candidate]:
        """Those from number ``first`` on, before number ``end``."""
        if first >= len(self.due_s):
            return []
        columns = [column[first:end] for column in self]
        return list(map(Candidate._make, zip(*columns, strict=True)))


_NOBODY = Lineup([], (), (), (), (), ())
