"""EC2 tags that a cluster file adds to instances and volumes."""

from __future__ import annotations

from collections.abc import Mapping

from gpu_fleet.core.kubernetes.names import LABEL_CLUSTER, LABEL_POOL
from gpu_fleet.core.spec.base import visible
from gpu_fleet.core.spec.types.selecting import LONGEST_TAG_KEY, LONGEST_TAG_VALUE

#: Keys that the EC2NodeClass refuses, besides those that begin with ``kubernetes.io/cluster``
#: (aws/karpenter-provider-aws v1.14.1 pkg/apis/crds/karpenter.k8s.aws_ec2nodeclasses.yaml, ``spec.tags``). ``aws:`` is
#: EC2's own, in any case (Amazon EC2 User Guide, 'Tag your Amazon EC2 resources').
_RESERVED_TAGS = frozenset(
    {"eks:eks-cluster-name", "karpenter.sh/nodepool", "karpenter.sh/nodeclaim", "karpenter.k8s.aws/ec2nodeclass"}
)
#: EC2 takes 50 tags on an instance. Karpenter adds six: those four keys, ``kubernetes.io/cluster/NAME`` and ``Name``
#: (v1.14.1 pkg/utils/utils.go, ``GetTags``; pkg/controllers/nodeclaim/tagging); we add cluster and pool.
MOST_TAGS = 50 - 6 - 2


def check_tags(value: Mapping[str, str]) -> None:
    """
    :raises ValueError: for tags that EC2, EKS or Karpenter would refuse on an instance.
    """
    for key, text in value.items():
        visible(key)
        visible(text)
        if not 0 < len(key) <= LONGEST_TAG_KEY:
            raise ValueError(f"tag key {key!r} has {len(key)} characters; write 1 to {LONGEST_TAG_KEY}, as EC2 takes")
        if len(text) > LONGEST_TAG_VALUE:
            raise ValueError(
                f"the value of tag {key!r} has {len(text)} characters; "
                f"shorten it: EC2 takes at most {LONGEST_TAG_VALUE}"
            )
        if key.lower().startswith("aws:") or key.startswith("kubernetes.io/cluster") or key in _RESERVED_TAGS:
            raise ValueError(f"tag {key!r} is reserved by Karpenter, EKS or AWS; choose another key")
        if key in (LABEL_CLUSTER, LABEL_POOL):
            raise ValueError(f"tag {key!r} is set by gpu-fleet itself; choose another key")
