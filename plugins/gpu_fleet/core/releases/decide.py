"""What to do: from a finding to one action, per goal. Pure and total; the recovery rules live here.

===========================================  ===================================================================
found                                        done (only while holding the release's Lease)
===========================================  ===================================================================
pending-install, or failed at revision 1     uninstall (by policy; CRDs and PVCs stay), then install
pending-upgrade, pending-rollback, failed    roll back to the revision that the ledger says is proven, then upgrade
the same, with no proven revision            unlock: rewrite the status to failed, upgrade, prune leaked objects
the same, proven revision no longer stored   stop: never "the previous revision"
the same, proven revision lacks what living  installing: unlock and upgrade, which has it; remediating: stop, the caller
nodes need (``ReleaseRequest.needed``)       installs the proven content anew with what it lacks
uninstalling                                 repeat the uninstall (one that we did not start: only when it is old)
several deployed                             roll back to ours (the proven one first), report
objects differ from the manifest             upgrade to the same content; fields that others own: only if forced
===========================================  ===================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from gpu_fleet.core.releases.drift import Change
from gpu_fleet.core.releases.request import Conflicts, Drift, ReleasePolicy, Remediation
from gpu_fleet.core.releases.state import Finding, Observation, Reason, ReleaseState, classify
from gpu_fleet.core.releases.storage import PENDING


class Action(StrEnum):
    """One thing to do to a release."""

    INSTALL = "Install"
    UPGRADE = "Upgrade"
    ROLLBACK = "Rollback"
    UNLOCK = "Unlock"
    UNINSTALL = "Uninstall"
    WAIT = "Wait"
    NOTHING = "Nothing"
    STOP = "Stop"


#: Actions that write, and so need the Lease.
WRITES = frozenset({Action.INSTALL, Action.UPGRADE, Action.ROLLBACK, Action.UNLOCK, Action.UNINSTALL})


class Goal(StrEnum):
    """What a task wants of a release."""

    INSTALL = "install"
    REMEDIATE = "remediate"
    UNINSTALL = "uninstall"


@dataclass(frozen=True)
class Decision:
    """An action and why.

    :ivar target: for ROLLBACK: the revision to roll back to; for UNLOCK: the revision whose status is rewritten.
    :ivar reason: CamelCase; the finding's, or ``NoProvenRevision``/``TargetPruned`` for a STOP that has no target.
    """

    action: Action
    state: ReleaseState
    reason: str
    message: str
    target: int | None = None


NO_PROVEN = "NoProvenRevision"
PRUNED = "TargetPruned"
LACKS_NEEDED = "TargetLacksNeededValues"
FIELD_CONFLICT = "FieldConflict"

_Rule = Callable[[Observation, Finding, ReleasePolicy], Decision]


def decide(goal: Goal, seen: Observation, wanted: str | None, policy: ReleasePolicy) -> Decision:
    """The one next action. After it, observe and decide again, until NOTHING, WAIT or STOP.

    :param wanted: content digest that is wanted; not used by REMEDIATE and UNINSTALL.
    """
    adopt = policy.adopt
    finding = classify(seen, wanted if goal is Goal.INSTALL else None, adopt=adopt)
    return _TABLES[goal][finding.reason](seen, finding, policy)


def _simply(action: Action) -> _Rule:
    def rule(_seen: Observation, finding: Finding, _policy: ReleasePolicy) -> Decision:
        return _decision(action, finding)

    return rule


def _decision(action: Action, finding: Finding, target: int | None = None) -> Decision:
    return Decision(action, finding.state, finding.reason.value, finding.message, target)


def _to_proven(seen: Observation, finding: Finding) -> Decision | None:
    """Roll back to the proven revision, or stop if it was pruned or would break living nodes.

    ``None`` if nothing was ever proven.
    """
    if seen.ledger.proven is None:
        return None
    if seen.proven is None:
        return Decision(
            Action.STOP,
            finding.state,
            PRUNED,
            f"{finding.message}; its proven revision {seen.ledger.proven.revision} is no longer in Helm's history, so "
            "there is nothing safe to roll back to: install a known good version by hand, or uninstall the release",
        )
    if seen.lacking:
        return Decision(
            Action.STOP,
            finding.state,
            LACKS_NEEDED,
            f"{finding.message}; its proven revision {seen.proven.revision} lacks values that every revision must "
            f"have ({'; '.join(seen.lacking)}): a rollback to it would break our nodes, or affect those of other teams",
        )
    return _decision(Action.ROLLBACK, finding, seen.proven.revision)


def _recover_first_install(seen: Observation, finding: Finding, policy: ReleasePolicy) -> Decision:
    if policy.remediation is Remediation.NONE:
        return _unlock_or_upgrade(seen, finding)
    return _decision(Action.UNINSTALL, finding)


def _unlock_or_upgrade(seen: Observation, finding: Finding) -> Decision:
    newest = seen.revisions[-1]
    if newest.status in PENDING:
        return _decision(Action.UNLOCK, finding, newest.revision)
    return _decision(Action.UPGRADE, finding)


def _recover_change(seen: Observation, finding: Finding, policy: ReleasePolicy) -> Decision:
    if policy.remediation is Remediation.UNINSTALL:
        return _decision(Action.UNINSTALL, finding)
    if policy.remediation is Remediation.ROLLBACK:
        rollback = _to_proven(seen, finding)
        # The wanted content has all that is needed: an upgrade to it breaks no node, a rollback would.
        if rollback is not None and rollback.reason != LACKS_NEEDED:
            return rollback
    return _unlock_or_upgrade(seen, finding)


def _keep_ours(seen: Observation, finding: Finding, _policy: ReleasePolicy) -> Decision:
    """Several deployed: keep the proven one, else the candidate. Helm's rollback supersedes all others."""
    deployed = {item.revision for item in seen.deployed}
    for kept in (seen.candidate, seen.proven) if seen.lacking else (seen.proven, seen.candidate):
        if kept is not None and kept.revision in deployed:
            return _decision(Action.ROLLBACK, finding, kept.revision)
    if (proven := _to_proven(seen, finding)) is not None:
        return proven
    return Decision(
        Action.STOP,
        finding.state,
        NO_PROVEN,
        f"{finding.message}, and the ledger knows none of them: roll back by hand to the one that works",
    )


def _back_to_proven(seen: Observation, finding: Finding, _policy: ReleasePolicy) -> Decision:
    rollback = _to_proven(seen, finding)
    if rollback is not None:
        return rollback
    if seen.revisions and seen.revisions[-1].status in PENDING:
        return _decision(Action.UNLOCK, finding, seen.revisions[-1].revision)
    return Decision(
        Action.STOP,
        finding.state,
        NO_PROVEN,
        f"{finding.message}; no revision was ever proven, so there is nothing to roll back to: correct the chart "
        "version or the values and run again",
    )


def _correct_drift(seen: Observation, finding: Finding, policy: ReleasePolicy) -> Decision:
    """Additions are only reported: no upgrade removes what another manager owns."""
    changes = {item.change for item in seen.drift or ()}
    correctable = changes & {Change.CHANGED, Change.DELETED}
    taken = Change.TAKEN in changes
    if policy.drift is not Drift.CORRECT or not (correctable or taken):
        return _decision(Action.NOTHING, finding)
    if taken and policy.conflicts is not Conflicts.FORCE:
        if not correctable:
            return _decision(Action.NOTHING, finding)
        return Decision(
            Action.STOP,
            finding.state,
            FIELD_CONFLICT,
            f"{finding.message}; an upgrade would correct it, but some fields belong to another field manager now: "
            "undo its change, or set conflicts to 'force'",
        )
    return _decision(Action.UPGRADE, finding)


_COMMON: dict[Reason, _Rule] = {
    Reason.UNREADABLE: _simply(Action.STOP),
    Reason.NOT_OURS: _simply(Action.STOP),
    Reason.FOREIGN_REVISION: _simply(Action.STOP),
    Reason.HELD: _simply(Action.WAIT),
    Reason.IN_PROGRESS: _simply(Action.WAIT),
    Reason.UNINSTALLING: _simply(Action.UNINSTALL),
    Reason.TWO_DEPLOYED: _keep_ours,
}

_TABLES: dict[Goal, dict[Reason, _Rule]] = {
    Goal.INSTALL: {
        **_COMMON,
        Reason.NO_RELEASE: _simply(Action.INSTALL),
        Reason.UNINSTALLED: _simply(Action.INSTALL),
        Reason.PENDING_INSTALL: _recover_first_install,
        Reason.PENDING_CHANGE: _recover_change,
        Reason.NONE_DEPLOYED: _recover_change,
        Reason.FIRST_INSTALL_FAILED: _recover_first_install,
        Reason.REVISION_FAILED: _recover_change,
        Reason.DIGEST_DIFFERS: _simply(Action.UPGRADE),
        Reason.OBJECTS_DIFFER: _correct_drift,
        Reason.NOT_PROVEN: _simply(Action.NOTHING),
        Reason.PROVEN: _simply(Action.NOTHING),
    },
    Goal.REMEDIATE: {
        **_COMMON,
        Reason.NO_RELEASE: _simply(Action.NOTHING),
        Reason.UNINSTALLED: _simply(Action.NOTHING),
        Reason.PENDING_INSTALL: _back_to_proven,
        Reason.PENDING_CHANGE: _back_to_proven,
        Reason.NONE_DEPLOYED: _back_to_proven,
        Reason.FIRST_INSTALL_FAILED: _back_to_proven,
        Reason.REVISION_FAILED: _back_to_proven,
        Reason.DIGEST_DIFFERS: _back_to_proven,
        Reason.OBJECTS_DIFFER: _back_to_proven,
        Reason.NOT_PROVEN: _back_to_proven,
        Reason.PROVEN: _simply(Action.NOTHING),
    },
    Goal.UNINSTALL: {
        **{reason: _simply(Action.UNINSTALL) for reason in Reason},
        Reason.HELD: _simply(Action.WAIT),
        Reason.IN_PROGRESS: _simply(Action.WAIT),
        Reason.NO_RELEASE: _simply(Action.NOTHING),
        Reason.NOT_OURS: _simply(Action.STOP),
        Reason.UNREADABLE: _simply(Action.STOP),
    },
}
