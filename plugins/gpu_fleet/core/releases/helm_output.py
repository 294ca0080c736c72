"""What helm says: its version, and which typed error its complaint is. Pure.

The exit code is 0 or 1 and proves nothing; the text only *explains* a failure that storage has shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpu_fleet.core.errors import (
    ApiUnavailable,
    Conflict,
    DeadlinePassed,
    Forbidden,
    GateFailed,
    GpuFleetError,
    Invalid,
    ReleaseError,
    ToolError,
    TransientError,
    Unauthorized,
)
from gpu_fleet.core.releases.charts import MIRRORS_VARIABLE

_VERSION = re.compile(r"v(?P<major>[0-9]+)\.(?P<minor>[0-9]+)\.(?P<patch>[0-9]+)")
_TOKENS = re.compile(r"(k8s-aws-v1\.)[A-Za-z0-9_=-]+|(?<=[Bb]earer )[A-Za-z0-9._~+/=-]{8,}")
_MAX_MESSAGE = 1500


@dataclass(frozen=True)
class HelmVersion:
    """A helm version. ``major`` decides which flags exist."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @property
    def server_side_apply(self) -> bool:
        """Helm 4 applies on the server and so knows field conflicts and ``--force-conflicts``."""
        return self.major >= 4


def parse_version(text: str, binary: str) -> HelmVersion:
    """The version in ``helm version --template '{{.Version}}'``.

    :raises ToolError: if it is not a version, or one that was never tested: neither 4.x nor 3.17 and later.
    """
    match = _VERSION.search(text)
    if match is None:
        raise ToolError(
            f"{binary} does not say its version; it is not helm, or broken: set HELM_BIN to a helm 4.x or 3.17.x",
            reason="HelmVersionUnknown",
        )
    version = HelmVersion(int(match["major"]), int(match["minor"]), int(match["patch"]))
    if version.major == 4 or (version.major == 3 and version.minor >= 17):
        return version
    raise ToolError(
        f"helm {version} ({binary}) is not supported: install helm 4.x or 3.17.x, or set HELM_BIN to one",
        reason="HelmVersionUnsupported",
    )


def redact(text: str) -> str:
    """Text without bearer tokens."""
    return _TOKENS.sub(lambda match: f"{match[1] or ''}(hidden)", text)


def complaint(stderr: str) -> str:
    """The part of helm's stderr worth showing: from its last ``Error:`` on, without noise and tokens."""
    lines = [line for line in redact(stderr).splitlines() if line.strip() and not line.startswith("WARNING")]
    start = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].startswith("Error:")), None)
    chosen = lines[start:] if start is not None else lines[-5:]
    return " ".join(" ".join(chosen).removeprefix("Error:").split())[:_MAX_MESSAGE]


@dataclass(frozen=True)
class _Symptom:
    pattern: re.Pattern[str]
    error: type[GpuFleetError]
    reason: str
    remedy: str


def _symptom(pattern: str, error: type[GpuFleetError], reason: str, remedy: str) -> _Symptom:
    return _Symptom(re.compile(pattern, re.IGNORECASE | re.DOTALL), error, reason, remedy)


#: Ordered: the first that matches decides.
_SYMPTOMS: tuple[_Symptom, ...] = (
    _symptom(
        r"values don't meet the specifications of the schema|additional properties .* not allowed",
        Invalid, "ValuesSchema", "correct the values",
    ),
    _symptom(
        r"exceeded quota:.*secrets|secrets .*exceeded quota",
        TransientError, "SecretQuotaExceeded", "raise the namespace's quota on Secrets or delete old ones",
    ),
    _symptom(
        r"may not be more than 1048576|must have at most 1048576|request is too large|etcdserver: request is too large",
        Invalid, "ReleaseTooLarge", "the release exceeds 1 MiB: split the chart or shorten its values",
    ),
    _symptom(
        r"invalid ownership metadata|cannot be imported into the current release",
        ReleaseError, "ObjectOwnedByAnother",
        "the object exists and belongs to somebody else: delete it, rename it in the values, or adopt it by hand",
    ),
    _symptom(
        r"cannot re-use a name that is still in use",
        Conflict, "NameInUse", "another helm has just created the release; run again",
    ),
    _symptom(
        r"another operation \(install/upgrade/rollback\) is in progress",
        Conflict, "OperationInProgress", "wait until it ends; run again",
    ),
    _symptom(
        r"conflict with \"|conflicts with \"|FieldManagerConflict|Apply failed with",
        ReleaseError, "FieldConflict",
        "another field manager owns these fields: undo its change, or set conflicts to 'force'",
    ),
    _symptom(
        r"no matches for kind|ensure CRDs are installed first|resource mapping not found|"
        r"the server could not find the requested resource",
        Invalid, "CrdMissing", "install the CustomResourceDefinition first",
    ),
    _symptom(
        r"field is immutable|updates to statefulset spec for fields other than",
        Invalid, "ImmutableField", "an immutable field would change: rename the object or delete it first",
    ),
    _symptom(
        r"is being terminated|NamespaceTerminating",
        Conflict, "NamespaceTerminating", "wait until the namespace is gone; run again",
    ),
    _symptom(
        r"namespaces \"[^\"]+\" not found",
        Invalid, "NamespaceMissing", "create the namespace, or set create_namespace",
    ),
    _symptom(
        r"exceeded quota",
        Forbidden, "QuotaExceeded", "raise the quota, or ask for less",
    ),
    _symptom(
        r"context canceled|received signal|signal: terminated",
        TransientError, "Interrupted", "helm was interrupted; run again",
    ),
    _symptom(
        r"\bUnauthorized\b|asked for the client to provide credentials",
        Unauthorized, "Unauthorized", "the API server does not accept the token any more; run again",
    ),
    _symptom(
        r"pre-install|post-install|pre-upgrade|post-upgrade|pre-rollback|post-rollback|pre-delete|post-delete",
        GateFailed, "HookFailed", "look at the hook's own log, then run again",
    ),
    _symptom(
        r"resource Job/\S+ not ready. status: Failed|job \S+ failed: ",
        GateFailed, "JobFailed", "look at the Job's own log, then run again",
    ),
    _symptom(
        r"is forbidden: User|cannot (get|list|create|update|patch|delete|watch) resource",
        Forbidden, "Forbidden", "grant this verb to the identity",
    ),
    _symptom(
        r"field not declared in schema|unknown field|strict decoding error|failed to create typed patch object",
        Invalid, "UnknownField", "correct the values, or use a chart for this Kubernetes version",
    ),
    _symptom(
        r"is invalid:|error validating data|parse error|YAML parse|execution error at|template: |cannot unmarshal",
        Invalid, "InvalidManifest", "correct the values or the chart",
    ),
    _symptom(
        r"timed out waiting|context deadline exceeded|would exceed context deadline",
        DeadlinePassed, "HelmTimedOut", "look at the objects it waited for",
    ),
    _symptom(
        r"cluster unreachable|connection refused|connection reset|: EOF|i/o timeout|TLS handshake|no such host|"
        r"internal error|service unavailable|unexpected EOF|http2: |too many requests|the server is currently unable",
        ApiUnavailable, "ApiUnavailable", "run again when the API server answers",
    ),
)  # fmt: skip


def error_of(what: str, stderr: str) -> GpuFleetError:
    """The typed error of a failed helm command.

    :param what: the operation and the release, for example ``upgrade of release gpu/plugin``.
    """
    text = complaint(stderr) or "helm failed without saying why"
    for symptom in _SYMPTOMS:
        if symptom.pattern.search(text):
            return symptom.error(f"{what}: {text}; {symptom.remedy}", reason=symptom.reason)
    return TransientError(
        f"{what}: {text}; run again, and if it fails the same way look at the chart", reason="HelmFailed"
    )


#: A status stands alone, after a space; digits elsewhere are a port, a version, or part of an address.
_PULL_ABSENT = re.compile(
    r"not found|no chart version found|(?<!\S)404\b|manifest unknown|no chart name found", re.IGNORECASE
)
_PULL_FORBIDDEN = re.compile(r"(?<!\S)(401|403)\b|unauthorized|denied|forbidden", re.IGNORECASE)
_ADDRESS = re.compile(r"\w+://[^\s\"]+")


def pull_error(what: str, stderr: str) -> GpuFleetError:
    """The typed error of a failed ``helm pull``; nothing has been written to any cluster then."""
    text = complaint(stderr) or "helm failed without saying why"
    said = _ADDRESS.sub("", text)
    if _PULL_ABSENT.search(said):
        return Invalid(f"{what}: {text}; check repository, chart and version", reason="ChartNotFound")
    if _PULL_FORBIDDEN.search(said):
        return Forbidden(f"{what}: {text}; log in to the registry (HELM_REGISTRY_CONFIG)", reason="ChartForbidden")
    return ApiUnavailable(
        f"{what}: {text}; check the address and the network, or set a mirror in {MIRRORS_VARIABLE}",
        reason="ChartUnreachable",
    )
