"""Bearer tokens for EKS, made in process: a pre-signed STS GetCallerIdentity URL, no child process, no network.

The format is that of kubernetes-sigs/aws-iam-authenticator (pkg/token/token.go): ``k8s-aws-v1.`` and the URL-safe
base64 of the URL without padding; the header ``x-k8s-aws-id`` names the cluster and is part of the signature.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import Forbidden

if TYPE_CHECKING:
    from gpu_fleet.hooks.aws import AwsSession

#: EKS accepts a token until 15 minutes after it was signed (aws-iam-authenticator ``tokenExpiration``); ours are
#: renewed well before, so that a long upload or watch never starts with a token about to expire.
TOKEN_LIFETIME_S = 15 * 60
RENEW_AFTER_S = 11 * 60

#: ``X-Amz-Expires`` of the URL; EKS ignores it beyond the signing date, ``aws eks get-token`` uses the same.
_URL_EXPIRES_S = 60


def sign_token(cluster_name: str, region: str, sts_endpoint: str, session: Any) -> str:
    """A fresh token.

    :param sts_endpoint: the *regional* STS endpoint, for example ``https://sts.us-west-2.amazonaws.com``.
    :param session: boto3 session whose credentials sign.
    :raises Forbidden: if the session finds no credentials.
    """
    from botocore.model import ServiceId
    from botocore.signers import RequestSigner

    credentials = session.get_credentials()
    if credentials is None:
        raise Forbidden(
            "no AWS credentials found to sign an EKS token; give them in the Airflow connection or the environment",
            reason="NoCredentials",
        )
    signer = RequestSigner(ServiceId("STS"), region, "sts", "v4", credentials, session.events)
    url = signer.generate_presigned_url(
        {
            "method": "GET",
            "url": f"{sts_endpoint.rstrip('/')}/?Action=GetCallerIdentity&Version=2011-06-15",
            "body": {},
            "headers": {"x-k8s-aws-id": cluster_name},
            "context": {},
        },
        region_name=region,
        expires_in=_URL_EXPIRES_S,
        operation_name="",
    )
    return "k8s-aws-v1." + base64.urlsafe_b64encode(url.encode()).decode().rstrip("=")


class EksCredentials:
    """The token of one cluster and identity, renewed before it expires. Safe for threads.

    :raises GpuFleetError: typed, where a token is asked for: AWS gave no fresh credentials to sign one with.
    """

    def __init__(self, aws: AwsSession, cluster_name: str, *, now: Callable[[], float] = time.time) -> None:
        self._aws = aws
        self._cluster_name = cluster_name
        self._now = now
        self._lock = threading.Lock()
        self._token: str | None = None
        self._signed_at = 0.0

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token()}"}

    def ready(self) -> dict[str, str] | None:
        # Without the lock, which is held while AWS is asked. The time first: with an older one than the token's own, it
        # is renewed too soon, never too late.
        signed_at, token = self._signed_at, self._token
        return {"Authorization": f"Bearer {token}"} if token is not None and self._is_fresh(signed_at) else None

    def _is_fresh(self, signed_at: float) -> bool:
        # Wall clock, not monotonic: a suspended machine must notice that its token died meanwhile.
        return 0 <= self._now() - signed_at < RENEW_AFTER_S

    def token(self) -> str:
        with self._lock:
            if self._token is None or not self._is_fresh(self._signed_at):
                signed_at = self._now()
                self._token = self._sign()
                self._signed_at = signed_at
            return self._token

    def renew(self) -> bool:
        """Forget the cached token and the keys that signed it; ``True``, because the next one may be accepted.

        Signing succeeds with any keys, so only this refusal shows that they were rotated.
        """
        with self._lock:
            self._token = None
        self._aws.forget()
        return True

    def _sign(self) -> str:
        from airflow.sdk.log import mask_secret

        region, endpoint, session = self._aws.region, self._aws.endpoint("sts"), self._aws.session()
        # Signing makes no call, but credentials of a role or an instance are fetched anew shortly before they expire.
        with self._aws.errors(f"sign a token for EKS cluster {self._cluster_name!r}"):
            token = sign_token(self._cluster_name, region, endpoint, session)
        mask_secret(token)
        return token
