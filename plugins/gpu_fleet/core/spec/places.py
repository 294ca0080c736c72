"""Where the cluster is and how to reach it: AWS account side and Kubernetes side."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from gpu_fleet.core.spec.base import Pattern, SpecModel
from gpu_fleet.core.spec.types.names import QuotedVersion


def _region(value: str) -> str:
    zone = re.fullmatch(r"([a-z]+(?:-[a-z]+)+-[0-9])[a-z]", value)
    if zone is not None:
        return f"{value!r} is an availability zone; write its region, {zone[1]}"
    return f"{value!r} is not an AWS region; write its code, for example us-west-2"


def _cluster_name(value: str) -> str:
    arn = re.fullmatch(r"arn:[\w-]+:eks:[\w-]+:[0-9]+:cluster/([\w-]+)", value, re.ASCII)
    if arn is not None:
        return f"{value!r} is the cluster's ARN; write its name, {arn[1]}"
    return (
        f"{value!r} is not the name of an EKS cluster; use letters, digits, '-' and '_', "
        "beginning with a letter or digit"
    )


def _kubernetes_version(value: str) -> str:
    return f'{value!r} is not a Kubernetes version; write major and minor in quotes, for example "1.35"'


#: Of every partition: us-west-2, us-gov-west-1, cn-north-1, us-isob-east-1, eu-isoe-west-1, eusc-de-east-1.
Region = Annotated[str, Pattern(r"[a-z]{2,8}(-[a-z]{2,16}){1,3}-[0-9]{1,2}", _region)]
ClusterName = Annotated[str, Pattern(r"[0-9A-Za-z][0-9A-Za-z_-]*", _cluster_name)]
KubernetesVersion = Annotated[QuotedVersion, Pattern(r"1\.[0-9]{1,4}", _kubernetes_version)]


class Aws(SpecModel):
    """The AWS side."""

    connection: Annotated[str, Field(min_length=1, max_length=250)] = Field(
        default="aws_default",
        description="Airflow connection id of type `aws`; never write credentials into this file.",
    )
    region: Region = Field(description="AWS region of the cluster, for example us-west-2; any partition.")


class EksAccess(SpecModel):
    """Reach the API server with short-lived EKS tokens, created in process."""

    mode: Literal["eks"] = "eks"


class KubeconfigAccess(SpecModel):
    """Reach the API server with a kubeconfig file that exists on every worker and triggerer."""

    mode: Literal["kubeconfig"]
    path: str = Field(min_length=1, description="Absolute path of the kubeconfig file.")
    context: str | None = Field(default=None, description="Context in that file; default: its current context.")


Access = Annotated[EksAccess | KubeconfigAccess, Field(discriminator="mode")]


class Cluster(SpecModel):
    """The Kubernetes side: an existing EKS cluster."""

    name: ClusterName = Field(
        max_length=100,
        description="EKS cluster name (at most 100 characters, Amazon EKS API `CreateCluster`).",
    )
    version: KubernetesVersion = Field(
        default="1.35",
        description="Kubernetes version, quoted. EKS GPU AMIs cover 1.30 to 1.36; 1.35 has the longest standard "
        "support of the versions that most add-ons support.",
    )
    access: Access = Field(default_factory=EksAccess, description="How to reach the API server.")
