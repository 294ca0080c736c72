"""Botocore's errors as the package's typed ones; what an AWS error code means is in ``gpu_fleet.core.aws.errors``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.aws.errors import error_for_code
from gpu_fleet.core.errors import ApiUnavailable, Forbidden, Invalid, SpecError, TransientError

if TYPE_CHECKING:
    from gpu_fleet.hooks.aws.session import AwsSession


@contextmanager
def typed_errors(what: str, session: AwsSession) -> Iterator[None]:
    """Around anything that is done with botocore.

    :param what: what is done and with which connection, for the message.
    """
    from botocore import exceptions as boto

    try:
        yield
    except boto.ClientError as error:
        answer = error.response
        detail = answer.get("Error", {})
        raise error_for_code(
            what,
            str(detail.get("Code", "Unknown")),
            str(detail.get("Message", error)),
            int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)),
        ) from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound) as error:
        raise Forbidden(
            f"{what}: {error}; give {session.label} an access key, a profile or a role", reason="NoCredentials"
        ) from error
    except (boto.SSOError, boto.TokenRetrievalError, *_login_errors(boto)) as error:
        # A worker cannot log in, so an expired session stays expired.
        raise Forbidden(
            f"{what}: {error}; log in again where the worker runs (aws sso login), or better give {session.label} a "
            "role or an access key, which need no log-in",
            reason="LoginNeeded",
        ) from error
    except (boto.CredentialRetrievalError, boto.MetadataRetrievalError) as error:
        raise ApiUnavailable(f"{what}: cannot obtain credentials: {error}", reason="CredentialsFailed") from error
    except (boto.NoRegionError, boto.InvalidRegionError) as error:
        raise SpecError(f"{what}: {error}", field="aws.region", remedy="name a valid AWS region") from error
    except (boto.HTTPClientError, boto.ConnectionError) as error:
        if session.is_unknown_region():
            # The address made of it does not exist, and never will: waiting is pointless.
            raise SpecError(
                f"{what}: AWS has no region {session.region!r}",
                field="aws.region",
                remedy="write for example us-west-2",
            ) from error
        raise ApiUnavailable(f"{what}: {error}; check the region and the network") from error
    except (boto.ParamValidationError, boto.UnknownServiceError) as error:
        raise Invalid(f"{what}: {error}") from error
    except boto.BotoCoreError as error:
        if "Config" in type(error).__name__ or isinstance(error, boto.UnknownCredentialError):
            raise Invalid(
                f"{what}: {error}; correct the AWS configuration files and variables of the worker, or the "
                f"extras of {session.label}",
                reason="AwsConfigInvalid",
            ) from error
        raise TransientError(f"{what}: {error}; run again", reason=type(error).__name__) from error


def _login_errors(boto: Any) -> tuple[type[Exception], ...]:
    """Errors of ``aws login``, which only newer versions of botocore know."""
    found = getattr(boto, "LoginError", None)
    return () if found is None else (found,)
