"""Upgrade a release to the wanted chart and values."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.releases.ledger import Intent
from gpu_fleet.core.releases.state import Observation
from gpu_fleet.core.releases.storage import fingerprint
from gpu_fleet.hooks.helm.actions.base import ActionContext, history_limit
from gpu_fleet.hooks.helm.actions.failures import explain_hooks, failure_of, with_cause
from gpu_fleet.hooks.helm.actions.record import record
from gpu_fleet.hooks.helm.binary.command import upgrade_arguments
from gpu_fleet.hooks.helm.gone_kinds import mend_stored
from gpu_fleet.hooks.helm.preparation import Package

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Upgrade:
    """Upgrade over whatever the newest revision is."""

    package: Package

    def run(self, here: ActionContext, seen: Observation) -> GpuFleetError | None:
        return upgrade(here, seen, self.package, "upgrade")


def upgrade(here: ActionContext, seen: Observation, package: Package, action: str) -> GpuFleetError | None:
    """``helm upgrade --install``, for an install as well.

    :param action: ``upgrade`` or ``install``, for the ledger.
    :returns: see :meth:`ReleaseAction.run`.
    """
    expected = seen.newest.revision + 1 if seen.newest is not None else 1
    mend_stored(here.client, here.storage, (*seen.deployed, seen.newest))
    content = fingerprint(*package.declared, here.request.values) if package.declared is not None else ""
    intent = Intent(action, expected, here.request.digest, here.now(), here.run, content=content)
    ledger = here.intend(seen, intent)
    limit = history_limit(seen, here.request)
    done = here.run_helm(
        upgrade_arguments(here.request, package.chart, package.values, here.helm.version, history=limit)
    )
    after = here.storage.observe(here.request)
    if after.shows(intent):
        here.done.append(f"{action} {expected}")
        record(here, replace(after, ledger=ledger))
        return None
    what = f"{action} of {here.request} to revision {expected}"
    error = with_cause(here, failure_of(here, what, done, after, package.rendered), after)
    log.error("%s", error)
    if after.newest == seen.newest and seen.ledger.intent is None:
        here.storage.write_ledger(replace(ledger, intent=None))  # helm made no revision: nothing is unfinished
    if not here.stopped:
        explain_hooks(here, error)
    return error
