"""The contract tests on somebody else's API server: ``default`` is a namespace of the test's own there.

What a test creates is noted and removed again, the objects outside of its namespace too.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.sandbox.apiserver.client import Api, Reply, access

#: Names the kubeconfig of the server that tests marked ``real_api`` run on instead of the sandbox's.
VARIABLE = "E2E_KUBECONFIG"
_DEFAULT = re.compile(r"/namespaces/default(?=[/?]|$)")
_PATIENCE_S = 60.0
#: By server: whether nobody but the tests takes its namespaces away.
_UNATTENDED: dict[str, bool] = {}


class Elsewhere(Api):
    """:ivar namespace: what stands for ``default``; replies call it that again."""

    def __init__(self, *args: Any, namespace: str) -> None:
        super().__init__(*args)
        self.namespace = namespace
        self._created: list[str] = []

    def there(self, path: str) -> str:
        return _DEFAULT.sub(f"/namespaces/{self.namespace}", path)

    def here(self, text: str) -> str:
        return text.replace(self.namespace, "default")

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        if isinstance(body, dict) and (body.get("metadata") or {}).get("namespace") == "default":
            body = {**body, "metadata": {**body["metadata"], "namespace": self.namespace}}
        reply = await super().call(method, path, body, **headers)
        plain, _, query = path.partition("?")
        if reply.code == 201 and "dryRun" not in query:
            name = (reply.body.get("metadata") or {}).get("name")
            if method == "PATCH":
                self._created.append(plain)
            elif method == "POST" and name and reply.body.get("kind") not in ("Status", "TokenRequest"):
                self._created.append(f"{plain}/{name}")
        return reply

    async def prepare(self) -> None:
        """The namespace, with the account that its pods run as: only a controller manager would make that."""
        reply = await self.post("/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        assert reply.code == 201, reply.text
        account = {"metadata": {"name": "default"}}
        reply = await self.post("/api/v1/namespaces/default/serviceaccounts", account)
        assert reply.code in (201, 409), reply.text

    async def clean(self) -> None:
        """Remove all that was created, the newest first, and the namespace at last."""
        for path in reversed(self._created):
            await self.delete(f"{path}?gracePeriodSeconds=0")
            held = await self.get(path)
            if held.code == 200 and held.body["metadata"].get("finalizers") and not path.endswith(self.namespace):
                await self._release(path, held)
            await self._gone(path)

    async def _release(self, path: str, held: Reply) -> None:
        if "/customresourcedefinitions/" not in path and "/namespaces/" in path:
            await self.patch(path, {"metadata": {"finalizers": None}})

    async def _gone(self, path: str) -> None:
        deadline = asyncio.get_running_loop().time() + _PATIENCE_S
        tried = False
        while (found := await self.get(path)).code == 200:
            assert asyncio.get_running_loop().time() < deadline, f"{path} does not go: {found.text}"
            if found.body.get("kind") == "Namespace" and not tried and await self._unattended():
                tried = True
                await self.put(f"{path}/finalize", _unfinished(found.body["metadata"]["name"]))
                continue
            await asyncio.sleep(0.2)

    async def _unattended(self) -> bool:
        """Whether no controller empties namespaces here: none made the account of a new one within two seconds."""
        if self._url not in _UNATTENDED:
            name = f"{self.namespace}-probe"
            await super().call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
            await asyncio.sleep(2)
            account = await super().call("GET", f"/api/v1/namespaces/{name}/serviceaccounts/default")
            _UNATTENDED[self._url] = account.code == 404
            await super().call("DELETE", f"/api/v1/namespaces/{name}")
            if _UNATTENDED[self._url]:
                await super().call("PUT", f"/api/v1/namespaces/{name}/finalize", _unfinished(name))
        return _UNATTENDED[self._url]


def _unfinished(namespace: str) -> dict[str, Any]:
    """What lets a namespace go that no controller has emptied."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}, "spec": {"finalizers": []}}


@asynccontextmanager
async def elsewhere(kubeconfig: Path) -> AsyncIterator[Elsewhere]:
    """An administrator of a given server, in a namespace of their own that goes at the end."""
    url, context, headers = access(kubeconfig)
    namespace = f"contract-{secrets.token_hex(4)}"
    async with aiohttp.ClientSession() as session:
        api = Elsewhere(session, url, context, headers, namespace=namespace)
        try:
            await api.prepare()
            yield api
        finally:
            await api.clean()
