from __future__ import annotations

import pytest

from sandbox.controllers.objects import condition
from sandbox.kube.resources import ApiError
from tests.sandbox.controllers import builders
from tests.sandbox.controllers.world import World


async def test_every_namespace_gets_its_account_and_the_root_certificate(cluster: World) -> None:
    await cluster.create(builders.plain("Namespace", "team", None))
    await cluster.object("ServiceAccount", "default", "team", bool)
    config = await cluster.object("ConfigMap", "kube-root-ca.crt", "team", bool)
    assert config["data"]["ca.crt"] == cluster.kube.certificate_authority
    await cluster.kube.delete("ServiceAccount", "default", "team")
    await cluster.object("ServiceAccount", "default", "team", bool)


async def test_deleting_a_namespace_deletes_what_is_in_it(cluster: World) -> None:
    await cluster.create(
        builders.node(),
        builders.plain("Namespace", "team", None),
        builders.plain("Secret", "s", "team", stringData={"a": "b"}),
        builders.workload("Deployment", namespace="team", replicas=1),
    )
    await cluster.pods(1, lambda pod: pod["status"]["phase"] == "Running", namespace="team")
    await cluster.kube.delete("Namespace", "team")
    await cluster.gone("Namespace", "team")
    for kind in ("Pod", "Secret", "Deployment", "ConfigMap", "ServiceAccount", "Event"):
        assert await cluster.kube.list(kind, "team") == []


async def test_a_finalizer_holds_the_namespace_and_is_named(cluster: World) -> None:
    await cluster.create(
        builders.plain("Namespace", "team", None),
        builders.plain("ConfigMap", "held", "team", metadata={"finalizers": ["example.com/hold"]}),
    )
    await cluster.kube.delete("Namespace", "team")
    namespace = await cluster.object(
        "Namespace", "team", None, lambda obj: condition(obj, "NamespaceFinalizersRemaining")
    )
    assert namespace["status"]["phase"] == "Terminating"
    texts = {each["type"]: each["message"] for each in namespace["status"]["conditions"]}
    assert texts["NamespaceContentRemaining"] == "Some resources are remaining: configmaps. has 1 resource instances"
    assert texts["NamespaceFinalizersRemaining"] == (
        "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
    )
    with pytest.raises(ApiError, match="because it is being terminated"):
        await cluster.create(builders.plain("ConfigMap", "late", "team"))
    await cluster.kube.patch("ConfigMap", "held", {"metadata": {"finalizers": None}}, "team")
    await cluster.gone("Namespace", "team")
