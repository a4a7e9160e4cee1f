from __future__ import annotations

import pytest

from stepwell.schedulers.base import Policy
from stepwell.schedulers.plan import Limits
from stepwell.schedulers.registry import POLICIES, create_policy


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_can_be_made_and_knows_its_name(name: str) -> None:
    limits = Limits(max_step_tokens=7)
    policy = create_policy(name, limits)
    assert isinstance(policy, Policy)
    assert (policy.name, policy.limits) == (name, limits)


def test_an_unknown_policy_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"policy: unknown, got 'fastest'.*max_quality"):
        create_policy("fastest", Limits())
