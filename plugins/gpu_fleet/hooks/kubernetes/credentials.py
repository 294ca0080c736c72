"""A resolved cluster: its address, whom to trust there, and what authenticates a request."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gpu_fleet.core.errors import SpecError

#: Seconds after which a trigger reads a token's file again (client-go v0.36 transport/token_source.go: a minute, less
#: ten seconds).
TOKEN_FILE_TTL_S = 50.0


class Credentials(Protocol):
    """What authenticates a request, besides a client certificate in the SSL context."""

    def headers(self) -> dict[str, str]:
        """The headers; blocks while they are renewed."""
        ...

    def ready(self) -> dict[str, str] | None:
        """The headers if they are at hand, without blocking; ``None`` if they have to be renewed."""
        ...

    def renew(self) -> bool:
        """After a 401: drop what is cached; ``True`` if another attempt may be accepted."""
        ...


@dataclass(frozen=True)
class Endpoint:
    """A resolved cluster.

    :ivar server: base URL without a trailing slash.
    :ivar ssl_context: ``None`` for plain http.
    """

    server: str
    ssl_context: ssl.SSLContext | None
    credentials: Credentials


class FixedCredentials:
    """A token that never changes, or none (client certificate)."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def ready(self) -> dict[str, str]:
        return self.headers()

    def renew(self) -> bool:
        return False


class TokenFile:
    """A token that another program keeps fresh in a file (kubeconfig ``tokenFile``)."""

    def __init__(self, path: Path, kubeconfig: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path, self._kubeconfig, self._monotonic = path, kubeconfig, monotonic
        self._read: tuple[float, str] | None = None

    def headers(self) -> dict[str, str]:
        """:raises SpecError: the file cannot be read."""
        read_at = self._monotonic()
        with usable(self._kubeconfig, f"tokenFile {self._path}"):
            token = self._path.read_text().strip()
        self._read = (read_at, token)
        return {"Authorization": f"Bearer {token}"}

    def ready(self) -> dict[str, str] | None:
        read = self._read
        if read is None or self._monotonic() - read[0] >= TOKEN_FILE_TTL_S:
            return None
        return {"Authorization": f"Bearer {read[1]}"}

    def renew(self) -> bool:
        self._read = None
        return True


def trusting(authority: str | None, *, insecure: bool = False) -> ssl.SSLContext:
    """The SSL context of a cluster.

    :param authority: PEM certificates to trust; ``None`` for those of the system.
    """
    context = ssl.create_default_context(cadata=authority)
    # Cluster CAs predate the strict X.509 profile that Python 3.13 asks for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@contextmanager
def usable(kubeconfig: Path, what: str) -> Iterator[None]:
    """Around the use of what a kubeconfig holds or names.

    :raises SpecError: it cannot be read, or is not what it should be.
    """
    try:
        yield
    except (OSError, ValueError) as error:  # among them ssl.SSLError, binascii.Error and UnicodeDecodeError
        raise SpecError(
            f"kubeconfig {kubeconfig}: {what}: {error}",
            field="cluster.access.path",
            remedy="correct the kubeconfig, or the file it names, or name another kubeconfig",
        ) from error
