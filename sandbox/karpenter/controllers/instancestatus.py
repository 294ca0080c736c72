"""EC2's status checks and scheduled events, looked at once a minute, with an interruption queue or without one.

After aws/karpenter-provider-aws v1.14.1 ``pkg/controllers/interruption/instancestatus_controller.go`` and
``pkg/providers/instancestatus/instancestatus.go`` (in releases since v1.12.0; ``pkg/controllers/controllers.go``
registers it unconditionally):

* three calls of DescribeInstanceStatus, each with one filter: instance checks, system checks, codes of events;
* every event of these codes counts, however far ahead it is, and also one whose description says that it is over;
* a failed check counts once it has failed for two minutes; its node is ended by force, that of an event is drained;
* without the permission it says so once and stops: the reconciler returns neither an error nor a time to come back
  (awslabs/operatorpkg ``singleton/controller.go``). Only a new Karpenter tries again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from sandbox.karpenter.context import Context
from sandbox.karpenter.controllers.interruptionhandler import handle
from sandbox.karpenter.controllers.messages import Kind, Message
from sandbox.kube.resources import ApiError

log = logging.getLogger("sandbox.karpenter")
Object = dict[str, Any]

#: Simulated seconds: ``InstanceStatusInterval``, ``UnhealthyThreshold``.
INTERVAL, THRESHOLD = 60.0, 120.0
#: Real seconds after a failure (controller-runtime's rate limiter grows from 5 ms to 1000 s), and at least between two
#: looks.
_RETRY, _LEAST_PAUSE = 0.5, 0.2
EVENT_CODES = ("instance-reboot", "system-reboot", "system-maintenance", "instance-retirement", "instance-stop")
_FILTERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("instance-status.status", ("impaired",)),
    ("system-status.status", ("impaired",)),
    ("event.code", EVENT_CODES),
)


class InstanceStatus:
    """Polls until cancelled, or until EC2 refuses it."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self) -> None:
        while True:
            pause = max(_LEAST_PAUSE, self._context.clock.real(INTERVAL))
            try:
                await self._reconcile()
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") == "UnauthorizedOperation":
                    log.error(
                        "ec2:DescribeInstanceStatus permission is not allowed, update the IAM policy and restart the "
                        "Karpenter deployment to enable instance status health checks: %s",
                        error,
                    )
                    await asyncio.Event().wait()  # until this Karpenter ends
                log.warning("getting instance statuses, %s", error)
                pause = _RETRY
            except (BotoCoreError, ApiError, OSError, TimeoutError) as error:
                log.warning("getting instance statuses, %s", error)
                pause = _RETRY
            await asyncio.sleep(pause)

    async def _reconcile(self) -> None:
        for status in await self._unhealthy():
            instance = status["InstanceId"]
            for kind in self._categories(status):
                if await handle(self._context, Message(kind, (instance,))):
                    log.info("unhealthy instance owned by cluster: %s, %s", instance, kind)

    async def _unhealthy(self) -> list[Object]:
        """Each instance once, as the first call that names it shows it."""
        found: dict[str, Object] = {}
        for name, values in _FILTERS:
            for status in await self._context.aws.paginate(
                "ec2",
                "describe_instance_status",
                "InstanceStatuses[]",
                Filters=[{"Name": name, "Values": list(values)}],
            ):
                found.setdefault(status["InstanceId"], status)
        return list(found.values())

    def _categories(self, status: Object) -> list[Kind]:
        kinds = []
        for field, kind in (("InstanceStatus", Kind.INSTANCE_STATUS), ("SystemStatus", Kind.SYSTEM_STATUS)):
            details = (status.get(field) or {}).get("Details") or []
            if any(each.get("Status") == "failed" and self._lasts(each) for each in details):
                kinds.append(kind)
        return [*kinds, Kind.EVENT_STATUS] if status.get("Events") else kinds

    def _lasts(self, detail: Object) -> bool:
        since = detail.get("ImpairedSince")
        began = since.timestamp() if since is not None else 0.0
        return time.time() - began >= self._context.clock.real(THRESHOLD)
