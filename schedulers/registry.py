"""Scheduling policies by name, imported on use. A new policy is a new file and a line here."""

from __future__ import annotations

from importlib import import_module

from stepwell.schedulers.base import Policy
from stepwell.schedulers.plan import Limits

POLICIES = {
    "max_quality": "stepwell.schedulers.max_quality:MaxQuality",
}


def create_policy(name: str, limits: Limits) -> Policy:
    """The policy called ``name``. Raises ValueError naming the choices if there is none."""
    if name not in POLICIES:
        raise ValueError(f"policy: unknown, got {name!r}; use one of {sorted(POLICIES)}")
    module, _, class_name = POLICIES[name].partition(":")
    policy: Policy = getattr(import_module(module), class_name)(limits)
    return policy
