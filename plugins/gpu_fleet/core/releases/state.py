"""What was found: from an observation of storage, ledger and Lease to one of eight states.

The states are named after Flux's (fluxcd/helm-controller ``internal/reconcile/state.go``), with Drifted and Unproven
added. ``classify`` is pure and total.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from gpu_fleet.core.releases.drift import Difference
from gpu_fleet.core.releases.ledger import Intent, Ledger
from gpu_fleet.core.releases.storage import PENDING, UNFINISHED, ReleaseStatus, StoredRevision


class ReleaseState(StrEnum):
    """The state of a release, compared with the wanted content."""

    ABSENT = "Absent"  # no revision in storage
    UNMANAGED = "Unmanaged"  # made by a person or another program, or unreadable
    LOCKED = "Locked"  # an operation was started and not finished, or is in progress
    FAILED = "Failed"  # the newest revision failed, or not exactly one is deployed
    OUT_OF_SYNC = "OutOfSync"  # deployed by us, other content than wanted
    DRIFTED = "Drifted"  # the wanted content, but objects in the cluster differ
    UNPROVEN = "Unproven"  # the wanted content, not yet proven to work
    IN_SYNC = "InSync"  # the wanted content, proven


class Reason(StrEnum):
    """Why a release is in its state; one reason belongs to exactly one state (``STATE_OF``)."""

    NO_RELEASE = "NoRelease"
    UNINSTALLED = "Uninstalled"
    UNREADABLE = "StorageUnreadable"
    NOT_OURS = "NotOurs"
    FOREIGN_REVISION = "ForeignRevision"
    HELD = "HeldByAnother"
    IN_PROGRESS = "OperationInProgress"
    UNINSTALLING = "Uninstalling"
    PENDING_INSTALL = "PendingInstall"
    PENDING_CHANGE = "PendingChange"
    TWO_DEPLOYED = "SeveralDeployed"
    NONE_DEPLOYED = "NoneDeployed"
    FIRST_INSTALL_FAILED = "FirstInstallFailed"
    REVISION_FAILED = "RevisionFailed"
    DIGEST_DIFFERS = "DigestDiffers"
    OBJECTS_DIFFER = "ObjectsDiffer"
    NOT_PROVEN = "NotProven"
    PROVEN = "Proven"


STATE_OF: dict[Reason, ReleaseState] = {
    Reason.NO_RELEASE: ReleaseState.ABSENT,
    Reason.UNINSTALLED: ReleaseState.ABSENT,
    Reason.UNREADABLE: ReleaseState.UNMANAGED,
    Reason.NOT_OURS: ReleaseState.UNMANAGED,
    Reason.FOREIGN_REVISION: ReleaseState.UNMANAGED,
    Reason.HELD: ReleaseState.LOCKED,
    Reason.IN_PROGRESS: ReleaseState.LOCKED,
    Reason.UNINSTALLING: ReleaseState.LOCKED,
    Reason.PENDING_INSTALL: ReleaseState.LOCKED,
    Reason.PENDING_CHANGE: ReleaseState.LOCKED,
    Reason.TWO_DEPLOYED: ReleaseState.FAILED,
    Reason.NONE_DEPLOYED: ReleaseState.FAILED,
    Reason.FIRST_INSTALL_FAILED: ReleaseState.FAILED,
    Reason.REVISION_FAILED: ReleaseState.FAILED,
    Reason.DIGEST_DIFFERS: ReleaseState.OUT_OF_SYNC,
    Reason.OBJECTS_DIFFER: ReleaseState.DRIFTED,
    Reason.NOT_PROVEN: ReleaseState.UNPROVEN,
    Reason.PROVEN: ReleaseState.IN_SYNC,
}

#: A pending operation, or an uninstall, that is not ours and is younger than this (seconds) may be a person's running
#: helm, whose own default time-out is five minutes: wait for it instead of "recovering" it.
FOREIGN_GRACE_SECONDS = 330.0


@dataclass(frozen=True)
class Observation:
    """Everything that was read about one release. Status words are the payloads' where a payload was read.

    :ivar revisions: oldest first.
    :ivar holder: identity of another worker that holds the Lease and seems alive.
    :ivar unreadable: why a payload could not be decoded, if one could not.
    :ivar chart: name of the newest revision's chart; empty if it was not read.
    :ivar same_content: the newest revision's chart and values are the wanted ones (read from its payload).
    :ivar drift: differences between the manifest and the cluster; ``None`` if they were not looked for.
    :ivar now: epoch seconds of the look.
    :ivar lacking: what the proven revision's values lack of what living nodes need: then it is no target.
    """

    release: str
    namespace: str
    revisions: tuple[StoredRevision, ...] = ()
    ledger: Ledger = field(default_factory=Ledger)
    holder: str | None = None
    unreadable: str | None = None
    chart: str = ""
    same_content: bool = False
    drift: tuple[Difference, ...] | None = None
    now: float = 0.0
    lacking: tuple[str, ...] = ()

    @property
    def newest(self) -> StoredRevision | None:
        return self.revisions[-1] if self.revisions else None

    @property
    def deployed(self) -> tuple[StoredRevision, ...]:
        return tuple(item for item in self.revisions if item.status is ReleaseStatus.DEPLOYED)

    @property
    def proven(self) -> StoredRevision | None:
        """The proven revision, if it is still in storage."""
        entry = self.ledger.proven
        if entry is None:
            return None
        return next((item for item in self.revisions if entry.is_revision(item)), None)

    @property
    def candidate(self) -> StoredRevision | None:
        """The candidate, if it is still in storage."""
        entry = self.ledger.candidate
        if entry is None:
            return None
        return next((item for item in self.revisions if entry.is_revision(item)), None)

    @property
    def recorded(self) -> bool:
        """Whether the ledger names the newest revision as its candidate and no operation as unfinished."""
        return self.newest is not None and self.candidate == self.newest and self.ledger.intent is None

    def shows(self, intent: Intent) -> bool:
        """Whether the newest revision is what that operation was to make, deployed, and nothing else is."""
        newest = self.newest
        return newest is not None and self.deployed == (newest,) and intent.made(newest)

    def __str__(self) -> str:
        return f"release {self.namespace}/{self.release}"


@dataclass(frozen=True)
class Finding:
    """A state with its reason and a sentence for people."""

    reason: Reason
    message: str

    @property
    def state(self) -> ReleaseState:
        return STATE_OF[self.reason]


def classify(seen: Observation, wanted: str | None, *, adopt: bool = False) -> Finding:
    """The state of a release.

    :param wanted: content digest that is wanted; ``None``: whatever the ledger's candidate has.
    :param adopt: treat revisions that we did not make as ours.
    """
    for rule in _RULES:
        finding = rule(seen, wanted, adopt)
        if finding is not None:
            return finding
    return _judge_content(seen, wanted)


def _held(seen: Observation, _wanted: str | None, _adopt: bool) -> Finding | None:
    if seen.holder is None:
        return None
    return Finding(Reason.HELD, f"{seen} is being changed by {seen.holder}")


def _nothing(seen: Observation, _wanted: str | None, _adopt: bool) -> Finding | None:
    newest = seen.newest
    if newest is None:
        return Finding(Reason.NO_RELEASE, f"{seen} does not exist")
    if newest.status is ReleaseStatus.UNINSTALLED:
        return Finding(Reason.UNINSTALLED, f"{seen} was uninstalled; only its history is left")
    return None


def _unreadable(seen: Observation, _wanted: str | None, _adopt: bool) -> Finding | None:
    if seen.unreadable is None:
        return None
    return Finding(Reason.UNREADABLE, f"{seen}: {seen.unreadable}; repair or delete that Secret")


def _maybe_running(seen: Observation, newest: StoredRevision) -> Finding | None:
    """For an operation that is not ours: a person's helm may still be running."""
    if newest.modified is None or seen.now - newest.modified >= FOREIGN_GRACE_SECONDS:
        return None
    age = max(0, int(seen.now - newest.modified))
    return Finding(
        Reason.IN_PROGRESS,
        f"{seen}: revision {newest.revision} has been {newest.status} for {age} s and was not started by gpu-fleet; "
        "a manual helm command may still be running",
    )


def _foreign(seen: Observation, _wanted: str | None, adopt: bool) -> Finding | None:
    newest = seen.newest
    if newest is None or seen.ledger.knows(newest):
        return None
    if newest.status in PENDING and (running := _maybe_running(seen, newest)):
        return running
    if adopt:
        return None
    if seen.ledger.empty:
        if newest.digest:  # the ledger was lost; only we write that label
            return None
        return Finding(
            Reason.NOT_OURS,
            f"{seen} exists (revision {newest.revision}, {newest.status}) and was not installed by gpu-fleet; "
            "choose another release_name, uninstall it, or set adopt to take it over",
        )
    if seen.same_content and newest.status is ReleaseStatus.DEPLOYED:
        return None  # a person has changed our release to the wanted content
    return Finding(
        Reason.FOREIGN_REVISION,
        f"{seen}: revision {newest.revision} ({newest.status}) was not made by gpu-fleet; "
        "it is left alone: roll it back by hand, or set adopt to take it over",
    )


def _unfinished(seen: Observation, _wanted: str | None, _adopt: bool) -> Finding | None:
    newest = seen.newest
    if newest is None or newest.status not in UNFINISHED:
        return None
    found = f"{seen}: revision {newest.revision} is {newest.status}; its operation died"
    if newest.status is ReleaseStatus.UNINSTALLING:
        # The revision may be ours and its uninstall a person's: the ledger says whether we started one.
        intent = seen.ledger.intent
        ours = intent is not None and intent.action == "uninstall"
        return (None if ours else _maybe_running(seen, newest)) or Finding(Reason.UNINSTALLING, found)
    if newest.status is ReleaseStatus.PENDING_INSTALL:
        return Finding(Reason.PENDING_INSTALL, found)
    return Finding(Reason.PENDING_CHANGE, found)


def _several(seen: Observation, _wanted: str | None, _adopt: bool) -> Finding | None:
    if len(seen.deployed) < 2:
        return None
    numbers = ", ".join(str(item.revision) for item in seen.deployed)
    return Finding(
        Reason.TWO_DEPLOYED,
        f"{seen}: revisions {numbers} are all deployed, which happens if two helms write at the same time",
    )


def _failed(seen: Observation, _wanted: str | None, _adopt: bool) -> Finding | None:
    newest = seen.newest
    if newest is None or (newest.status is ReleaseStatus.DEPLOYED and len(seen.deployed) == 1):
        return None
    if newest.status is not ReleaseStatus.FAILED:
        return Finding(Reason.NONE_DEPLOYED, f"{seen}: the newest revision {newest.revision} is {newest.status}")
    if all(item.status is ReleaseStatus.FAILED for item in seen.revisions) and newest.revision == 1:
        return Finding(Reason.FIRST_INSTALL_FAILED, f"{seen}: its first install failed")
    return Finding(Reason.REVISION_FAILED, f"{seen}: revision {newest.revision} failed")


_RULES = (_held, _nothing, _unreadable, _foreign, _unfinished, _several, _failed)


def _judge_content(seen: Observation, wanted: str | None) -> Finding:
    """The newest revision is the only deployed one and ours, equal to what is wanted, or to be adopted."""
    newest = seen.revisions[-1]
    known = seen.ledger.candidate
    target = wanted if wanted is not None else (known.digest if known is not None else newest.digest)
    if newest.digest != target:
        return Finding(
            Reason.DIGEST_DIFFERS,
            f"{seen}: revision {newest.revision} has content {newest.digest[:10] or 'without digest'}, "
            f"wanted is {target[:10]}",
        )
    if wanted is not None and not seen.same_content and not seen.ledger.knows(newest):
        # Helm copies the label of our last revision to a person's next one: then it says nothing about the content.
        return Finding(
            Reason.DIGEST_DIFFERS,
            f"{seen}: revision {newest.revision} carries the wanted digest, but the ledger does not know it, and its "
            "chart or values differ: it was not made by gpu-fleet",
        )
    if seen.drift:
        shown = "; ".join(str(item) for item in seen.drift[:5]) + ("; …" if len(seen.drift) > 5 else "")
        return Finding(Reason.OBJECTS_DIFFER, f"{seen}: the cluster differs from the manifest: {shown}")
    proven = seen.ledger.proven
    if proven is None or not proven.is_revision(newest):
        return Finding(Reason.NOT_PROVEN, f"{seen}: revision {newest.revision} is deployed, not yet proven")
    return Finding(Reason.PROVEN, f"{seen}: revision {newest.revision} is deployed and proven")
