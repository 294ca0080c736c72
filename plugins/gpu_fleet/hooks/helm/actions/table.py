"""From a decision to the action that carries it out."""

from __future__ import annotations

from gpu_fleet.core.errors import ReleaseError
from gpu_fleet.core.releases.decide import Action, Decision
from gpu_fleet.hooks.helm.actions.base import ReleaseAction
from gpu_fleet.hooks.helm.actions.install import Install
from gpu_fleet.hooks.helm.actions.rollback import Rollback
from gpu_fleet.hooks.helm.actions.uninstall import Uninstall
from gpu_fleet.hooks.helm.actions.unlock import Unlock
from gpu_fleet.hooks.helm.actions.upgrade import Upgrade
from gpu_fleet.hooks.helm.cleanup import ReleaseCleanup
from gpu_fleet.hooks.helm.preparation import Package


def action_of(decision: Decision, package: Package | None) -> ReleaseAction:
    """
    :param package: what is to be installed; ``None`` for goals that install nothing.
    :raises ReleaseError: no action carries out this decision.
    """
    match decision.action:
        case Action.INSTALL | Action.UPGRADE if package is None:
            raise ReleaseError(f"{decision.message}: nothing to install while remediating", reason="NoChart")
        case Action.INSTALL if package is not None:
            return Install(package)
        case Action.UPGRADE if package is not None:
            return Upgrade(package)
        case Action.ROLLBACK if decision.target is not None:
            return Rollback(decision.target)
        case Action.UNLOCK if decision.target is not None:
            return Unlock(decision.target)
        case Action.UNINSTALL:
            return Uninstall(ReleaseCleanup.PRECIOUS)
    raise ReleaseError(f"{decision.message}: cannot {decision.action}", reason=decision.reason)
