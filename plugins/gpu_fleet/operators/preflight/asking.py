"""One question to a service, answered with a fact or with why there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from gpu_fleet.core.aws.errors import refuses_credentials
from gpu_fleet.core.errors import ApiUnavailable, Forbidden, GpuFleetError, NotFound, Throttled
from gpu_fleet.core.preflight.facts import Unseen

if TYPE_CHECKING:
    from gpu_fleet.hooks.aws import AwsSession

Found = TypeVar("Found")


class Asking:
    """Asks one question after the other; each answer is a fact or :class:`Unseen`."""

    def __init__(self, aws: AwsSession) -> None:
        self._aws = aws
        #: Service -> its failure: one that did not answer is not called again, as the network may have no route to it.
        self._silent: dict[str, Unseen] = {}

    def _list(self, service: str, action: str, operation: str, path: str, **params: Any) -> list[Any] | Unseen:
        return self._looked(
            service, f"{service}:{action}", lambda: self._aws.paginate(service, operation, path, **params)
        )

    def _ask(
        self,
        service: str,
        action: str,
        operation: str,
        *,
        absent: dict[str, Any] | None = None,
        iam: str = "",
        **params: Any,
    ) -> dict[str, Any] | Unseen:
        """
        :param absent: the answer if the object does not exist; without it that counts as unknown, too.
        :param iam: the service's prefix in IAM actions, if it differs from its name.
        """

        def ask() -> dict[str, Any]:
            try:
                return self._aws.call(service, operation, **params)
            except NotFound:
                if absent is None:
                    raise
                return absent

        return self._looked(service, f"{iam or service}:{action}", ask)

    def _looked(self, service: str, permission: str, ask: Callable[[], Found]) -> Found | Unseen:
        if service in self._silent:
            return self._silent[service]
        try:
            return ask()
        except Forbidden as error:
            if refuses_credentials(error):
                return Unseen(str(error))
            return Unseen(f"{permission} is not allowed ({error.reason})", permission, error.cure)
        except (ApiUnavailable, Throttled) as error:
            self._silent[service] = Unseen(str(error))
            return self._silent[service]
        except GpuFleetError as error:
            return Unseen(str(error))
