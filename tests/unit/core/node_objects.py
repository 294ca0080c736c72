"""NodePools, EC2NodeClasses and NodeClaims as Karpenter leaves them on a cluster."""

from __future__ import annotations

import copy
from typing import Any

from gpu_fleet.core.manifests.build import build
from tests.unit.core.cluster_objects import stamp
from tests.unit.core.specs import demo_spec

POOL = "shared-a10g"
Owners = tuple[dict[str, Any], dict[str, Any]]
SINCE = stamp(1_789_000_000.0)
IMAGES = {"al2023@v20260714": "ami-0714", "al2023@v20260601": "ami-0601"}


def live(
    digest: str = "1", class_digest: str = "1", images: str = "", **changes: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """NodePool and EC2NodeClass of the demo's first pool, with Karpenter's hashes.

    :param digest: the NodePool's.
    :param class_digest: the EC2NodeClass's.
    :param images: AMI that the class has found; by default the one of its alias.
    """
    spec = demo_spec(**changes)
    pool, node_class = build("node_pool", spec, pool=POOL)[0], build("node_class", spec, pool=POOL)[0]
    pool["metadata"]["annotations"] = hashes("karpenter.sh/nodepool", digest, "v3")
    node_class["metadata"] |= {
        "annotations": hashes("karpenter.k8s.aws/ec2nodeclass", class_digest, "v5"),
        "generation": 1,
    }
    image = images or IMAGES[node_class["spec"]["amiSelectorTerms"][0]["alias"]]
    node_class["status"] = {
        "amis": [{"id": image, "name": f"eks-{image}"}],
        "conditions": [{"type": "Ready", "status": "True", "observedGeneration": 1}],
    }
    return pool, node_class


def hashes(prefix: str, digest: str, version: str) -> dict[str, str]:
    return {f"{prefix}-hash": digest, f"{prefix}-hash-version": version}


def made_of(owners: Owners, name: str = "one", *, drifted: str = "", image: str = "") -> dict[str, Any]:
    """A NodeClaim as Karpenter makes it (core ``pkg/apis/v1/nodepool.go``, ToNodeClaim), with its node.

    :param drifted: reason of the condition.
    """
    pool, node_class = owners
    template = copy.deepcopy(pool["spec"]["template"])
    conditions = [{"type": kind, "status": "True"} for kind in ("Launched", "Registered", "Initialized", "Ready")]
    if drifted:
        conditions.append({"type": "Drifted", "status": "True", "reason": drifted, "lastTransitionTime": SINCE})
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodeClaim",
        "metadata": {
            "name": f"claim-{name}",
            "uid": f"uid-{name}",
            "creationTimestamp": stamp(1_789_000_000.0),
            "labels": {
                **template["metadata"]["labels"],
                "karpenter.sh/nodepool": POOL,
                "karpenter.sh/capacity-type": "spot",
                "karpenter.k8s.aws/ec2nodeclass": POOL,
                "node.kubernetes.io/instance-type": "g5.xlarge",
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": "us-west-2a",
            },
            "annotations": {**pool["metadata"]["annotations"], **node_class["metadata"]["annotations"]},
        },
        "spec": template["spec"],
        "status": {
            "nodeName": f"node-{name}",
            "imageID": image or node_class["status"]["amis"][0]["id"],
            "conditions": conditions,
        },
    }


def job(name: str, node: str = "node-one", *, gpus: int = 1, **annotations: str) -> dict[str, Any]:
    """A user's pod; annotation ``karpenter.sh/do-not-disrupt`` as ``stay``."""
    notes = {"karpenter.sh/do-not-disrupt": annotations["stay"]} if "stay" in annotations else {}
    resources = {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "ml", "annotations": notes},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "cuda", "resources": resources}]},
        "status": {"phase": "Running"},
    }
