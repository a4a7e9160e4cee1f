"""Scheduling policies by name, imported on use. A new policy is a new file and a line here."""

from __future__ import annotations

from importlib import import_module

from stepwell.schedulers.base import Policy
from stepwell.schedulers.plan import Limits

POLICIES = {
    "clockwork": "stepwell.schedulers.clockwork:Clockwork",
    "fixed": "stepwell.schedulers.fixed:Fixed",
    "max_quality": "stepwell.schedulers.max_quality:MaxQuality",
    "max_throughput": "stepwell.schedulers.max_throughput:MaxThroughput",
    "slack_fit": "stepwell.schedulers.slack_fit:SlackFit",
    "staircase": "stepwell.schedulers.staircase:Staircase",
}
WITH_ARGUMENT = ("fixed",)
"""Policies that take an argument after a colon: ``fixed:LADDER:LEVEL``."""


def create_policy(name: str, limits: Limits) -> Policy:
    """The policy called ``name``, or ``name:argument``. Raises ValueError naming the choices if there is none."""
    base, colon, argument = name.partition(":")
    if base not in POLICIES:
        raise ValueError(f"policy: unknown, got {name!r}; use one of {sorted(POLICIES)}")
    if colon and base not in WITH_ARGUMENT:
        raise ValueError(f"policy {base}: takes no argument, got {name!r}; leave out what follows the colon")
    module, _, class_name = POLICIES[base].partition(":")
    make = getattr(import_module(module), class_name)
    policy: Policy = make(limits, argument) if colon else make(limits)
    return policy
