"""Every decision has its action, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_fleet.core.errors import ReleaseError
from gpu_fleet.core.releases.decide import WRITES, Action, Decision
from gpu_fleet.core.releases.objects import PRECIOUS_KINDS
from gpu_fleet.core.releases.state import ReleaseState
from gpu_fleet.hooks.helm.actions.install import Install
from gpu_fleet.hooks.helm.actions.rollback import Rollback
from gpu_fleet.hooks.helm.actions.table import action_of
from gpu_fleet.hooks.helm.actions.uninstall import Uninstall
from gpu_fleet.hooks.helm.actions.unlock import Unlock
from gpu_fleet.hooks.helm.actions.upgrade import Upgrade
from gpu_fleet.hooks.helm.preparation import Package

PACKAGE = Package(Path("/chart"), Path("/values.json"))
EXPECTED = {
    Action.INSTALL: Install(PACKAGE),
    Action.UPGRADE: Upgrade(PACKAGE),
    Action.ROLLBACK: Rollback(3),
    Action.UNLOCK: Unlock(3),
    Action.UNINSTALL: Uninstall(PRECIOUS_KINDS),
}


def decision(action: Action, target: int | None = 3) -> Decision:
    return Decision(action, ReleaseState.FAILED, "RevisionFailed", "release ns/r: why", target)


@pytest.mark.parametrize("action", list(Action))
def test_what_writes_has_an_action_and_nothing_else_has(action: Action) -> None:
    if action in WRITES:
        assert action_of(decision(action), PACKAGE) == EXPECTED[action]
        return
    with pytest.raises(ReleaseError, match="ns/r"):
        action_of(decision(action), PACKAGE)


@pytest.mark.parametrize("action", [Action.INSTALL, Action.UPGRADE])
def test_a_goal_that_installs_nothing_cannot_install(action: Action) -> None:
    with pytest.raises(ReleaseError) as caught:
        action_of(decision(action), None)
    assert caught.value.reason == "NoChart"


@pytest.mark.parametrize("action", [Action.ROLLBACK, Action.UNLOCK])
def test_an_action_on_a_revision_needs_its_number(action: Action) -> None:
    with pytest.raises(ReleaseError, match="cannot"):
        action_of(decision(action, target=None), PACKAGE)
