"""States and decisions: total over every observation, and convergent over a model of Helm that may die anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_fleet.core.releases.decide import LACKS_NEEDED, NO_PROVEN, PRUNED, Action, Decision, Goal, decide
from gpu_fleet.core.releases.drift import Change, Difference
from gpu_fleet.core.releases.ledger import Entry, Intent, Ledger
from gpu_fleet.core.releases.request import Conflicts, Drift, ReleasePolicy, Remediation
from gpu_fleet.core.releases.state import STATE_OF, Observation, Reason, ReleaseState, classify
from gpu_fleet.core.releases.storage import PENDING, ReleaseStatus, StoredRevision

S = ReleaseStatus
POLICY = ReleasePolicy()
WANTED = "d-wanted"


def revision(number: int, status: ReleaseStatus, digest: str = WANTED, uid: str = "") -> StoredRevision:
    return StoredRevision(number, status, f"sh.helm.release.v1.r.v{number}", uid or f"uid-{number}", digest, 0.0)


def entry(stored: StoredRevision, copy_of: int | None = None) -> Entry:
    return Entry(stored.revision, stored.digest, stored.uid, "2026-01-01T00:00:00Z", "dag/run", copy_of)


def seen(*revisions: StoredRevision, **fields: object) -> Observation:
    ledger = fields.pop("ledger", None)
    if ledger is None and revisions:
        ledger = Ledger(candidate=entry(revisions[-1]))
    return Observation("r", "ns", tuple(revisions), ledger or Ledger(), now=1000.0, **fields)  # type: ignore[arg-type]


OLD = revision(1, S.SUPERSEDED, "d-old")
GOOD = revision(1, S.DEPLOYED, "d-old")
PROVEN = Ledger(candidate=entry(OLD), proven=entry(OLD))


def with_newest(stored: StoredRevision, ledger: Ledger = PROVEN) -> Ledger:
    return replace(ledger, candidate=entry(stored))


NEW = revision(2, S.DEPLOYED)
DELETED, CHANGED, TAKEN, ADDED = (Difference(change, "Service ns/x") for change in Change)
SITUATIONS: dict[str, tuple[Observation, Reason, Action]] = {
    "nothing is there": (seen(), Reason.NO_RELEASE, Action.INSTALL),
    "only kept history": (seen(revision(1, S.UNINSTALLED)), Reason.UNINSTALLED, Action.INSTALL),
    "somebody else's release": (seen(revision(1, S.DEPLOYED, ""), ledger=Ledger()), Reason.NOT_OURS, Action.STOP),
    "a person upgraded after us": (
        seen(OLD, revision(2, S.DEPLOYED, "d-old"), ledger=PROVEN),
        Reason.FOREIGN_REVISION,
        Action.STOP,
    ),
    "a person installed the very content": (
        seen(revision(1, S.DEPLOYED, ""), ledger=Ledger(), same_content=True), Reason.NOT_OURS, Action.STOP,
    ),
    "a person's first install of the very content timed out": (
        seen(revision(1, S.FAILED, ""), ledger=Ledger(), same_content=True), Reason.NOT_OURS, Action.STOP,
    ),
    "a person upgraded our release to the very content": (
        seen(OLD, revision(2, S.DEPLOYED, "d-old"), ledger=PROVEN, same_content=True),
        Reason.DIGEST_DIFFERS,
        Action.UPGRADE,
    ),
    "a person installed the very content anew, in vain": (
        seen(revision(1, S.FAILED, "", uid="uid-person"), ledger=PROVEN, same_content=True),
        Reason.FOREIGN_REVISION,
        Action.STOP,
    ),
    "the ledger was lost, and the wanted content is deployed": (
        seen(revision(1, S.DEPLOYED), ledger=Ledger(), same_content=True), Reason.NOT_PROVEN, Action.NOTHING,
    ),
    "the worker died after helm's success, before the ledger entry": (
        seen(revision(1, S.DEPLOYED), ledger=Ledger(intent=Intent("install", 1, WANTED, "", ""))),
        Reason.NOT_PROVEN,
        Action.NOTHING,
    ),
    "a person's helm is running": (
        seen(OLD, replace(revision(2, S.PENDING_UPGRADE, ""), modified=900.0), ledger=PROVEN),
        Reason.IN_PROGRESS,
        Action.WAIT,
    ),
    "a person's helm died": (
        seen(OLD, replace(revision(2, S.PENDING_UPGRADE, ""), modified=10.0), ledger=PROVEN),
        Reason.FOREIGN_REVISION,
        Action.STOP,
    ),
    "the ledger was deleted": (seen(revision(3, S.DEPLOYED, "d-old"), ledger=Ledger()), Reason.DIGEST_DIFFERS,
                               Action.UPGRADE),
    "the ledger was deleted, then a person upgraded: the label is inherited": (
        seen(OLD, NEW, ledger=Ledger()), Reason.DIGEST_DIFFERS, Action.UPGRADE,
    ),
    "another worker is at it": (seen(NEW, holder="dag/run/other/1"), Reason.HELD, Action.WAIT),
    "unreadable payload": (seen(NEW, unreadable="Secret x holds no readable release"), Reason.UNREADABLE, Action.STOP),
    "killed in the first install": (seen(revision(1, S.PENDING_INSTALL)), Reason.PENDING_INSTALL, Action.UNINSTALL),
    "first install failed": (seen(revision(1, S.FAILED)), Reason.FIRST_INSTALL_FAILED, Action.UNINSTALL),
    "killed in an upgrade": (
        seen(GOOD, revision(2, S.PENDING_UPGRADE), ledger=with_newest(revision(2, S.PENDING_UPGRADE))),
        Reason.PENDING_CHANGE,
        Action.ROLLBACK,
    ),
    "killed in an upgrade, nothing proven": (
        seen(GOOD, revision(2, S.PENDING_UPGRADE)), Reason.PENDING_CHANGE, Action.UNLOCK,
    ),
    "killed in a rollback": (
        seen(OLD, revision(2, S.FAILED), revision(3, S.PENDING_ROLLBACK, "d-old"),
             ledger=with_newest(revision(3, S.PENDING_ROLLBACK))),
        Reason.PENDING_CHANGE,
        Action.ROLLBACK,
    ),
    "an upgrade failed": (
        seen(GOOD, revision(2, S.FAILED), ledger=with_newest(revision(2, S.FAILED))),
        Reason.REVISION_FAILED,
        Action.ROLLBACK,
    ),
    "an upgrade failed, nothing proven": (seen(GOOD, revision(2, S.FAILED)), Reason.REVISION_FAILED, Action.UPGRADE),
    "the proven revision was pruned": (
        seen(revision(8, S.SUPERSEDED), revision(9, S.FAILED), ledger=with_newest(revision(9, S.FAILED))),
        Reason.REVISION_FAILED,
        Action.STOP,
    ),
    "the last write of an upgrade was lost": (
        seen(OLD, revision(2, S.SUPERSEDED), ledger=with_newest(revision(2, S.SUPERSEDED))),
        Reason.NONE_DEPLOYED,
        Action.ROLLBACK,
    ),
    "an unknown status": (
        seen(OLD, revision(2, S.UNKNOWN), ledger=with_newest(revision(2, S.UNKNOWN))),
        Reason.NONE_DEPLOYED,
        Action.ROLLBACK,
    ),
    "uninstall was interrupted": (seen(revision(3, S.UNINSTALLING)), Reason.UNINSTALLING, Action.UNINSTALL),
    "a person's uninstall is running": (
        seen(replace(revision(3, S.UNINSTALLING), modified=900.0)), Reason.IN_PROGRESS, Action.WAIT,
    ),
    "our own uninstall was interrupted a moment ago": (
        seen(replace(revision(3, S.UNINSTALLING), modified=900.0),
             ledger=Ledger(candidate=entry(revision(3, S.DEPLOYED)), intent=Intent("uninstall", 3, WANTED, "", ""))),
        Reason.UNINSTALLING,
        Action.UNINSTALL,
    ),
    "a zombie came back": (
        seen(replace(OLD, status=S.DEPLOYED), NEW, ledger=with_newest(NEW)), Reason.TWO_DEPLOYED, Action.ROLLBACK,
    ),
    "another content is wanted": (seen(revision(1, S.DEPLOYED, "d-old")), Reason.DIGEST_DIFFERS, Action.UPGRADE),
    "an object was deleted": (seen(NEW, drift=(DELETED,)), Reason.OBJECTS_DIFFER, Action.UPGRADE),
    "a field was changed": (seen(NEW, drift=(CHANGED,)), Reason.OBJECTS_DIFFER, Action.UPGRADE),
    "a field was taken over": (seen(NEW, drift=(TAKEN,)), Reason.OBJECTS_DIFFER, Action.NOTHING),
    "a field was added": (seen(NEW, drift=(ADDED,)), Reason.OBJECTS_DIFFER, Action.NOTHING),
    "an object was deleted and a field taken over": (
        seen(NEW, drift=(DELETED, TAKEN)), Reason.OBJECTS_DIFFER, Action.STOP,
    ),
    "installed, no node yet": (seen(NEW), Reason.NOT_PROVEN, Action.NOTHING),
    "installed and proven": (
        seen(NEW, ledger=Ledger(candidate=entry(NEW), proven=entry(NEW))), Reason.PROVEN, Action.NOTHING,
    ),
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_situation_has_its_reason_and_its_action(situation: str) -> None:
    observation, reason, action = SITUATIONS[situation]
    finding = classify(observation, WANTED)
    assert finding.reason is reason
    assert finding.state is STATE_OF[reason]
    decision = decide(Goal.INSTALL, observation, WANTED, POLICY)
    assert decision.action is action
    assert "ns/r" in decision.message


def test_every_reason_and_every_state_occurs_in_the_situations() -> None:
    assert {reason for _, reason, _ in SITUATIONS.values()} == set(Reason)
    assert {STATE_OF[reason] for reason in Reason} == set(ReleaseState)


def test_rollback_names_the_proven_revision_and_not_the_previous_one() -> None:
    never_good = revision(2, S.SUPERSEDED, "d-bad")
    newest = revision(3, S.FAILED)
    observation = seen(OLD, never_good, newest, ledger=with_newest(newest))
    assert decide(Goal.INSTALL, observation, WANTED, POLICY).target == 1


def test_a_pruned_target_stops_with_the_revision_named() -> None:
    observation, _, _ = SITUATIONS["the proven revision was pruned"]
    decision = decide(Goal.INSTALL, observation, WANTED, POLICY)
    assert (decision.action, decision.reason) == (Action.STOP, PRUNED)
    assert "revision 1" in decision.message


# --- a target that would break what lives ----------------------------------------------------------------------------
LACKING = ("config.map.time-slicing-8",)


def test_a_broken_upgrade_is_not_rolled_back_to_a_revision_without_an_entry_in_use() -> None:
    observation = seen(OLD, NEW, ledger=with_newest(NEW))
    assert decide(Goal.REMEDIATE, observation, None, POLICY).target == 1
    decision = decide(Goal.REMEDIATE, replace(observation, lacking=LACKING), None, POLICY)
    assert (decision.action, decision.reason) == (Action.STOP, LACKS_NEEDED)
    assert "revision 1 lacks values that every revision must have (config.map.time-slicing-8)" in decision.message


@pytest.mark.parametrize(
    ("situation", "action"),
    [
        ("killed in an upgrade", Action.UNLOCK),
        ("an upgrade failed", Action.UPGRADE),
        ("killed in a rollback", Action.UNLOCK),
        ("an unknown status", Action.UPGRADE),
    ],
)
def test_an_install_goes_on_to_what_is_wanted_where_the_proven_revision_lacks_an_entry(
    situation: str, action: Action
) -> None:
    observation, _, normally = SITUATIONS[situation]
    assert normally is Action.ROLLBACK
    assert decide(Goal.INSTALL, replace(observation, lacking=LACKING), WANTED, POLICY).action is action


def test_of_two_deployed_the_one_with_what_is_in_use_stays() -> None:
    observation, _, _ = SITUATIONS["a zombie came back"]
    assert decide(Goal.INSTALL, observation, WANTED, POLICY).target == 1
    assert decide(Goal.INSTALL, replace(observation, lacking=LACKING), WANTED, POLICY).target == 2


@pytest.mark.parametrize("goal", list(Goal))
@pytest.mark.parametrize("situation", SITUATIONS)
def test_nothing_is_ever_rolled_back_to_a_proven_revision_that_lacks_something(situation: str, goal: Goal) -> None:
    observation = replace(SITUATIONS[situation][0], lacking=LACKING)
    decision = decide(goal, observation, WANTED, POLICY)
    check(decision, observation)
    proven, candidate = observation.proven, observation.candidate
    if decision.action is Action.ROLLBACK and proven is not None and proven != candidate:
        assert decision.target != proven.revision


def test_a_reinstalled_release_is_not_taken_for_the_proven_one() -> None:
    """Revision 1 again, but another Secret: a person uninstalled and installed something."""
    observation = seen(replace(GOOD, uid="uid-other"), ledger=PROVEN)
    assert classify(observation, "d-old").reason is Reason.FOREIGN_REVISION


@pytest.mark.parametrize(
    ("same", "reason"), [(False, Reason.DIGEST_DIFFERS), (True, Reason.NOT_PROVEN)], ids=["other", "same"]
)
def test_an_adopted_revision_is_judged_by_its_content_not_by_the_label_it_inherited(same: bool, reason: Reason) -> None:
    """We installed the wanted content; a person upgraded to something else, and Helm kept our label."""
    ours = revision(1, S.SUPERSEDED)
    observation = seen(ours, NEW, ledger=Ledger(candidate=entry(ours), proven=entry(ours)), same_content=same)
    assert classify(observation, WANTED, adopt=True).reason is reason


def test_two_deployed_and_none_ours_stops() -> None:
    stray = [revision(4, S.DEPLOYED, "a"), revision(5, S.DEPLOYED, "b")]
    observation = seen(*stray, ledger=Ledger(intent=Intent("upgrade", 5, "b", "", "")))
    assert decide(Goal.INSTALL, observation, WANTED, POLICY).reason == NO_PROVEN


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("goal", list(Goal))
@pytest.mark.parametrize("remediation", list(Remediation))
def test_every_goal_decides_on_every_reason(goal: Goal, reason: Reason, remediation: Remediation) -> None:
    observation = next(found for found, why, _ in SITUATIONS.values() if why is reason)
    decision = decide(goal, observation, WANTED, replace(POLICY, remediation=remediation))
    check(decision, observation)


@pytest.mark.parametrize("goal", list(Goal))
@pytest.mark.parametrize("adopt", [True, False])
def test_nobody_meddles_with_a_persons_running_uninstall(goal: Goal, adopt: bool) -> None:
    observation, _, _ = SITUATIONS["a person's uninstall is running"]
    decision = decide(goal, observation, WANTED, replace(POLICY, adopt=adopt))
    assert decision.action is Action.WAIT
    assert decision.reason == Reason.IN_PROGRESS
    assert "a manual helm command may still be running" in decision.message
    theirs = replace(observation, ledger=Ledger(candidate=entry(OLD)))
    assert decide(goal, theirs, WANTED, replace(POLICY, adopt=True)).action is Action.WAIT


def test_remediation_without_any_proven_revision_stops() -> None:
    decision = decide(Goal.REMEDIATE, seen(NEW), None, POLICY)
    assert (decision.action, decision.reason) == (Action.STOP, NO_PROVEN)


def test_remediation_of_an_unproven_revision_goes_to_the_proven_one() -> None:
    decision = decide(Goal.REMEDIATE, seen(OLD, NEW, ledger=with_newest(NEW)), None, POLICY)
    assert (decision.action, decision.target) == (Action.ROLLBACK, 1)


def test_remediation_leaves_a_proven_revision_alone() -> None:
    observation = seen(NEW, ledger=Ledger(candidate=entry(NEW), proven=entry(NEW)))
    assert decide(Goal.REMEDIATE, observation, None, POLICY).action is Action.NOTHING


@pytest.mark.parametrize("situation", SITUATIONS)
def test_remediating_twice_is_remediating_once(situation: str) -> None:
    """After its rollback the copy has taken the proven one's place."""
    observation, _, _ = SITUATIONS[situation]
    first = decide(Goal.REMEDIATE, observation, None, POLICY)
    if first.action is not Action.ROLLBACK:
        return
    helm = Helm(list(observation.revisions), observation.ledger)
    helm.obey(first, WANTED)
    assert decide(Goal.REMEDIATE, helm.look(), None, POLICY).action is Action.NOTHING


def check(decision: Decision, observation: Observation) -> None:
    """What holds of every decision."""
    stored = {item.revision for item in observation.revisions}
    assert decision.message
    match decision.action:
        case Action.ROLLBACK:
            assert decision.target in stored
            trusted = {item.revision for item in (observation.proven, observation.candidate) if item is not None}
            assert decision.target in trusted
        case Action.UNLOCK:
            newest = observation.newest
            assert newest is not None
            assert decision.target == newest.revision
            assert newest.status in PENDING
        case Action.NOTHING:
            assert decision.reason == Reason.UNINSTALLED or len(observation.deployed) <= 1
        case Action.WAIT:
            assert observation.holder is not None or decision.reason == Reason.IN_PROGRESS
        case _:
            assert decision.target is None


# --- totality --------------------------------------------------------------------------------------------------------

_ENTRY = st.builds(
    Entry,
    revision=st.integers(1, 6),
    digest=st.sampled_from(["", "d-old", WANTED]),
    uid=st.integers(1, 6).map(lambda number: f"uid-{number}"),
    when=st.just("now"),
    run=st.just("dag/run"),
    copy_of=st.none() | st.integers(1, 6),
)
_INTENT = st.builds(
    Intent,
    action=st.sampled_from(["install", "upgrade", "rollback", "uninstall"]),
    revision=st.integers(1, 6),
    digest=st.sampled_from(["", "d-old", WANTED]),
    when=st.just("now"),
    run=st.just("dag/run"),
)
_LEDGER = st.builds(
    Ledger, candidate=st.none() | _ENTRY, proven=st.none() | _ENTRY, intent=st.none() | _INTENT, version=st.just("1")
)
_REVISIONS = st.lists(
    st.tuples(
        st.sampled_from(list(ReleaseStatus)),
        st.sampled_from(["", "d-old", WANTED]),
        st.none() | st.sampled_from([1.0, 990.0]),
    ),
    max_size=6,
).map(
    lambda items: tuple(
        replace(revision(number, status, digest), modified=modified)
        for number, (status, digest, modified) in enumerate(items, 1)
    )
)
_OBSERVATION = st.builds(
    Observation,
    release=st.just("r"),
    namespace=st.just("ns"),
    revisions=_REVISIONS,
    ledger=_LEDGER,
    holder=st.none() | st.just("somebody"),
    unreadable=st.none() | st.just("Secret x holds no readable release"),
    same_content=st.booleans(),
    drift=st.none() | st.just(()) | st.just((CHANGED,)),
    now=st.just(1000.0),
)


@given(_OBSERVATION, st.sampled_from(list(Goal)), st.sampled_from(list(Remediation)), st.booleans())
@settings(max_examples=400, deadline=None)
def test_every_observation_has_a_decision(
    observation: Observation, goal: Goal, remediation: Remediation, adopt: bool
) -> None:
    decision = decide(goal, observation, WANTED, replace(POLICY, remediation=remediation, adopt=adopt))
    check(decision, observation)
    if decision.action is Action.NOTHING and goal is Goal.INSTALL:
        newest = observation.newest
        assert newest is not None
        assert observation.deployed == (newest,)
        assert newest.digest == WANTED


@pytest.mark.parametrize(
    ("drift", "policy", "action"),
    [
        ((TAKEN,), ReleasePolicy(conflicts=Conflicts.FORCE), Action.UPGRADE),
        ((DELETED, TAKEN), ReleasePolicy(conflicts=Conflicts.FORCE), Action.UPGRADE),
        ((DELETED,), ReleasePolicy(drift=Drift.WARN), Action.NOTHING),
        ((ADDED,), ReleasePolicy(conflicts=Conflicts.FORCE), Action.NOTHING),
    ],
    ids=["taken, forced", "deleted and taken, forced", "only warned of", "an addition is never taken away"],
)
def test_drift_is_corrected_by_policy(drift: tuple[Difference, ...], policy: ReleasePolicy, action: Action) -> None:
    decision = decide(Goal.INSTALL, seen(NEW, drift=drift), WANTED, policy)
    assert (decision.action, decision.state) == (action, ReleaseState.DRIFTED)


# --- convergence -----------------------------------------------------------------------------------------------------


@dataclass
class Helm:
    """A model of what helm and the engine do to storage and ledger; every command may die half-way or fail."""

    revisions: list[StoredRevision] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    uids: int = 100

    def look(self) -> Observation:
        return Observation("r", "ns", tuple(self.revisions), self.ledger, now=1e9)

    def _status(self, number: int, status: ReleaseStatus) -> None:
        self.revisions = [replace(item, status=status) if item.revision == number else item for item in self.revisions]

    def _add(self, status: ReleaseStatus, digest: str) -> StoredRevision:
        self.uids += 1
        number = self.revisions[-1].revision + 1 if self.revisions else 1
        self.revisions.append(revision(number, status, digest, f"uid-{self.uids}"))
        return self.revisions[-1]

    def obey(self, decision: Decision, wanted: str, fate: str = "well") -> None:
        """:param fate: ``well``, ``before`` (dies before helm writes), ``half`` (dies pending), ``fails``,
        ``unrecorded`` (helm is done, the engine dies before its ledger entry)."""
        number = self.revisions[-1].revision + 1 if self.revisions else 1
        match decision.action:
            case Action.INSTALL | Action.UPGRADE | Action.ROLLBACK:
                self._change(decision, wanted, number, fate)
            case Action.UNLOCK:
                self._status(self.revisions[-1].revision, S.FAILED)
            case Action.UNINSTALL:
                newest = self.revisions[-1]
                self._intend(Intent("uninstall", newest.revision, newest.digest, "", ""))
                if fate == "half":
                    self._status(newest.revision, S.UNINSTALLING)
                elif fate != "before":
                    self.revisions = []
            case _:
                raise AssertionError(decision)

    def _intend(self, intent: Intent) -> None:
        if self.revisions:
            intent = replace(intent, base_revision=self.revisions[-1].revision, base_uid=self.revisions[-1].uid)
        self.ledger = self.ledger.intending(intent)

    def _change(self, decision: Decision, wanted: str, number: int, fate: str) -> None:
        rollback = decision.action is Action.ROLLBACK
        digest = wanted
        if rollback:
            digest = next(item.digest for item in self.revisions if item.revision == decision.target)
        action = "rollback" if rollback else decision.action.value.lower()
        copy_of = decision.target if rollback else None
        self._intend(Intent(action, number, digest, "", "", copy_of))
        if fate == "before":
            return
        pending = S.PENDING_ROLLBACK if rollback else S.PENDING_UPGRADE if self.revisions else S.PENDING_INSTALL
        made = self._add(pending, digest)
        if fate == "half":
            return
        if fate == "fails":
            self._status(made.revision, S.FAILED)
            return
        for item in list(self.revisions):
            if item.status is S.DEPLOYED:
                self._status(item.revision, S.SUPERSEDED)
        self._status(made.revision, S.DEPLOYED)
        if fate == "unrecorded":
            return
        self.ledger = self.ledger.with_candidate(entry(self.revisions[-1], copy_of))

    def settle(self, wanted: str, policy: ReleasePolicy = POLICY) -> None:
        for _ in range(6):
            observation = self.look()
            decision = decide(Goal.INSTALL, observation, wanted, policy)
            check(decision, observation)
            if decision.action is Action.NOTHING:
                newest = self.revisions[-1]
                if not any(e and e.is_revision(newest) for e in (self.ledger.candidate,)):
                    self.ledger = self.ledger.with_candidate(entry(newest))
                return
            self.obey(decision, wanted)
        raise AssertionError(f"not settled: {self}")


_FATES = st.sampled_from(["well", "before", "half", "fails", "unrecorded"])


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), _FATES, st.booleans()), max_size=12), st.booleans())
@settings(max_examples=400, deadline=None)
def test_whatever_died_before_the_next_run_converges(steps: list[tuple[str, str, bool]], rollback: bool) -> None:
    policy = POLICY if rollback else replace(POLICY, remediation=Remediation.NONE)
    helm = Helm()
    for wanted, fate, prove in steps:
        decision = decide(Goal.INSTALL, helm.look(), wanted, policy)
        if decision.action is not Action.NOTHING:
            helm.obey(decision, wanted, fate)
        newest = helm.revisions[-1] if helm.revisions else None
        candidate = helm.ledger.candidate
        deployed = newest is not None and newest.status is S.DEPLOYED
        if prove and deployed and newest is not None and candidate is not None and candidate.is_revision(newest):
            helm.ledger = helm.ledger.with_proven("now", "dag/run")
    proven_before = helm.ledger.proven
    helm.settle("final", policy)
    assert [item.status for item in helm.revisions].count(S.DEPLOYED) == 1
    assert helm.revisions[-1].digest == "final"
    assert helm.ledger.candidate is not None
    assert helm.ledger.candidate.is_revision(helm.revisions[-1])
    if proven_before is not None and helm.ledger.proven is not None:
        assert helm.ledger.proven.digest == proven_before.digest
