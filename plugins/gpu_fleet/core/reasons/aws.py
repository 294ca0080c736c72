"""Reasons of calls to AWS. Launches by Karpenter: ``core/aws/launch_errors.py``."""

from __future__ import annotations

from gpu_fleet.core.reasons.reason import Effect, Reason, Section

_RETRIED, _PERSON = Effect.RETRIED, Effect.PERSON

OURS = Section(
    "AWS",
    "tasks and triggers that call AWS. The reason is AWS's own error code, except for these",
    (
        Reason(
            "AwsConfigInvalid",
            _PERSON,
            "the AWS configuration cannot be used",
            "Correct the AWS configuration files and variables of the worker, or the connection's extras.",
        ),
        Reason(
            "ClockSkewed",
            _RETRIED,
            "AWS refuses signatures whose time is minutes off",
            "Synchronize the clock of the worker or triggerer (NTP).",
        ),
        Reason(
            "CredentialsFailed",
            _RETRIED,
            "the metadata service or the credential process that gives the credentials did not answer",
            "If it stays so, check that service from the worker.",
        ),
        Reason(
            "LoginNeeded",
            _PERSON,
            "an SSO session has ended",
            "Give the connection a role or an access key, which need no log-in.",
        ),
        Reason(
            "NoCredentials",
            _PERSON,
            "the connection has no credentials",
            "Give the connection an access key, a profile or a role.",
        ),
    ),
)


def _codes(effect: Effect, found: str, remedy: str, *codes: str) -> tuple[Reason, ...]:
    return tuple(Reason(code, effect, found, remedy) for code in codes)


CODES = Section(
    "Codes of AWS with a meaning of their own",
    "tasks and triggers that call AWS; any other code is judged by its HTTP status",
    (
        *_codes(
            _RETRIED,
            "AWS throttles the account's calls",
            "",
            *("EC2ThrottledException", "PriorRequestNotComplete", "RequestLimitExceeded", "RequestThrottled"),
            *("RequestThrottledException", "SlowDown", "ThrottledException", "Throttling", "ThrottlingException"),
            "TooManyRequestsException",
        ),
        *_codes(
            _PERSON,
            "AWS does not accept the credentials",
            "They are wrong or deactivated, or the region is not enabled for their account: correct the connection.",
            *("AuthFailure", "IncompleteSignature", "IncompleteSignatureException", "InvalidAccessKeyId"),
            *("InvalidClientTokenId", "InvalidSignatureException", "MissingAuthenticationToken"),
            *("MissingAuthenticationTokenException", "SignatureDoesNotMatch", "UnrecognizedClientException"),
        ),
        *_codes(
            _RETRIED,
            "the session's credentials have expired",
            "If `RequestExpired` stays, synchronize the clock of the worker.",
            *("ExpiredToken", "ExpiredTokenException", "RequestExpired"),
        ),
        *_codes(
            _RETRIED,
            "the clock of the worker is wrong; reported as `ClockSkewed`",
            "Synchronize the clock of the worker or triggerer (NTP).",
            *("RequestInTheFuture", "RequestTimeTooSkewed"),
        ),
        *_codes(
            _PERSON,
            "AWS denies the call; the message says which policy denies it",
            "Change the policy that the message names.",
            *("AccessDenied", "AccessDeniedException", "NotAuthorized", "UnauthorizedOperation"),
        ),
        *_codes(
            _RETRIED,
            "the object is in use or in a state that excludes the call",
            "",
            *("ConflictException", "DependencyViolation", "IncorrectInstanceState", "ResourceInUseException"),
        ),
        *_codes(
            _PERSON,
            "the account or the region is not in use",
            "Enable the service, or the region, for the account.",
            "OptInRequired",
        ),
        *_codes(_PERSON, "the account is blocked", "Contact AWS Support.", "Blocked"),
        *_codes(
            _RETRIED,
            "AWS is still verifying the account",
            "Wait for AWS's e-mail, at most 4 hours, and run again.",
            "PendingVerification",
        ),
    ),
)
