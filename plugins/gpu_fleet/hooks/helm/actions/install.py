"""Install a release that does not exist, once the objects of an earlier uninstall are gone."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from gpu_fleet.core.errors import GpuFleetError, TransientError
from gpu_fleet.core.releases.state import Observation
from gpu_fleet.hooks.helm.actions.base import ActionContext
from gpu_fleet.hooks.helm.actions.upgrade import upgrade
from gpu_fleet.hooks.helm.cleanup import ReleaseCleanup
from gpu_fleet.hooks.helm.preparation import Package

log = logging.getLogger(__name__)

#: Seconds that an install waits for what an uninstall has left; a retry of the task waits again.
_GONE_SECONDS = 60.0
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Install:
    """Install as revision 1."""

    package: Package

    def run(self, here: ActionContext, seen: Observation) -> GpuFleetError | None:
        _finish_uninstall(here, seen)
        return upgrade(here, seen, self.package, "install")


def _finish_uninstall(here: ActionContext, seen: Observation) -> None:
    """Remove what an uninstall has left, and wait until it is gone; only the ledger's intent still lists it.

    Before the install's own intent replaces that list. Helm would adopt an object that still waits for its finalizers,
    and lose it afterwards.

    :raises TransientError: ``ObjectsTerminating``; the ledger keeps the list, so a retry waits again.
    """
    objects = seen.ledger.intent.objects if seen.ledger.intent is not None else ()
    until = time.monotonic() + min(_GONE_SECONDS, here.request.policy.operation_timeout)
    reported = ""
    while True:
        left = here.cleanup.remove_leftovers(objects, ReleaseCleanup.PRECIOUS)
        terminating = "; ".join(str(item) for item in left if item.terminating)
        if not terminating:
            break
        if terminating != reported:
            log.info("%s waits until what an uninstall has left is gone: %s", here.request, terminating)
            reported = terminating
        if time.monotonic() > until:
            raise TransientError(
                f"{here.request}: an uninstall has left objects that are not gone yet: {terminating}; nothing is "
                "installed over them: check what their finalizers wait for, then run again",
                reason="ObjectsTerminating",
            )
        time.sleep(_POLL_SECONDS)
        here.check_alive()
    for item in left:
        log.warning("left by an earlier uninstall: %s", item)
