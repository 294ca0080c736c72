"""The package's one exception tree.

::

    GpuFleetError
    ├── TransientError              a retry of the task may succeed
    │   ├── ApiUnavailable          connection refused or reset, time-out, 5xx
    │   ├── Throttled               429 (``retry_after`` in seconds)
    │   ├── Unauthorized            401: token expired or not accepted yet
    │   ├── Conflict                409: another client wrote in between
    │   │   ├── AlreadyExists
    │   │   └── FieldConflict       server-side apply: a field belongs to another manager
    │   ├── ClusterBusy             the cluster lock or a release's Lease is held by a live holder
    │   └── GateFailed              a gate, a check or a test failed for a cause that may pass
    └── PermanentError              a retry of the same task cannot help
        ├── SpecError               the cluster file or a Param is wrong (``field``, ``remedy``)
        ├── Forbidden               403: missing permission, quota, admission
        ├── NotFound                404 where the object must exist
        ├── Invalid                 400, 415, 422: the server refuses the content
        ├── ToolError               helm or kubectl missing or of an unsupported version
        ├── PrerequisiteMissing     the account or the cluster lacks what nodes or Karpenter need
        ├── ReleaseError            a Helm release needs a person (no proven target, foreign, unmanaged)
        ├── ValidationFailed        GPUs do not do what the spec promises
        ├── LeakFound               something that costs money is left
        ├── DriftFound              the cluster is not what the spec says
        ├── NeighbourConflict       another team's software and the spec cannot both serve the same GPUs
        ├── GateRefused             a gate failed for a permanent cause
        ├── GateBlind               a gate could not look: this says nothing about the objects
        └── DeadlinePassed          the absolute deadline of a wait has passed

Transient or permanent is a *type*: operators map it once onto Airflow's retry policy
(``gpu_fleet.operators.base.RETRY_POLICY``). Every message names the object and says what to do; causes are chained. The
classes' names outlive a process: they are the default reasons, and a burst's task keeps that of its failure while it is
deferred.
"""

from __future__ import annotations

from typing import Any


class GpuFleetError(Exception):
    """Base of every error this package raises on purpose.

    :param message: one sentence that names the object and the remedy.
    :param reason: CamelCase reason, as in a Kubernetes condition; defaults to the class name.
    :ivar findings: what a gate that failed has found, for whoever decides what follows.
    """

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).__name__
        self.findings: dict[str, Any] = {}


class TransientError(GpuFleetError):
    """A retry of the task may succeed."""


class PermanentError(GpuFleetError):
    """A retry of the same task cannot help: a person or another task has to act."""


class ApiUnavailable(TransientError):
    """The API did not answer usefully: connection refused or reset, time-out, 5xx."""


class Throttled(TransientError):
    """The API answered 429."""

    def __init__(self, message: str, *, reason: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, reason=reason)
        self.retry_after = retry_after


class Unauthorized(TransientError):
    """The API answered 401; a fresh token may be accepted."""


class Conflict(TransientError):
    """The API answered 409: the object changed in between."""


class AlreadyExists(Conflict):
    """The object to be created exists."""


class FieldConflict(Conflict):
    """Server-side apply was refused because another field manager owns a field."""


class ClusterBusy(TransientError):
    """The cluster lock, or a release's Lease, is held by a live holder, which the message names."""


class GateFailed(TransientError):
    """A gate's verdict is Failed for a cause that may pass: the task is retried. Its permanent sibling is
    :class:`GateRefused`."""


class SpecError(PermanentError):
    """A cluster file, a Param or an operator argument is wrong.

    :param field: dotted path of the field, for example ``nodePools[0].sharing.replicas``.
    :param remedy: what to write instead.
    :param place: where in the cluster file, ``line 12, column 5``; empty if it is in no file, or not known.
    """

    def __init__(
        self, message: str, *, field: str = "", remedy: str = "", reason: str | None = None, place: str = ""
    ) -> None:
        text = f"{field}: {message}" if field else message
        super().__init__(f"{text} ({remedy})" if remedy else text, reason=reason)
        self.field = field
        self.remedy = remedy
        self.place = place


class Forbidden(PermanentError):
    """The API answered 403: a missing permission, a quota or an admission rule; the server's message is kept.

    :param cure: what helps where a grant to this identity does not: a policy of the organization, a permissions
        boundary, a region that is not enabled; empty if a grant helps, or if that is not known.
    """

    def __init__(self, message: str, *, reason: str | None = None, cure: str = "") -> None:
        super().__init__(message, reason=reason)
        self.cure = cure


class NotFound(PermanentError):
    """The API answered 404 for something that must exist."""


class Invalid(PermanentError):
    """The API refuses the content: 400, 415, 422, or a schema error of server-side apply."""


class ToolError(PermanentError):
    """helm or kubectl is missing or of an unsupported version."""


class PrerequisiteMissing(PermanentError):
    """The account or the cluster lacks what nodes or Karpenter need; the message says how to create each."""


class ReleaseError(PermanentError):
    """A Helm release is in a state that only a person may resolve."""


class ValidationFailed(PermanentError):
    """GPUs do not do what the cluster spec promises."""


class LeakFound(PermanentError):
    """Something that costs money is left behind."""


class DriftFound(PermanentError):
    """The cluster differs from its spec, or whether it does cannot be known; the message lists the objects."""


class NeighbourConflict(PermanentError):
    """Another team's software and the spec cannot both serve the same GPUs; the message names the remedies."""


class GateRefused(PermanentError):
    """A gate's verdict is Failed for a permanent cause: the task is not retried. Its transient sibling is
    :class:`GateFailed`."""


class GateBlind(PermanentError):
    """A gate could not look, and waiting did not cure that: a missing permission, another version of the code, an API
    that did not answer at the wait's deadline.

    Nothing is known about the objects then, so nothing may be undone because of it: a handler that undoes something
    catches the siblings and not this.
    """


class DeadlinePassed(PermanentError):
    """The absolute deadline of a wait has passed; the message says what was still missing and why.

    :ivar waited_for: the reason of the last verdict; empty if there was none.
    """

    waited_for: str = ""
