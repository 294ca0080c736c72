"""What the files of a deployment's fleet may name: notifiers, Airflow connections, kubeconfig files.

A person who may edit one cluster file decides what the workers do with it. So a file must not reach what the
deployment holds for others: import any module, use any connection, or log in with any kubeconfig on the worker's disk.
The limits belong to the deployment, not to the files (:func:`gpu_fleet.hooks.settings.trust`); without any, the
defaults apply.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.spec.problems import Problem, shortened

if TYPE_CHECKING:
    from gpu_fleet.core.spec import ClusterSpec

#: Reason of the error about what a cluster file names although it may not.
NOT_ALLOWED = "NotAllowedHere"
#: The variables that set the limits, by what they limit.
NOTIFIERS_VARIABLE = "GPU_FLEET_ALLOWED_NOTIFIERS"
CONNECTIONS_VARIABLE = "GPU_FLEET_ALLOWED_CONNECTIONS"
KUBECONFIGS_VARIABLE = "GPU_FLEET_ALLOWED_KUBECONFIGS"


@dataclass(frozen=True)
class Trust:
    """
    :ivar notifiers: import paths, or their beginnings up to a dot: ``my_company.notifiers`` covers
        ``my_company.notifiers.Pager`` and not ``my_company.notifiers_old.Pager``. By default those of Airflow's
        installed providers.
    :ivar connections: patterns of connection ids (``*``, ``?`` and ``[…]`` as in file names), for ``aws.connection``
        and for every argument of a notifier whose name ends with ``conn_id``. By default the ids that the guides use.
    :ivar kubeconfigs: absolute paths of files, or of folders with everything below them. By default none: a kubeconfig
        carries its user's rights, and a path does not show whose.
    """

    notifiers: tuple[str, ...] = ("airflow.providers",)
    connections: tuple[str, ...] = ("aws_*", "smtp_*")
    kubeconfigs: tuple[str, ...] = ()

    def takes_notifier(self, path: str) -> bool:
        return any(path == prefix or path.startswith(f"{prefix.rstrip('.')}.") for prefix in self.notifiers)

    def takes_connection(self, conn_id: str) -> bool:
        # A template is refused: its value is known only when it is used.
        plain = re.fullmatch(r"[\w.\-]+", conn_id, re.ASCII) is not None
        return plain and any(fnmatchcase(conn_id, pattern) for pattern in self.connections)

    def takes_kubeconfig(self, path: str) -> bool:
        """By the path alone: a person who may write into an allowed folder, and create links there, is trusted with its
        files."""
        if not path.startswith("/") or ".." in path.split("/"):
            return False
        plain = posixpath.normpath(path)
        folders = (posixpath.normpath(allowed) for allowed in self.kubeconfigs)
        return any(plain == allowed or plain.startswith(f"{allowed.rstrip('/')}/") for allowed in folders)


def connections_named(arguments: Any, field: str) -> Iterator[tuple[str, Any]]:
    """``(field, value)`` of each connection id in a notifier's arguments, at any depth."""
    if isinstance(arguments, Mapping):
        for key, value in arguments.items():
            if str(key).endswith("conn_id") and value is not None:
                yield f"{field}.{key}", value
            else:
                yield from connections_named(value, f"{field}.{key}")
    elif isinstance(arguments, list | tuple):
        for index, value in enumerate(arguments):
            yield from connections_named(value, f"{field}[{index}]")


def notifier_beyond(trust: Trust, entry: Mapping[str, Any], field: str) -> Iterator[Problem]:
    """What one entry of ``validation.notify`` names although it may not.

    :param entry: ``{"notifier": import path, "arguments": {…}}``.
    :param field: its path in the spec.
    """
    path = str(entry.get("notifier", ""))
    if not trust.takes_notifier(path):
        yield Problem(
            f"{field}.notifier",
            f"this deployment does not let cluster files name {shortened(path)}",
            f"name one of {', '.join(trust.notifiers) or '(none)'}, or have the deployment add it to "
            f"{NOTIFIERS_VARIABLE} on workers, DAG processor and triggerer",
        )
    for where, value in connections_named(entry.get("arguments"), f"{field}.arguments"):
        if not (isinstance(value, str) and trust.takes_connection(value)):
            yield _connection(trust, where, value)


def _connection(trust: Trust, field: str, value: Any) -> Problem:
    return Problem(
        field,
        f"this deployment does not let cluster files use the connection {shortened(value)}",
        f"use one of {', '.join(trust.connections) or '(none)'}, or have the deployment add it to "
        f"{CONNECTIONS_VARIABLE} on workers, DAG processor and triggerer",
    )


def beyond(trust: Trust, spec: ClusterSpec) -> list[Problem]:
    """Everything that a spec names and that cluster files of this deployment may not name."""
    problems = []
    if not trust.takes_connection(spec.aws.connection):
        problems.append(_connection(trust, "aws.connection", spec.aws.connection))
    access = spec.cluster.access
    if access.mode == "kubeconfig" and not trust.takes_kubeconfig(access.path):
        problems.append(
            Problem(
                "cluster.access.path",
                f"this deployment does not let cluster files use the kubeconfig {shortened(access.path)}",
                f"name a file in {', '.join(trust.kubeconfigs) or '(none)'}, or have the deployment add the file or "
                f"its folder to {KUBECONFIGS_VARIABLE} on workers and triggerer",
            )
        )
    for index, entry in enumerate(spec.validation.notify):
        problems += notifier_beyond(trust, entry.model_dump(mode="json"), f"validation.notify[{index}]")
    return problems
