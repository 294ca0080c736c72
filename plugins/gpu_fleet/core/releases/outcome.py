"""What a call of the release engine found or did."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.releases.leftovers import Leftover
from gpu_fleet.core.releases.objects import crds, passing, readable_manifest, workloads
from gpu_fleet.core.releases.state import Observation


@dataclass(frozen=True)
class Outcome:
    """What a call found or did; JSON-able through :meth:`to_json`.

    :ivar revision: the newest revision; ``None`` if there is no release.
    :ivar actions: what was done, in order; empty if nothing was written.
    :ivar proven: the deployed revision is the ledger's proven one.
    :ivar passing: those of the workloads that the cluster deletes once they are done (Jobs with a ttl).
    :ivar leftovers: of an uninstall: what still exists.
    :ivar history: the revisions that Helm keeps, oldest first, as ``<revision> <status>``.
    :ivar drift: differences between manifest and cluster that were found and not corrected.
    :ivar manifest: of the deployed revision, for people (Secrets hidden).
    """

    release: str
    namespace: str
    revision: int | None = None
    digest: str = ""
    secret_uid: str = ""
    proven: bool = False
    actions: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    crds: tuple[str, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    manifest: str = ""
    history: tuple[str, ...] = ()
    drift: tuple[str, ...] = ()
    passing: tuple[str, ...] = ()

    @property
    def terminating(self) -> bool:
        """Whether an uninstall has left objects that are still being deleted."""
        return any(item.terminating for item in self.leftovers)

    def to_json(self) -> dict[str, Any]:
        """Without the manifest, which is shown as a rendered field."""
        return {
            "release": self.release,
            "namespace": self.namespace,
            "revision": self.revision,
            "digest": self.digest,
            "secretUid": self.secret_uid,
            "proven": self.proven,
            "actions": list(self.actions),
            "workloads": list(self.workloads),
            "passing": list(self.passing),
            "crds": list(self.crds),
            "leftovers": [str(item) for item in self.leftovers],
            "history": list(self.history),
            "drift": list(self.drift),
        }


def outcome_of(seen: Observation, manifest: str, actions: Iterable[str]) -> Outcome:
    """The outcome of a call after which storage shows this.

    :param manifest: of the newest revision.
    """
    newest = seen.newest
    if newest is None:
        return Outcome(seen.release, seen.namespace, actions=tuple(actions))
    return Outcome(
        seen.release,
        seen.namespace,
        newest.revision,
        newest.digest,
        newest.uid,
        seen.ledger.candidate_is_proven,
        tuple(actions),
        workloads(manifest, seen.namespace),
        crds(manifest),
        manifest=readable_manifest(manifest),
        history=tuple(f"{item.revision} {item.status}" for item in seen.revisions),
        drift=tuple(str(item) for item in seen.drift or ()),
        passing=passing(manifest, seen.namespace),
    )
