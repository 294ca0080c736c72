"""What helm's and the API server's error texts mean: typed errors with a reason and a remedy. Pure.

The vocabulary is open: helm, Kubernetes, admission policies and charts all write into the same text. Known texts are
listed here; an unknown text with a status of 4xx is a refusal, which a retry would meet again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from gpu_fleet.core.errors import (
    ApiUnavailable,
    Conflict,
    DeadlinePassed,
    Forbidden,
    GateFailed,
    GpuFleetError,
    Invalid,
    ReleaseError,
    TransientError,
    Unauthorized,
)


@dataclass(frozen=True)
class _Symptom:
    """:ivar remedy: with ``{name}`` for what the pattern finds as ``name``."""

    pattern: re.Pattern[str]
    error: type[GpuFleetError]
    reason: str
    remedy: str

    def sentence(self, text: str) -> str:
        """The line of a longer text in which the symptom is."""
        match = self.pattern.search(text)
        if match is None:
            return ""
        start = text.rfind("\n", 0, match.start()) + 1
        return " ".join(text[start : max(text.find("\n", match.end()), start + 1)].split())[:_MAX_SENTENCE]


_MAX_SENTENCE = 500


def _symptom(pattern: str, error: type[GpuFleetError], reason: str, remedy: str) -> _Symptom:
    return _Symptom(re.compile(pattern, re.IGNORECASE | re.DOTALL), error, reason, remedy)


#: Ordered: the first that matches decides. Texts of the chart's author and of policies may contain any word, so the
#: symptoms that quote such texts come first.
_SYMPTOMS: tuple[_Symptom, ...] = (
    # helm 3: 'template: F:L:C: executing "F" at <X>: …', 'execution error at (F:L:C): …'; helm 4: the same without
    # 'template:', over several lines (helm/helm v4.2.3 pkg/engine/engine.go, reformatExecErrorMsg). A Job has a
    # field 'spec.template: '.
    _symptom(
        r"nil pointer evaluating|executing \\?\"[^\"]+\\?\" at <|execution error (at|in) \(|parse error (at|in) \(|"
        r"error calling \w+:|YAML parse error|(?<![\w.])template: ",
        Invalid, "InvalidManifest", "correct the values or the chart",
    ),
    _symptom(
        r"chart requires kubeVersion",
        Invalid, "KubeVersionUnsupported", "take another version of the chart, made for this Kubernetes version",
    ),
    _symptom(
        r"failed calling webhook \\?\"(?P<name>[^\"\\]+)\\?\".*x509: ",
        Forbidden, "WebhookCertificate",
        "the API server does not trust the certificate of admission webhook {name}: renew the caBundle in its "
        "configuration, or remove the webhook if what serves it is gone",
    ),
    _symptom(
        r"failed calling webhook \\?\"(?P<name>[^\"\\]+)\\?\"",
        ApiUnavailable, "WebhookUnavailable",
        "it is admission webhook {name} that does not answer, not the API server: look at the pods behind it, or "
        "remove the webhook if what serves it is gone; run again",
    ),
    _symptom(
        r"admission webhook \\?\"(?P<name>[^\"\\]+)\\?\" denied the request",
        Forbidden, "PolicyDenied",
        "a policy behind admission webhook {name} refuses the object: change the values, or have the policy except it",
    ),
    _symptom(
        r"ValidatingAdmissionPolicy '(?P<name>[^']+)' with binding .* denied request",
        Forbidden, "PolicyDenied",
        "ValidatingAdmissionPolicy {name} refuses the object: change the values, or have the policy except it",
    ),
    _symptom(
        r"violates PodSecurity",
        Forbidden, "PodSecurityViolated",
        "change the values, or lower the namespace's label pod-security.kubernetes.io/enforce",
    ),
    _symptom(
        r"values don't meet the specifications of the schema|additional properties .* not allowed",
        Invalid, "ValuesSchema", "correct the values",
    ),
    # Both occur for moments after the start of the API server or the creation of a ResourceQuota (kubernetes/apiserver
    # v0.36.2 pkg/admission/plugin: resourcequota/controller.go, CheckRequest; webhook/generic/webhook.go,
    # policy/generic/plugin.go and namespace/lifecycle/admission.go, whose caches are not filled yet).
    _symptom(
        r"is forbidden: (status unknown for quota|not yet ready to handle request)",
        TransientError, "AdmissionNotReady",
        "the API server has just started, or the ResourceQuota has not been counted yet: run again",
    ),
    _symptom(
        r"exceeded quota:.*secrets|secrets .*exceeded quota",
        TransientError, "SecretQuotaExceeded", "raise the namespace's quota on Secrets or delete old ones",
    ),
    _symptom(
        r"may not be more than 1048576|must have at most 1048576|request is too large|Request entity too large|"
        r"trying to send message larger than max|status code 413\b",
        Invalid, "ReleaseTooLarge", "the release exceeds 1 MiB: split the chart or shorten its values",
    ),
    _symptom(
        r"invalid ownership metadata|cannot be imported into the current release",
        ReleaseError, "ObjectOwnedByAnother",
        "the object exists and does not belong to this release: delete it, rename it in the values, or adopt it by "
        "hand",
    ),
    _symptom(
        r"cannot re-use a name that is still in use",
        Conflict, "NameInUse", "another helm has just created the release; run again",
    ),
    _symptom(
        r"database space exceeded|etcdserver: no space",
        Forbidden, "EtcdFull",
        "the cluster's etcd is full and takes no write: delete objects that pile up (old ReplicaSets, Jobs, reports), "
        "or ask AWS Support",
    ),
    _symptom(
        r"another operation \(install/upgrade/rollback\) is in progress|"
        r"secrets \"sh\.helm\.release\.v1\.[^\"]+\" already exists",
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
        r"the object has been modified",
        Conflict, "ObjectChanged", "something else wrote in between; run again",
    ),
    # Objects may be named pre-install-…; helm's own words (pkg/action of both majors) have no quotation marks.
    _symptom(
        r"(?<![\"\w/.-])(failed (pre|post)-(install|upgrade|rollback|delete)|"
        r"(pre|post)-(install|upgrade|rollback|delete) hooks? failed|Hook (pre|post)-\w+ \S+ failed):",
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
        r"\bis forbidden: ",
        Forbidden, "AdmissionRefused", "change the values, or the rule that the text names",
    ),
    _symptom(
        r"field not declared in schema|unknown field|strict decoding error|failed to create typed patch object",
        Invalid, "UnknownField", "correct the values, or use a chart for this Kubernetes version",
    ),
    _symptom(
        r"is invalid:|error validating data|cannot unmarshal|quantities must match the regular expression|"
        r"unable to parse quantity|cannot be handled as a ",
        Invalid, "InvalidManifest", "correct the values or the chart",
    ),
    _symptom(
        r"x509: ",
        Forbidden, "CertificateRefused",
        "the certificate authority in the kubeconfig is not the cluster's, or a clock is wrong: correct them",
    ),
    _symptom(
        r"timed out waiting|context deadline exceeded|would exceed context deadline",
        DeadlinePassed, "HelmTimedOut", "look at the objects it waited for",
    ),
    _symptom(
        r"cluster unreachable|connection refused|connection reset|: EOF|i/o timeout|TLS handshake|no such host|"
        r"internal error|service unavailable|unexpected EOF|http2: |too many requests|the server is currently unable|"
        r"an error on the server",
        ApiUnavailable, "ApiUnavailable", "run again when the API server answers",
    ),
)  # fmt: skip

#: 408 (time-out), 409 (conflict) and 429 (too many requests) may pass.
_REFUSED = re.compile(
    r"(?<![\w.:])(?:status code:? )?4(?!08|09|29)[0-9]{2}(?= [A-Z]| but did not return|$)|\(BadRequest\)"
)


def symptom_of(text: str) -> _Symptom | None:
    """The first symptom that is in the text, its remedy filled in; ``None`` if none is known."""
    for symptom in _SYMPTOMS:
        if match := symptom.pattern.search(text):
            return replace(symptom, remedy=symptom.remedy.format(**match.groupdict()))
    return None


def is_refusal(text: str) -> bool:
    """Whether a text that matches no symptom shows that the API server refuses helm's request."""
    return _REFUSED.search(text) is not None


def listed() -> list[tuple[str, bool, str]]:
    """Reason, whether it is transient, and remedy of every known symptom, for the reference."""
    return [(each.reason, issubclass(each.error, TransientError), each.remedy) for each in _SYMPTOMS]
