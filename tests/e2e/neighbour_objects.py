"""What other teams have on a shared cluster, as manifests: nothing of it is gpu-fleet's business."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

VISION, SPEECH = "team-vision", "team-speech"
NAMESPACES = (VISION, SPEECH)
#: Their managed node group with a GPU node, and the taint and label that keep it theirs.
GROUP, GROUP_TYPE = "vision-gpu", "g6.xlarge"
TEAM_LABEL = {"example.com/team": "vision"}
TEAM_TAINT = {"key": "example.com/team", "value": "vision", "effect": "NoSchedule"}
#: Their Karpenter NodePool; its weight makes Karpenter try it before ours.
NODE_POOL = "speech-gpu"
POOL_LABEL = {"example.com/team": "speech"}
POOL_TAINT = {"key": "example.com/team", "value": "speech", "effect": "NoSchedule"}
PLUGIN = "vision-device-plugin"
GPU = "nvidia.com/gpu"
#: What their webhook does to every pod of the cluster, as meshes, monitors and registries' mirrors do.
MUTATION = {"env": {"INJECTED_BY": "vision"}, "labels": {"example.com/injected": "true"}}


def namespaces() -> list[Json]:
    return [_meta("v1", "Namespace", name) for name in NAMESPACES]


def belongings() -> list[Json]:
    """What a team keeps in its namespace, and the cluster-wide objects that it brought."""
    return [
        _meta("v1", "ConfigMap", "settings", VISION, data={"threshold": "0.5"}),
        _meta("v1", "Secret", "registry", VISION, stringData={"password": "theirs"}),
        _meta("coordination.k8s.io/v1", "Lease", "leader", VISION, spec={"holderIdentity": "a-pod-of-theirs"}),
        _meta("v1", "ResourceQuota", "quota", SPEECH, spec={"hard": {"pods": "20", f"requests.{GPU}": "8"}}),
        _meta(
            "v1",
            "LimitRange",
            "limits",
            SPEECH,
            spec={"limits": [{"type": "Container", "default": {"memory": "64Mi"}, "defaultRequest": {"cpu": "10m"}}]},
        ),
        _meta("node.k8s.io/v1", "RuntimeClass", "gvisor", handler="runsc"),
        _meta("scheduling.k8s.io/v1", "PriorityClass", "research", value=1000, description="theirs"),
        helm_release("web", VISION),
    ]


def helm_release(name: str, namespace: str) -> Json:
    """The Secret of a Helm release that nobody here knows; its content is opaque on purpose."""
    found = _meta("v1", "Secret", f"sh.helm.release.v1.{name}.v1", namespace)
    found["metadata"]["labels"] = {"owner": "helm", "name": name, "version": "1", "status": "deployed"}
    return {**found, "type": "helm.sh/release.v1", "stringData": {"release": "theirs"}}


def service(namespace: str = VISION) -> list[Json]:
    """A Deployment without GPUs whose budget allows no eviction at all."""
    labels = {"app": "inference-front"}
    budget = {"minAvailable": 2, "selector": {"matchLabels": labels}}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container({"cpu": "10m", "memory": "16Mi"})]}}
    return [
        _meta(
            "apps/v1",
            "Deployment",
            "inference-front",
            namespace,
            spec={"replicas": 2, "selector": {"matchLabels": labels}, "template": template},
        ),
        _meta("policy/v1", "PodDisruptionBudget", "inference-front", namespace, spec=budget),
    ]


def container(limits: Mapping[str, Any]) -> Json:
    return {"name": "main", "image": "registry.k8s.io/pause:3.10", "resources": {"limits": dict(limits)}}


def bare_gpu_pod(name: str, namespace: str, selector: Mapping[str, str], *tolerations: Json) -> Json:
    """A pod as Airflow's KubernetesPodOperator makes it: no controller, these labels, and it must not be disturbed.

    Labels: apache-airflow-providers-cncf-kubernetes ``operators/pod.py``, ``_get_ti_pod_labels``.
    """
    found = _meta("v1", "Pod", name, namespace)
    found["metadata"] |= {
        "labels": {
            "dag_id": "train_vision",
            "task_id": "train",
            "run_id": "manual__2026-01-01T0000000000-0000",
            "kubernetes_pod_operator": "True",
            "airflow_kpo_in_cluster": "False",
        },
        "annotations": {"karpenter.sh/do-not-disrupt": "true"},
    }
    spec = {
        "restartPolicy": "Never",
        "nodeSelector": dict(selector),
        "tolerations": [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}, *tolerations],
        "terminationGracePeriodSeconds": 1,
        "containers": [container({GPU: 1})],
    }
    return {**found, "spec": spec}


def device_plugin() -> Json:
    """Their own device plugin, narrowed to their nodes, as a team does that has read NVIDIA's README."""
    labels, folder = {"app": PLUGIN}, "/var/lib/kubelet/device-plugins"
    spec = {
        "nodeSelector": TEAM_LABEL,
        "tolerations": [_tolerates(TEAM_TAINT)],
        "priorityClassName": "system-node-critical",
        "containers": [
            {
                "name": "plugin",
                "image": "nvcr.io/nvidia/k8s-device-plugin:v0.20.0",
                "volumeMounts": [{"name": "plugins", "mountPath": folder}],
            }
        ],
        "volumes": [{"name": "plugins", "hostPath": {"path": folder, "type": "Directory"}}],
    }
    template = {"metadata": {"labels": labels}, "spec": spec}
    return _meta(
        "apps/v1", "DaemonSet", PLUGIN, "kube-system", spec={"selector": {"matchLabels": labels}, "template": template}
    )


def node_pool(cluster: str, role: str) -> list[Json]:
    """Another team's GPU NodePool with its EC2NodeClass: own taint, own label, and a weight above everybody's."""
    discovery = [{"tags": {"karpenter.sh/discovery": cluster}}]
    node_class = {
        "role": role,
        "amiSelectorTerms": [{"alias": "al2023@latest"}],
        "subnetSelectorTerms": discovery,
        "securityGroupSelectorTerms": discovery,
    }
    requirements = [
        {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["g5.2xlarge"]},
        {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["on-demand"]},
    ]
    template = {
        "metadata": {"labels": POOL_LABEL},
        "spec": {
            "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": NODE_POOL},
            "requirements": requirements,
            "taints": [POOL_TAINT],
            "expireAfter": "Never",
        },
    }
    disruption = {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "Never"}
    spec = {"weight": 90, "template": template, "limits": {"cpu": "64"}, "disruption": disruption}
    return [
        _meta("karpenter.k8s.aws/v1", "EC2NodeClass", NODE_POOL, spec=node_class),
        _meta("karpenter.sh/v1", "NodePool", NODE_POOL, spec=spec),
    ]


def _tolerates(taint: Mapping[str, str]) -> Json:
    return {**taint, "operator": "Equal"}


def _meta(api: str, kind: str, name: str, namespace: str = "", **more: Any) -> Json:
    place = {"namespace": namespace} if namespace else {}
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, **place}, **more}
