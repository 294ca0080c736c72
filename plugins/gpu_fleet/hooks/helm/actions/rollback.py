"""Roll a release back to a stored revision, named by its number."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpu_fleet.core.errors import ReleaseError, TransientError
from gpu_fleet.core.releases.ledger import Intent
from gpu_fleet.core.releases.state import Observation
from gpu_fleet.core.releases.storage import payload_content
from gpu_fleet.hooks.helm.actions.base import ActionContext, history_limit
from gpu_fleet.hooks.helm.actions.failures import explain_hooks, failure_of
from gpu_fleet.hooks.helm.actions.record import record
from gpu_fleet.hooks.helm.binary.command import rollback_arguments
from gpu_fleet.hooks.helm.gone_kinds import mend_stored, refuse_gone_target


@dataclass(frozen=True)
class Rollback:
    """Roll back to one revision. If that fails, no other revision is tried.

    :ivar target: number of a revision that is in storage.
    """

    target: int

    def run(self, here: ActionContext, seen: Observation) -> None:
        """
        :raises TransientError: helm was interrupted; a retry starts from the same target.
        :raises ReleaseError: ``KindsGone`` or ``RollbackFailed``.
        """
        goal = next(item for item in seen.revisions if item.revision == self.target)
        expected = seen.revisions[-1].revision + 1
        mend_stored(here.client, here.storage, (*seen.deployed, seen.newest))
        refuse_gone_target(here.client, here.storage, goal)
        mend_stored(here.client, here.storage, (goal,))
        payload = here.storage.payload(goal)
        content = payload_content(payload) if payload is not None else ""
        intent = Intent("rollback", expected, goal.digest, here.now(), here.run, copy_of=self.target, content=content)
        ledger = here.intend(seen, intent)
        limit = history_limit(seen, here.request)
        done = here.run_helm(rollback_arguments(here.request, self.target, here.helm.version, history=limit))
        after = here.storage.observe()
        if after.shows(intent):
            here.done.append(f"rollback {self.target}")
            record(here, replace(after, ledger=ledger), copy_of=self.target)
            return
        error = failure_of(here, f"rollback of {here.request} to revision {self.target}", done, after)
        explain_hooks(here, error)
        if isinstance(error, TransientError):
            raise error
        raise ReleaseError(
            f"{error.message}; the rollback itself failed: no other revision is tried, repair the release by hand",
            reason="RollbackFailed",
        ) from error
