"""One synchronous client, many threads: what a drain does that evicts side by side."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gpu_fleet.core.kubernetes.kinds import CONFIG_MAP, ObjectRef
from gpu_fleet.hooks.kubernetes.credentials import TokenFile
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient
from gpu_fleet.hooks.kubernetes.transport import CONNECTIONS
from tests.unit.hooks.scripted_api import Reply, Request, ScriptedApi, serving, status

REF = ObjectRef(CONFIG_MAP, "a", "d")
MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "d"}}


def together(kube: KubeClient, threads: int, times: int) -> None:
    """Each thread asks ``times`` times, each time all at once."""
    start = threading.Barrier(threads)

    def work() -> None:
        for _ in range(times):
            start.wait()
            assert kube.get(REF) == MAP

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work) for _ in range(threads)]:
            done.result()


class AllTogether(ScriptedApi):
    """Answers no request before so many are there."""

    def __init__(self, together: int) -> None:
        super().__init__()
        self._all_there = threading.Barrier(together)

    def reply_to(self, request: Request) -> Reply:
        self.requests.append(request)
        self._all_there.wait(10)
        return Reply(body=MAP)


def test_threads_keep_their_connections(tmp_path: Path) -> None:
    with serving(AllTogether(CONNECTIONS)) as api:
        kube = KubeClient(ClusterAccess("kubeconfig", None, None, None, path=str(api.kubeconfig(tmp_path))))
        together(kube, CONNECTIONS, 10)
        opened = kube._transport._pool.connection_from_url(api.url).num_connections
        assert opened <= CONNECTIONS
        assert len(api.requests) == CONNECTIONS * 10
        kube.close()


def test_a_token_that_many_threads_see_refused_is_renewed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an EKS token go the AWS session and its keys, whose renewal takes long."""
    renewals: list[int] = []
    path = tmp_path / "token"
    path.write_text("old")

    def renew(self: TokenFile) -> bool:
        renewals.append(1)
        path.write_text("new")
        self._read = None
        return True

    all_sent = threading.Barrier(16)

    def answer(request: Request) -> Reply:
        return status(401, "Unauthorized") if request.headers["Authorization"] == "Bearer old" else Reply(body=MAP)

    monkeypatch.setattr(TokenFile, "renew", renew)
    with serving(ScriptedApi(answer=answer)) as api:
        config = api.kubeconfig(tmp_path, tokenFile="token")
        kube = KubeClient(ClusterAccess("kubeconfig", None, None, None, path=str(config)))
        once = kube._transport._once
        waited: set[int] = set()

        def all_at_once(*args: object) -> bytes:
            try:
                return once(*args)  # type: ignore[arg-type]
            finally:
                if threading.get_ident() not in waited:
                    waited.add(threading.get_ident())
                    all_sent.wait(10)

        monkeypatch.setattr(kube._transport, "_once", all_at_once)
        together(kube, 16, 1)
        assert len(api.requests) == 32
        assert renewals == [1]
        kube.close()
