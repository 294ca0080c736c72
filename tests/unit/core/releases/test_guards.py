"""What is refused whatever has been decided: each guard in each situation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpu_fleet.core.errors import ClusterBusy, ReleaseError
from gpu_fleet.core.releases.decide import Action, Decision
from gpu_fleet.core.releases.guards import (
    candidate_of,
    overtaken,
    refuse,
    refuse_before_lease,
    refuse_change,
    refuse_other_candidate,
    refuse_other_chart,
    refuse_rollback,
    shows_revision,
)
from gpu_fleet.core.releases.ledger import Entry, Ledger
from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest
from gpu_fleet.core.releases.state import Observation, Reason, ReleaseState
from gpu_fleet.core.releases.storage import ReleaseStatus, StoredRevision

S = ReleaseStatus
REQUEST = ReleaseRequest("r", "ns", ChartRef("/chart"))
ADOPTING = replace(REQUEST, policy=ReleasePolicy(adopt=True))


def revision(number: int, status: ReleaseStatus = S.DEPLOYED) -> StoredRevision:
    return StoredRevision(number, status, f"sh.helm.release.v1.r.v{number}", f"uid-{number}", "digest", 0.0)


def entry(stored: StoredRevision, copy_of: int | None = None) -> Entry:
    return Entry(stored.revision, stored.digest, stored.uid, "2026-01-01T00:00:00Z", "dag/run", copy_of)


OLD, NEW = revision(1, S.SUPERSEDED), revision(2)
JUDGED = (2, "uid-2")
HEALTHY = Observation("r", "ns", (OLD, NEW), Ledger(candidate=entry(NEW), proven=entry(OLD)), now=1000.0)


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("reason", [Reason.HELD.value, Reason.IN_PROGRESS.value])
def test_stop_and_wait_are_refused_and_a_held_lease_only_once_it_was_waited_for(action: Action, reason: str) -> None:
    decision = Decision(action, ReleaseState.LOCKED, reason, "why")
    error = {Action.STOP: ReleaseError, Action.WAIT: ClusterBusy}.get(action)
    for guard in (refuse, refuse_before_lease):
        if error is None or (guard is refuse_before_lease and reason == Reason.HELD):
            guard(decision)
            continue
        with pytest.raises(error) as caught:
            guard(decision)
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("seen", "request_", "chart", "refused"),
    [
        (replace(HEALTHY, chart="other"), REQUEST, "tiny", True),
        (replace(HEALTHY, chart="other"), ADOPTING, "tiny", False),
        (replace(HEALTHY, chart="tiny"), REQUEST, "tiny", False),
        (replace(HEALTHY, chart="other"), REQUEST, "", False),
        (replace(HEALTHY, chart=""), REQUEST, "tiny", False),
        (Observation("r", "ns"), REQUEST, "tiny", False),
        (Observation("r", "ns", (revision(1, S.UNINSTALLED),), chart="other"), REQUEST, "tiny", False),
    ],
    ids=["another chart", "adopted", "the same", "wanted unknown", "deployed unknown", "absent", "uninstalled"],
)
def test_another_charts_release_is_not_replaced(
    seen: Observation, request_: ReleaseRequest, chart: str, refused: bool
) -> None:
    if not refused:
        refuse_other_chart(seen, request_, chart)
        return
    with pytest.raises(ReleaseError, match="'other'") as caught:
        refuse_other_chart(seen, request_, chart)
    assert caught.value.reason == "OtherChart"


CHANGED = {
    "a newer revision": replace(HEALTHY, revisions=(OLD, NEW, revision(3))),
    "another status": replace(HEALTHY, revisions=(OLD, revision(2, S.FAILED))),
    "reinstalled": replace(HEALTHY, revisions=(OLD, replace(NEW, uid="uid-x"))),
    "gone": replace(HEALTHY, revisions=()),
}


@pytest.mark.parametrize("now", CHANGED.values(), ids=CHANGED)
def test_what_changed_while_the_lease_was_waited_for_is_not_undone(now: Observation) -> None:
    refuse_change(HEALTHY, HEALTHY)
    with pytest.raises(ClusterBusy, match="ns/r") as caught:
        refuse_change(HEALTHY, now)
    assert caught.value.reason == "ReleaseChanged"


PROVEN = replace(HEALTHY, ledger=replace(HEALTHY.ledger, proven=entry(NEW)))
TWO_DEPLOYED = replace(HEALTHY, revisions=(revision(1), NEW))
OVERTAKEN = {**CHANGED, "proven meanwhile": PROVEN, "a second one deployed": TWO_DEPLOYED}


@pytest.mark.parametrize("now", OVERTAKEN.values(), ids=OVERTAKEN)
def test_a_judgement_holds_only_for_the_deployed_unproven_candidate(now: Observation) -> None:
    assert overtaken(HEALTHY, JUDGED) == ""
    assert "revision 2 was judged" in overtaken(now, JUDGED)


@pytest.mark.parametrize("now", CHANGED.values(), ids=CHANGED)
def test_only_a_deployed_candidate_is_a_candidate(now: Observation) -> None:
    assert candidate_of(HEALTHY) == NEW
    refuse_other_candidate(HEALTHY, JUDGED)
    with pytest.raises(ReleaseError) as caught:
        refuse_other_candidate(now, JUDGED)
    assert caught.value.reason == "NotTheCandidate"


def test_another_candidate_than_the_judged_one_is_refused() -> None:
    with pytest.raises(ReleaseError, match="revision 2 is the candidate") as caught:
        refuse_other_candidate(HEALTHY, (1, "uid-1"))
    assert caught.value.reason == "CandidateChanged"


@pytest.mark.parametrize(
    ("seen", "target", "error", "reason"),
    [
        (HEALTHY, 7, ReleaseError, "TargetPruned"),
        (replace(HEALTHY, revisions=(revision(1, S.FAILED), NEW)), 1, ReleaseError, "TargetFailed"),
        (replace(HEALTHY, holder="worker@2"), 1, ClusterBusy, "HeldByAnother"),
        (replace(HEALTHY, ledger=Ledger(candidate=entry(OLD))), 1, ReleaseError, "ForeignRevision"),
        (replace(HEALTHY, unreadable="broken"), 1, ReleaseError, "StorageUnreadable"),
    ],
    ids=["pruned", "failed", "held", "a person's revision", "unreadable"],
)
def test_a_rollback_needs_a_target_that_worked_and_a_release_of_ours(
    seen: Observation, target: int, error: type[Exception], reason: str
) -> None:
    refuse_rollback(HEALTHY, REQUEST, 1)
    with pytest.raises(error) as caught:
        refuse_rollback(seen, REQUEST, target)
    assert caught.value.reason == reason  # type: ignore[attr-defined]


def test_a_revision_is_shown_by_itself_and_by_our_copy_of_it() -> None:
    copied = replace(HEALTHY, ledger=Ledger(candidate=entry(NEW, copy_of=1)))
    assert shows_revision(HEALTHY, 2)
    assert not shows_revision(HEALTHY, 1)
    assert shows_revision(copied, 1)
    assert not shows_revision(TWO_DEPLOYED, 2)
