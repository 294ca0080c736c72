"""Refusals: what must hold before the release engine acts, whatever has been decided. Pure."""

from __future__ import annotations

from gpu_fleet.core.errors import ClusterBusy, ReleaseError
from gpu_fleet.core.releases.decide import Action, Decision
from gpu_fleet.core.releases.request import ReleaseRequest
from gpu_fleet.core.releases.state import Observation, Reason, classify
from gpu_fleet.core.releases.storage import ReleaseStatus, StoredRevision

#: Number of a revision and UID of its Secret: what a caller has judged.
Judged = tuple[int, str]


def refuse(decision: Decision) -> None:
    """
    :raises ReleaseError: the decision is to stop: a person is needed.
    :raises ClusterBusy: the decision is to wait for another writer.
    """
    if decision.action is Action.STOP:
        raise ReleaseError(decision.message, reason=decision.reason)
    if decision.action is Action.WAIT:
        raise ClusterBusy(f"{decision.message}; run again when it has ended", reason=decision.reason)


def refuse_before_lease(decision: Decision) -> None:
    """As :func:`refuse`, except that a held Lease is no refusal yet: the engine waits for it when it takes it."""
    if decision.reason != Reason.HELD:
        refuse(decision)


def refuse_other_chart(seen: Observation, request: ReleaseRequest, chart: str) -> None:
    """Refuse to replace another chart's release: where two DAGs chose the same name, this upgrade would delete the
    objects of the other chart.

    :param chart: the wanted chart's name in its archive; a registry may list it under another name. Empty: unknown.
    :raises ReleaseError: ``OtherChart``, unless the release may be adopted.
    """
    newest = seen.newest
    if newest is None or newest.status is ReleaseStatus.UNINSTALLED or request.policy.adopt:
        return
    if chart and seen.chart and seen.chart != chart:
        raise ReleaseError(
            f"{request}: revision {newest.revision} is of chart {seen.chart!r}, and chart {chart!r} is "
            "wanted; choose another release_name, uninstall the release, or set adopt to replace its chart",
            reason="OtherChart",
        )


def refuse_change(first: Observation, now: Observation) -> None:
    """
    :param first: what was seen before the Lease was taken.
    :param now: what is seen while it is held.
    :raises ClusterBusy: the previous holder of the Lease has changed what was to be undone.
    """
    before, after = ((o.newest.revision, o.newest.uid, o.newest.status) if o.newest else None for o in (first, now))
    if before == after:
        return
    raise ClusterBusy(
        f"{now}: another run or person changed it while this task waited for its Lease: {_found(now)}; "
        "this task changes nothing: run it again to judge the new state",
        reason="ReleaseChanged",
    )


def overtaken(seen: Observation, judged: Judged) -> str:
    """Why a judged revision must be left alone by now; empty if it is still deployed and still unproven.

    To be asked again while the Lease is held: the previous holder may have installed something newer.
    """
    newest = seen.newest
    if (
        newest is not None
        and newest == seen.candidate
        and seen.deployed == (newest,)
        and (newest.revision, newest.uid) == judged
        and not seen.ledger.candidate_is_proven
    ):
        return ""
    return f"{seen}: revision {judged[0]} was judged, but now {_found(seen)}; it is left alone"


def candidate_of(seen: Observation) -> StoredRevision:
    """The ledger's candidate, if it is the newest and the only deployed revision.

    :raises ReleaseError: ``NotTheCandidate``: what was observed of the workloads proves nothing about the candidate.
    """
    stored, newest = seen.candidate, seen.newest
    if stored is None or newest is None or stored.revision != newest.revision or seen.deployed != (newest,):
        known = f"revision {seen.ledger.candidate.revision}" if seen.ledger.candidate else "nothing"
        raise ReleaseError(
            f"{seen}: the ledger's candidate is {known}, but {_found(seen)}; install the release again before "
            "proving it",
            reason="NotTheCandidate",
        )
    return stored


def refuse_other_candidate(seen: Observation, judged: Judged) -> None:
    """
    :raises ReleaseError: the judged revision is not the candidate, or the candidate is not what is deployed.
    """
    stored = candidate_of(seen)
    if (stored.revision, stored.uid) != judged:
        raise ReleaseError(
            f"{seen}: revision {judged[0]} was judged, but revision {stored.revision} is the candidate now; "
            "clear the install task and run again",
            reason="CandidateChanged",
        )


def refuse_rollback(seen: Observation, request: ReleaseRequest, revision: int) -> None:
    """
    :raises ClusterBusy: another writer is changing the release.
    :raises ReleaseError: that revision is not stored or never worked, or the release is not ours.
    """
    finding = classify(seen, None, adopt=request.policy.adopt)
    if finding.reason in {Reason.HELD, Reason.IN_PROGRESS}:
        raise ClusterBusy(f"{finding.message}; run again when it has ended", reason=finding.reason)
    if finding.reason in {Reason.NOT_OURS, Reason.FOREIGN_REVISION, Reason.UNREADABLE}:
        raise ReleaseError(finding.message, reason=finding.reason)
    target = next((item for item in seen.revisions if item.revision == revision), None)
    if target is None:
        kept = ", ".join(str(item.revision) for item in seen.revisions) or "none"
        raise ReleaseError(
            f"{seen}: revision {revision} is not in Helm's history ({kept}); name one that is",
            reason="TargetPruned",
        )
    if target.status not in {ReleaseStatus.DEPLOYED, ReleaseStatus.SUPERSEDED}:
        raise ReleaseError(
            f"{seen}: revision {revision} is {target.status} and was never deployed successfully; name another one",
            reason="TargetFailed",
        )


def shows_revision(seen: Observation, revision: int) -> bool:
    """Whether the deployed revision is that one, or our copy of it."""
    newest, entry = seen.newest, seen.ledger.candidate
    if newest is None or seen.deployed != (newest,):
        return False
    copied = seen.candidate == newest and entry is not None and entry.copy_of == revision
    return newest.revision == revision or copied


def _found(seen: Observation) -> str:
    return f"revision {seen.newest.revision} is {seen.newest.status}" if seen.newest else "there is no release"
