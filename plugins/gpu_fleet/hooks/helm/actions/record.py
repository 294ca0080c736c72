"""The end of every call that changed a release: clean up, then make the deployed revision the ledger's candidate."""

from __future__ import annotations

from dataclasses import replace

from gpu_fleet.core.releases.ledger import Entry
from gpu_fleet.core.releases.state import Observation
from gpu_fleet.core.releases.storage import PENDING, ReleaseStatus
from gpu_fleet.hooks.helm.actions.base import ActionContext


def record(here: ActionContext, seen: Observation, *, copy_of: int | None = None) -> Observation:
    """Remove what failed and interrupted operations have left, then write the candidate into the ledger.

    In this order: a worker that dies in between leaves the ledger's intent, and the next run cleans up again.

    :param copy_of: the revision that a rollback has just copied.
    :returns: what was seen, with the ledger as it is now.
    """
    if seen.recorded:
        return seen
    _fail_pending(here, seen)
    if here.request.policy.prune:
        here.cleanup.prune_leaked(seen)
    return _write_candidate(here, seen, copy_of)


def _fail_pending(here: ActionContext, seen: Observation) -> None:
    """Helm leaves a revision pending for good if its operation died, also after a rollback over it."""
    for stale in seen.revisions[:-1]:
        if stale.status in PENDING:
            here.storage.unlock(stale.revision)


def _write_candidate(here: ActionContext, seen: Observation, copy_of: int | None) -> Observation:
    newest, intent, known = seen.newest, seen.ledger.intent, seen.ledger.candidate
    if newest is None or newest.status is not ReleaseStatus.DEPLOYED:
        return seen
    run = ""
    if intent is not None and intent.made(newest):
        run, copy_of = intent.run, copy_of if copy_of is not None else intent.copy_of
    entry = Entry(newest.revision, newest.digest, newest.uid, here.now(), run, copy_of)
    if known is not None and known.is_revision(newest):
        entry = known
    return replace(seen, ledger=here.storage.write_ledger(seen.ledger.with_candidate(entry)))
