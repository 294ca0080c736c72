"""The package's one way to a Kubernetes API server: :class:`KubernetesHook` makes the clients.

``hooks/kubernetes/client.py`` is the synchronous client of operators, ``hooks/kubernetes/aio.py`` the read-only one
of triggers, to which ``hooks/kubernetes/first_aid.py`` adds their one write; ``hooks/kubernetes/access.py`` finds
address, trust and credentials for all.
"""

from __future__ import annotations

import os
import threading

from gpu_fleet.hooks.kubernetes.access import ClusterAccess
from gpu_fleet.hooks.kubernetes.aio import AsyncKubeClient
from gpu_fleet.hooks.kubernetes.client import KubeClient

_lock = threading.Lock()
_clients: dict[tuple[int, ClusterAccess], KubeClient] = {}


class KubernetesHook:
    """Clients for one cluster.

    :param access: where the cluster is; see :meth:`ClusterAccess.from_spec`.
    """

    def __init__(self, access: ClusterAccess) -> None:
        self.access = access

    def client(self) -> KubeClient:
        """The process's synchronous client for this cluster; connects at its first call."""
        key = (os.getpid(), self.access)  # a forked task must not share its parent's sockets
        with _lock:
            if key not in _clients:
                _clients[key] = KubeClient(self.access)
            return _clients[key]

    def async_client(self) -> AsyncKubeClient:
        """A new asynchronous client; the caller closes it."""
        return AsyncKubeClient(self.access)


def close_clients() -> None:
    """Close the process's clients; the next :meth:`KubernetesHook.client` makes new ones."""
    with _lock:
        clients = [client for (pid, _), client in _clients.items() if pid == os.getpid()]
        _clients.clear()
    for client in clients:
        client.close()


__all__ = ["AsyncKubeClient", "ClusterAccess", "KubeClient", "KubernetesHook", "close_clients"]
