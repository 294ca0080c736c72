from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from sandbox.apiserver import Running
from tests.sandbox.apiserver.builders import MAPS, config_map
from tests.sandbox.apiserver.client import Api


def inject(cluster: Running, **rule: Any) -> None:
    cluster.settings.faults.set("request-faults", {"rules": [rule]})


async def test_a_status_for_some_requests_only(api: Api, cluster: Running) -> None:
    inject(cluster, verb="create", kind="ConfigMap", name="", status=503, message="down", count=1)
    refused = await api.post(MAPS, config_map("a"))
    assert (refused.code, refused.reason, refused.message) == (503, "ServiceUnavailable", "down")
    assert (await api.post(MAPS, config_map("a"))).code == 201


async def test_throttling_with_retry_after(api: Api, cluster: Running) -> None:
    inject(cluster, verb="list", resource="configmaps", status=429, retryAfter=1)
    reply = await api.get(MAPS)
    assert (reply.code, reply.headers["Retry-After"]) == (429, "1")


async def test_the_third_write_fails(api: Api, cluster: Running) -> None:
    inject(cluster, verb="create", resource="configmaps", status=500, after=2, count=1)
    codes = [(await api.post(MAPS, config_map(name))).code for name in "abcd"]
    assert codes == [201, 201, 500, 201]


async def test_a_cut_connection(api: Api, cluster: Running) -> None:
    inject(cluster, resource="configmaps", cut=True)
    with pytest.raises(aiohttp.ClientError):
        await api.get(MAPS)


@pytest.mark.parametrize(("agent", "code"), [("helm/4.2.3", 500), ("kubectl/v1.36", 200)])
async def test_by_user_agent(api: Api, cluster: Running, agent: str, code: int) -> None:
    inject(cluster, userAgent="helm", status=500)
    assert (await api.get(MAPS, User_Agent=agent)).code == code


async def test_by_the_beginning_of_a_name(api: Api, cluster: Running) -> None:
    inject(cluster, name="sh.helm.*", status=500)
    assert (await api.get(f"{MAPS}/sh.helm.v1")).code == 500
    assert (await api.get(f"{MAPS}/other")).code == 404


async def test_cleared(api: Api, cluster: Running) -> None:
    inject(cluster, status=500)
    assert (await api.get(MAPS)).code == 500
    cluster.settings.faults.clear("request-faults")
    assert (await api.get(MAPS)).code == 200
