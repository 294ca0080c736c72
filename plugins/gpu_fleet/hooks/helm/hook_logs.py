"""Puts the logs of hooks' and tests' pods into the task's log: helm deletes those pods, or names only the Job."""

from __future__ import annotations

import logging
import re

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.kubernetes.kinds import POD
from gpu_fleet.hooks.kubernetes.client import KubeClient

log = logging.getLogger(__name__)

_HOOK_JOB = re.compile(r"(?:job|resource)[ /]+(?:Job/)?(?:[a-z0-9-]+/)?(?P<name>[a-z0-9][a-z0-9.-]*)", re.IGNORECASE)
_LINES = 30


def log_pod(client: KubeClient, namespace: str, name: str) -> None:
    """Log the end of a pod's log, if it can still be read."""
    try:
        log.error("log of pod %s:\n%s", name, client.read_log(namespace, name, tail_lines=_LINES))
    except GpuFleetError as error:
        log.warning("the log of pod %s cannot be read: %s", name, error)


def log_hook_pods(client: KubeClient, namespace: str, message: str) -> None:
    """Log the end of the logs of a failed hook's pods.

    :param message: helm's complaint, which names the Job.
    """
    match = _HOOK_JOB.search(message)
    if match is None:
        return
    try:
        for pod in client.list(POD, namespace, label_selector=f"job-name={match['name']}"):
            name = pod["metadata"]["name"]
            log.error("log of hook pod %s:\n%s", name, client.read_log(namespace, name, tail_lines=_LINES))
    except GpuFleetError as error:
        log.warning("the log of hook %s cannot be read: %s", match["name"], error)
