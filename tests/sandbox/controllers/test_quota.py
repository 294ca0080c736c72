from __future__ import annotations

from typing import Any

import pytest

from sandbox.kube.resources import ApiError
from tests.sandbox.controllers import builders
from tests.sandbox.controllers.world import World


async def test_use_is_counted_refused_and_given_back(cluster: World) -> None:
    hard = {"requests.nvidia.com/gpu": "1", "pods": "5", "configmaps": "2"}
    await cluster.create(builders.node(gpus=2), builders.plain("ResourceQuota", "q", spec={"hard": hard}))

    def used(gpus: str, pods: str) -> Any:
        return lambda quota: (
            (quota.get("status") or {}).get("used")
            == {"requests.nvidia.com/gpu": gpus, "pods": pods, "configmaps": "1"}
        )

    await cluster.object("ResourceQuota", "q", "default", used("0", "0"))
    await cluster.create(builders.pod("g1", gpus=1))
    quota = await cluster.object("ResourceQuota", "q", "default", lambda each: each["status"]["used"]["pods"] == "1")
    assert quota["status"]["used"]["requests.nvidia.com/gpu"] == "1"
    with pytest.raises(ApiError, match=r"exceeded quota: q, requested: requests\.nvidia\.com/gpu=1") as refused:
        await cluster.create(builders.pod("g2", gpus=1))
    assert refused.value.code == 403
    await cluster.kube.delete("Pod", "g1", "default")
    await cluster.object("ResourceQuota", "q", "default", used("0", "0"))
