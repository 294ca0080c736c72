"""AWS's error codes as typed errors, each with a remedy. Pure.

Codes: docs.aws.amazon.com, 'Common errors' of each service and 'Error codes for the Amazon EC2 API'. Which policy
denied a call is in the message (IAM User Guide, 'Troubleshoot access denied error messages'): granting a permission
helps only where no identity-based policy allows the call.
"""

from __future__ import annotations

import re

from gpu_fleet.core.errors import (
    ApiUnavailable,
    Conflict,
    Forbidden,
    GpuFleetError,
    Invalid,
    NotFound,
    SpecError,
    Throttled,
    Unauthorized,
)

_THROTTLED = frozenset(
    {"Throttling", "ThrottlingException", "ThrottledException", "RequestLimitExceeded", "TooManyRequestsException",
     "RequestThrottled", "RequestThrottledException", "SlowDown", "PriorRequestNotComplete",
     "EC2ThrottledException"}
)  # fmt: skip
BAD_CREDENTIALS = frozenset(
    {"UnrecognizedClientException", "InvalidClientTokenId", "AuthFailure", "SignatureDoesNotMatch",
     "InvalidAccessKeyId", "MissingAuthenticationToken", "IncompleteSignature", "InvalidSignatureException",
     "MissingAuthenticationTokenException", "IncompleteSignatureException"}
)  # fmt: skip
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
_DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "NotAuthorized"})
_CONFLICT = frozenset({"ResourceInUseException", "ConflictException", "IncorrectInstanceState", "DependencyViolation"})
#: The account or the region is not enabled (yet); EC2 API, 'Error codes'.
_ACCOUNT = {
    "OptInRequired": "enable the service, or the region, for the account",
    "Blocked": "the account is blocked: contact AWS Support",
}

_GRANT = "grant the identity this permission"

CLOCK_SKEWED = "ClockSkewed"
_SKEWED_CODES = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
_SKEWED = re.compile(r"Signature expired: |Signature not yet current: ")
_ENCODED = re.compile(r"[Ee]ncoded authorization (?:failure )?message")
#: Kind of policy that denies, in AWS's words -> what helps. The first that is found decides.
_DENIED_BY = (
    (
        re.compile(r"service control policy"),
        "a service control policy of the organization denies it, which no grant in this account cures: ask those who "
        "administer the organization",
    ),
    (
        re.compile(r"resource control policy"),
        "a resource control policy of the organization denies it, which no grant in this account cures: ask those who "
        "administer the organization",
    ),
    (
        re.compile(r"permissions boundary"),
        "the identity's permissions boundary does not allow it: extend the boundary; a grant alone does not help",
    ),
    (
        re.compile(r"session policy"),
        "the policy of the role session does not allow it: correct the session policy in the connection's extras",
    ),
    (
        re.compile(r"VPC endpoint policy"),
        "the policy of the VPC endpoint does not allow it: extend that policy",
    ),
    (
        re.compile(r"resource-based policy"),
        "the resource's own policy does not allow it: extend that policy",
    ),
    (
        re.compile(r"explicit deny"),
        "a policy of the identity denies it explicitly, which outweighs every grant: find and change that statement",
    ),
)


def error_for_code(what: str, code: str, message: str, http_status: int) -> GpuFleetError:
    """The typed error of an AWS error code; ``reason`` is the code itself, or :data:`CLOCK_SKEWED`."""
    text = f"{what}: {message} ({code})"
    if code in BAD_CREDENTIALS and "valid region" in message:
        # Signature Version 4: "Credential should be scoped to a valid region".
        return SpecError(text, field="aws.region", remedy="write a region of AWS, for example us-west-2", reason=code)
    if code in _SKEWED_CODES or (code in BAD_CREDENTIALS and _SKEWED.search(message)):
        return Unauthorized(
            f"{text}; the clock of this machine is wrong, not the credentials: synchronize it (NTP)",
            reason=CLOCK_SKEWED,
        )
    if code in _THROTTLED or http_status == 429:
        return Throttled(text, reason=code)
    if code in EXPIRED:
        also = ", or the clock of this machine is wrong" if code == "RequestExpired" else ""
        return Unauthorized(f"{text}; the session's credentials have expired{also}", reason=code)
    if code in BAD_CREDENTIALS:
        return Forbidden(
            f"{text}; AWS does not accept the credentials: they are wrong or deactivated, or the region is not enabled "
            "for their account",
            reason=code,
        )
    if code in _ACCOUNT:
        return Forbidden(f"{text}; {_ACCOUNT[code]}", reason=code, cure=_ACCOUNT[code])
    if code == "PendingVerification":
        return ApiUnavailable(f"{text}; wait for AWS's e-mail, at most 4 hours, and run again", reason=code)
    if code in _DENIED or http_status == 403:
        cure = _cure_of_denial(message)
        return Forbidden(f"{text}; {cure or _GRANT}{_how_to_decode(message)}", reason=code, cure=cure)
    if _is_absent(code) or http_status == 404:
        return NotFound(text, reason=code)
    if code in _CONFLICT or http_status == 409:
        return Conflict(text, reason=code)
    if http_status >= 500:
        return ApiUnavailable(text, reason=code)
    return Invalid(text, reason=code)


def refuses_credentials(error: GpuFleetError) -> bool:
    """Whether the credentials themselves were refused or missing, so that no permission would help."""
    return error.reason in BAD_CREDENTIALS or error.reason in {"NoCredentials", "LoginNeeded", "AwsConfigInvalid"}


def _cure_of_denial(message: str) -> str:
    """What helps if granting the permission does not; empty if it does."""
    return next((text for pattern, text in _DENIED_BY if pattern.search(message)), "")


def _how_to_decode(message: str) -> str:
    if not _ENCODED.search(message):
        return ""
    return (
        "; the encoded message names the policy: aws sts decode-authorization-message --encoded-message … "
        "(needs sts:DecodeAuthorizationMessage)"
    )


def _is_absent(code: str) -> bool:
    return (
        code in {"ResourceNotFoundException", "NotFoundException", "NoSuchEntity", "NoSuchResourceException"}
        or code.endswith((".NotFound", "NotFoundException"))
        or code.startswith("NoSuch")
        or "NonExistent" in code
    )
