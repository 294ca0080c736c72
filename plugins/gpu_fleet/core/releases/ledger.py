"""The ledger: what we did to a release and which revision was proven good. One ConfigMap per release, in its namespace.

Helm's history does not distinguish a healthy revision from one that merely was superseded, and "the previous revision"
may be one that never worked. So the target of every rollback comes from here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from gpu_fleet.core.kubernetes.names import LABEL_COMPONENT
from gpu_fleet.core.releases.storage import StoredRevision

COMPONENT = "ledger"
FIELD_MANAGER = "gpu-fleet-ledger"


@dataclass(frozen=True)
class Entry:
    """One revision in the ledger.

    :ivar uid: UID of the revision's Secret; with the revision number it identifies one revision for good.
    :ivar when: RFC 3339 time.
    :ivar run: ``<dag_id>/<run_id>`` that made the revision (of the proven entry: that proved it); empty if unknown.
    :ivar copy_of: for a revision made by a rollback: the revision it is a copy of.
    """

    revision: int
    digest: str
    uid: str
    when: str
    run: str
    copy_of: int | None = None

    def is_revision(self, stored: StoredRevision) -> bool:
        return self.revision == stored.revision and self.uid == stored.uid


@dataclass(frozen=True)
class Intent:
    """Written before a helm command starts, so that a later run can distinguish a dead operation of ours from a
    person's.

    :ivar action: ``install``, ``upgrade``, ``rollback`` or ``uninstall``.
    :ivar revision: the revision number that the command will create (for an uninstall: the newest one).
    :ivar digest: the content digest that it will carry.
    :ivar base_revision: and ``base_uid``: the newest revision when the command started. It was judged ours then;
        without this note a command that dies before it writes would make that revision look like a person's.
    :ivar content: fingerprint of what the command will store (``storage.fingerprint``); empty: not known.
    :ivar objects: for an uninstall: everything the release ever created, as ``apiVersion/Kind/namespace/name``; storage
        is gone afterwards, and leftovers could not be found without it.
    """

    action: str
    revision: int
    digest: str
    when: str
    run: str
    copy_of: int | None = None
    base_revision: int | None = None
    base_uid: str = ""
    objects: tuple[str, ...] = ()
    content: str = ""

    def made(self, stored: StoredRevision) -> bool:
        """Whether a stored revision is the one that this intent announced.

        Number and label alone do not show it: if our command died before it wrote, the next revision of a person gets
        that number, and Helm copies the label from the one before. The content decides, where it is known.
        """
        alike = not self.content or not stored.content or self.content == stored.content
        return alike and self.revision == stored.revision and self.digest == stored.digest

    def began_at(self, stored: StoredRevision) -> bool:
        """Whether a stored revision was the newest one when the command started."""
        return self.base_revision == stored.revision and self.base_uid == stored.uid


@dataclass(frozen=True)
class Ledger:
    """What the ConfigMap holds.

    :ivar version: its resourceVersion; empty if it does not exist yet.
    """

    candidate: Entry | None = None
    proven: Entry | None = None
    intent: Intent | None = None
    version: str = ""

    @property
    def empty(self) -> bool:
        return self.candidate is None and self.proven is None and self.intent is None

    def knows(self, stored: StoredRevision) -> bool:
        """Whether a revision was made by us."""
        if any(entry is not None and entry.is_revision(stored) for entry in (self.candidate, self.proven)):
            return True
        return self.intent is not None and (self.intent.made(stored) or self.intent.began_at(stored))

    def intending(self, intent: Intent) -> Ledger:
        """The ledger before a command. An install starts a new history: no rollback can reach an older one."""
        if intent.action == "install":
            return replace(self, intent=intent, candidate=None, proven=None)
        return replace(self, intent=intent)

    def with_candidate(self, entry: Entry) -> Ledger:
        """The ledger after a command whose outcome storage has confirmed.

        A rollback's revision is Helm's copy of a proven one: it replaces the proven one here, because the original
        will be pruned from the history first.
        """
        proven = self.proven
        if proven is not None and entry.copy_of == proven.revision and entry.digest == proven.digest:
            proven = replace(proven, revision=entry.revision, uid=entry.uid, copy_of=entry.copy_of)
        return replace(self, candidate=entry, proven=proven, intent=None)

    def with_proven(self, when: str, run: str) -> Ledger:
        """The ledger once the candidate has been proven."""
        if self.candidate is None:
            raise ValueError("there is no candidate to be proven")
        return replace(self, proven=replace(self.candidate, when=when, run=run))

    @property
    def candidate_is_proven(self) -> bool:
        return (
            self.candidate is not None
            and self.proven is not None
            and (self.candidate.revision, self.candidate.uid) == (self.proven.revision, self.proven.uid)
        )


def rfc3339(epoch: float) -> str:
    """Epoch seconds as the ledger writes times: RFC 3339, in whole seconds, with Z."""
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def config_map_name(release: str) -> str:
    return f"gpu-fleet-release-{release}"


def parse_ledger(config_map: Mapping[str, Any] | None) -> Ledger:
    """The ledger in a ConfigMap, or an empty one.

    :raises ValueError: if the content cannot be read; what was proven must not be guessed then.
    """
    if config_map is None:
        return Ledger()
    data = config_map.get("data") or {}
    metadata = config_map.get("metadata") or {}
    try:
        return Ledger(
            candidate=_entry(data.get("candidate")),
            proven=_entry(data.get("proven")),
            intent=_intent(data.get("intent")),
            version=str(metadata.get("resourceVersion", "")),
        )
    except (TypeError, KeyError, ValueError) as error:
        where = f"{metadata.get('namespace')}/{metadata.get('name')}"
        raise ValueError(f"ledger ConfigMap {where} cannot be read: {error}") from error


def render_ledger(ledger: Ledger, release: str, namespace: str) -> dict[str, Any]:
    """The ConfigMap of a ledger; with ``resourceVersion`` (compare and swap) unless it is new."""
    metadata: dict[str, Any] = {
        "name": config_map_name(release),
        "namespace": namespace,
        "labels": {LABEL_COMPONENT: COMPONENT, "gpu-fleet.io/release": release},
    }
    if ledger.version:
        metadata["resourceVersion"] = ledger.version
    parts = {"candidate": ledger.candidate, "proven": ledger.proven, "intent": ledger.intent}
    data = {key: json.dumps(_plain(part), sort_keys=True) for key, part in parts.items() if part is not None}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _plain(part: Entry | Intent) -> dict[str, Any]:
    value = {key: item for key, item in vars(part).items() if item not in (None, (), "")}
    return {key: list(item) if isinstance(item, tuple) else item for key, item in value.items()}


def _entry(text: str | None) -> Entry | None:
    if not text:
        return None
    value = json.loads(text)
    return Entry(
        revision=int(value["revision"]),
        digest=str(value.get("digest", "")),
        uid=str(value["uid"]),
        when=str(value.get("when", "")),
        run=str(value.get("run", "")),
        copy_of=int(value["copy_of"]) if "copy_of" in value else None,
    )


def _intent(text: str | None) -> Intent | None:
    if not text:
        return None
    value = json.loads(text)
    return Intent(
        action=str(value["action"]),
        revision=int(value["revision"]),
        digest=str(value.get("digest", "")),
        when=str(value.get("when", "")),
        run=str(value.get("run", "")),
        copy_of=int(value["copy_of"]) if "copy_of" in value else None,
        base_revision=int(value["base_revision"]) if "base_revision" in value else None,
        base_uid=str(value.get("base_uid", "")),
        objects=tuple(str(item) for item in value.get("objects", ())),
        content=str(value.get("content", "")),
    )
