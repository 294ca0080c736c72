"""A whole simulated cluster for tests: moto, API server, controllers, nodes, Karpenter; short ways to talk to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sandbox import controllers, karpenter, nodes
from sandbox.apiserver.server import running
from sandbox.aws.client import Aws
from sandbox.aws.moto import Moto
from sandbox.aws.testing import running_account, running_cloud
from sandbox.karpenter.conditions import is_true
from sandbox.kube.client import Kube
from sandbox.kube.resources import ApiError
from sandbox.settings import Clock, Settings

Object = dict[str, Any]
CRDS = Path(__file__).resolve().parents[3] / "sandbox" / "charts" / "karpenter-crd" / "templates"
PLUGIN_IMAGE = "nvcr.io/nvidia/k8s-device-plugin:v0.20.0"
PROBE_IMAGE = "nvidia/cuda:12.8.0-base-ubuntu22.04"
VECTORADD_IMAGE = "nvcr.io/nvidia/k8s/cuda-sample:vectoradd-cuda12.5.0-ubuntu22.04"
GPU_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


@dataclass
class Cluster:
    """:ivar parts: the running parts by name; :meth:`stop` and :meth:`start` them."""

    settings: Settings
    clock: Clock
    kube: Kube
    aws: Aws
    moto: Moto
    parts: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        module = {"controllers": controllers, "nodes": nodes, "karpenter": karpenter}[name]
        kube = self.kube.clone(f"sandbox-{name}")
        arguments = (self.settings, self.clock, kube) + ((self.aws,) if name != "controllers" else ())

        async def live() -> None:
            try:
                await module.run(*arguments)
            finally:
                await kube.close()

        self.parts[name] = asyncio.create_task(live(), name=name)

    async def stop(self, name: str) -> None:
        task = self.parts.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def define_karpenter(self) -> None:
        """Karpenter's CustomResourceDefinitions, once what they define is served."""
        documents = [each for path in sorted(CRDS.glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())]
        for document in documents:
            await self.kube.apply(document, field_manager="test")
        names = [document["metadata"]["name"] for document in documents]

        async def served() -> bool:
            found = [await self.kube.get("CustomResourceDefinition", name) for name in names]
            return all(is_true(each, "Established") for each in found)

        await self.until(served)

    async def until(
        self, what: Callable[[], Any], describe: Callable[[], Any] | None = None, within: float = 40.0
    ) -> Any:
        """Look until ``what()`` (awaited) is true; its value.

        :raises AssertionError: after ``within`` real seconds, with what ``describe()`` says.
        """
        try:
            async with asyncio.timeout(within):
                while True:
                    for name, task in self.parts.items():
                        if task.done():
                            raise AssertionError(f"part {name} ended: {task.exception()!r}")
                    if value := await what():
                        return value
                    await asyncio.sleep(0.03)
        except TimeoutError:
            seen = await (describe or what)()
            raise AssertionError(f"not reached: {yaml.safe_dump(seen)[:4000] if seen else 'nothing'}") from None

    # --- objects ---

    async def apply(self, *objects: Object) -> list[Object]:
        return [await self.kube.apply(each, field_manager="test") for each in objects]

    async def pod(self, name: str, namespace: str = "default") -> Object | None:
        return await self.kube.find("Pod", name, namespace)

    async def pod_phase(self, name: str, phase: str, namespace: str = "default") -> Object:
        async def look() -> Object | None:
            found = await self.pod(name, namespace)
            return found if found and found["status"].get("phase") == phase else None

        return await self.until(look, lambda: self.pod(name, namespace))

    async def gone(self, kind: str, name: str, namespace: str | None = None) -> None:
        async def look() -> bool:
            return await self.kube.find(kind, name, namespace) is None

        await self.until(look, lambda: self.kube.find(kind, name, namespace))

    async def claims(self) -> list[Object]:
        try:
            return await self.kube.list("NodeClaim")
        except ApiError as error:
            if error.not_found:
                return []
            raise

    async def pool_nodes(self) -> list[Object]:
        return await self.kube.list("Node", label_selector="karpenter.sh/nodepool")

    async def events(self, name: str, reason: str | None = None) -> list[str]:
        """Messages of the events about an object."""
        found = await self.kube.list("Event", field_selector=f"involvedObject.name={name}")
        return [each["message"] for each in found if reason in (None, each["reason"])]

    async def event(self, name: str, reason: str, text: str = "") -> str:
        """The first message with ``text`` in it, once there is one."""

        async def look() -> str | None:
            return next((each for each in await self.events(name, reason) if text in each), None)

        return await self.until(look, lambda: self.kube.list("Event", field_selector=f"involvedObject.name={name}"))

    async def instances(self, *states: str) -> list[Object]:
        wanted = [{"Name": "tag-key", "Values": ["karpenter.sh/nodepool"]}]
        found = await self.aws.paginate("ec2", "describe_instances", "Reservations[].Instances[]", Filters=wanted)
        return [each for each in found if not states or each["State"]["Name"] in states]

    async def install_karpenter(self, gates: str = "", *, queue: bool = True) -> None:
        """CRDs and a Deployment as the charts make them.

        :param gates: ``FEATURE_GATES`` of the controller.
        :param queue: whether it has an interruption queue.
        """
        await self.define_karpenter()
        account = {"apiVersion": "v1", "kind": "ServiceAccount"}
        await self.apply(account | {"metadata": {"name": "karpenter", "namespace": "kube-system"}})
        deployment = karpenter_deployment(self.settings.cluster_name)
        env = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
        if not queue:
            env[:] = [each for each in env if each["name"] != "INTERRUPTION_QUEUE"]
        if gates:
            env.append({"name": "FEATURE_GATES", "value": gates})
        await self.apply(deployment)

        async def ready() -> bool:
            found = await self.kube.get("Deployment", "karpenter", "kube-system")
            return bool((found.get("status") or {}).get("readyReplicas"))

        await self.until(ready, lambda: self.kube.list("Pod"))

    async def install_plugin(self, configs: dict[str, str] | None = None, default: str = "exclusive") -> None:
        await self.runtime_class()
        await self.apply(*plugin_objects(configs or {"exclusive": "version: v1\n"}, default))

    async def runtime_class(self) -> None:
        runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}}
        await self.apply(runtime | {"handler": "nvidia"})

    # --- nodes without Karpenter ---

    async def launch(self, instance_type: str = "g5.xlarge", **tags: str) -> str:
        """An instance of the cluster; its id. In tags ``__`` stands for ``/``."""
        found = {key.replace("__", "/"): value for key, value in tags.items()}
        found[f"kubernetes.io/cluster/{self.settings.cluster_name}"] = "owned"
        images = await self.aws.call("ec2", "describe_images", Filters=[{"Name": "name", "Values": ["*nvidia-1.35*"]}])
        listed = [{"Key": key, "Value": value} for key, value in found.items()]
        answer = await self.aws.call(
            "ec2",
            "run_instances",
            ImageId=images["Images"][0]["ImageId"],
            InstanceType=instance_type,
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[{"ResourceType": "instance", "Tags": listed}],
        )
        return str(answer["Instances"][0]["InstanceId"])

    async def terminate(self, instance_id: str) -> None:
        await self.aws.call("ec2", "terminate_instances", InstanceIds=[instance_id])

    async def node_of(self, instance_id: str) -> Object | None:
        for node in await self.kube.list("Node"):
            if node["spec"].get("providerID", "").endswith(f"/{instance_id}"):
                return node
        return None

    async def ready_node(self, instance_id: str, **labels: str) -> str:
        """The name of an instance's node once it is Ready and untainted; labels as in :meth:`launch`."""

        async def look() -> Object | None:
            node = await self.node_of(instance_id)
            return node if node and is_true(node, "Ready") and not node["spec"].get("taints") else None

        node = await self.until(look, lambda: self.kube.list("Node"))
        name = str(node["metadata"]["name"])
        if labels:
            found = {key.replace("__", "/"): value for key, value in labels.items()}
            await self.kube.patch("Node", name, {"metadata": {"labels": found}})
        return name

    async def allocatable(self, node: str, count: str | None, resource: str = "nvidia.com/gpu") -> Object:
        """Wait until a node announces so many GPUs."""

        async def look() -> Object | None:
            found = await self.kube.get("Node", node)
            return found if found["status"]["allocatable"].get(resource) == count else None

        return await self.until(look, lambda: self.kube.list("Pod", "kube-system"))


@asynccontextmanager
async def simulated(folder: Path, *parts: str, speed: float = 40.0, eks: bool = False) -> AsyncIterator[Cluster]:
    """Moto and an API server, and the named parts.

    :param eks: with what moto's EKS lacks: access entries and pod identity.
    """
    settings = Settings(state_dir=folder, speed=speed)
    cloud = running_cloud(settings) if eks else running_account(settings)
    async with cloud as account, running(folder, settings=settings) as server:
        clock = Clock(speed)
        kube = Kube.from_kubeconfig(server.kubeconfig, user_agent="test")
        cluster = Cluster(settings, clock, kube, account.aws, account.moto)
        try:
            for name in parts or ("controllers", "nodes", "karpenter"):
                cluster.start(name)
            yield cluster
        finally:
            for name in list(cluster.parts):
                await cluster.stop(name)
            await kube.close()


# --- manifests ---


def karpenter_deployment(cluster_name: str) -> Object:
    labels = {"app.kubernetes.io/name": "karpenter"}
    env = [{"name": "CLUSTER_NAME", "value": cluster_name}, {"name": "INTERRUPTION_QUEUE", "value": cluster_name}]
    container = {
        "name": "controller",
        "image": "public.ecr.aws/karpenter/controller:1.14.1",
        "env": env,
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "karpenter", "namespace": "kube-system"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"serviceAccountName": "karpenter", "containers": [container]},
            },
        },
    }


def plugin_objects(configs: dict[str, str], default: str) -> list[Object]:
    labels = {"app.kubernetes.io/name": "nvidia-device-plugin"}
    mounts = [
        {"name": "available-configs", "mountPath": "/available-configs"},
        {"name": "config", "mountPath": "/config"},
    ]

    def manager(name: str, once: str) -> Object:
        env = [
            {"name": "ONESHOT", "value": once},
            {"name": "DEFAULT_CONFIG", "value": default},
            {"name": "FALLBACK_STRATEGIES", "value": "named,single"},
        ]
        return {"name": name, "image": PLUGIN_IMAGE, "command": ["config-manager"], "env": env, "volumeMounts": mounts}

    spec = {
        "runtimeClassName": "nvidia",
        "nodeSelector": {"nvidia.com/gpu.present": "true"},
        "tolerations": [GPU_TOLERATION],
        "initContainers": [manager("nvidia-device-plugin-init", "true")],
        "containers": [
            manager("nvidia-device-plugin-sidecar", "false"),
            {
                "name": "nvidia-device-plugin-ctr",
                "image": PLUGIN_IMAGE,
                "command": ["nvidia-device-plugin"],
                "env": [{"name": "CONFIG_FILE", "value": "/config/config.yaml"}],
                "volumeMounts": mounts,
            },
        ],
        "volumes": [
            {"name": "available-configs", "configMap": {"name": "plugin-configs"}},
            {"name": "config", "emptyDir": {}},
        ],
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "plugin-configs", "namespace": "kube-system"},
            "data": configs,
        },
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            # As helm annotates it: the release that a cluster file manages by default.
            "metadata": {
                "name": "nvidia-device-plugin",
                "namespace": "kube-system",
                "annotations": {
                    "meta.helm.sh/release-name": "nvidia-device-plugin",
                    "meta.helm.sh/release-namespace": "nvidia-device-plugin",
                },
            },
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": spec},
            },
        },
    ]


def node_class(name: str = "gpu", cluster: str = "demo-gpu", **spec: Any) -> Object:
    tags = {"karpenter.sh/discovery": cluster}
    return {
        "apiVersion": "karpenter.k8s.aws/v1",
        "kind": "EC2NodeClass",
        "metadata": {"name": name},
        "spec": {
            "amiSelectorTerms": [{"alias": "al2023@v20260714"}],
            "role": f"KarpenterNodeRole-{cluster}",
            "subnetSelectorTerms": [{"tags": tags}],
            "securityGroupSelectorTerms": [{"tags": tags}],
            **spec,
        },
    }


def node_pool(
    name: str = "gpu",
    *types: str,
    labels: dict[str, str] | None = None,
    disruption: Object | None = None,
    limits: Object | None = None,
    class_name: str = "gpu",
    **template: Any,
) -> Object:
    """By default g5.xlarge on demand, tainted, labelled for the plugin."""
    spec: Object = {
        "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": class_name},
        "taints": [{"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}],
        "requirements": [
            {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": list(types) or ["g5.xlarge"]},
            {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["on-demand"]},
        ],
        **template,
    }
    found = {"nvidia.com/gpu.present": "true", **(labels or {})}
    pool: Object = {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": name},
        "spec": {
            "template": {"metadata": {"labels": found}, "spec": spec},
            "disruption": disruption or {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "Never"},
        },
    }
    if limits:
        pool["spec"]["limits"] = limits
    return pool


def node_overlay(name: str, pool: str, gpus: int, **spec: Any) -> Object:
    requirement = {"key": "karpenter.sh/nodepool", "operator": "In", "values": [pool]}
    return {
        "apiVersion": "karpenter.sh/v1alpha1",
        "kind": "NodeOverlay",
        "metadata": {"name": name},
        "spec": {"requirements": [requirement], "capacity": {"nvidia.com/gpu": str(gpus)}, **spec},
    }


def gpu_pod(
    name: str,
    gpus: int = 1,
    image: str = PROBE_IMAGE,
    command: list[str] | None = None,
    labels: dict[str, str] | None = None,
    **spec: Any,
) -> Object:
    container: Object = {"name": "main", "image": image, "command": command or ["sleep", "100000"]}
    if gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": labels or {"app": "probe"}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 5,
            "tolerations": [GPU_TOLERATION],
            "containers": [container],
            **spec,
        },
    }


def slicing(replicas: int, **more: Any) -> str:
    block = {**more, "resources": [{"name": "nvidia.com/gpu", "replicas": replicas}]}
    return yaml.safe_dump({"version": "v1", "sharing": {"timeSlicing": block}})
