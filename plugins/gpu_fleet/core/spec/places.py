"""Where the cluster is and how to reach it: AWS account side and Kubernetes side."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gpu_fleet.core.spec.base import QuotedVersion, SpecModel


class Aws(SpecModel):
    """The AWS side."""

    connection: Annotated[str, Field(min_length=1, max_length=250)] = Field(
        default="aws_default", description="Airflow connection id of type `aws`; credentials never stand in this file."
    )
    region: str = Field(
        pattern=r"^[a-z]{2}(-[a-z]+)+-[0-9]+$", description="AWS region of the cluster, for example us-west-2."
    )


class EksAccess(SpecModel):
    """Reach the API server with short-lived EKS tokens made in process."""

    mode: Literal["eks"] = "eks"


class KubeconfigAccess(SpecModel):
    """Reach the API server with a kubeconfig file that exists on every worker and triggerer."""

    mode: Literal["kubeconfig"]
    path: str = Field(min_length=1, description="Absolute path of the kubeconfig file.")
    context: str | None = Field(default=None, description="Context in that file; its current context if left out.")


Access = Annotated[EksAccess | KubeconfigAccess, Field(discriminator="mode")]


class Cluster(SpecModel):
    """The Kubernetes side: an existing EKS cluster."""

    name: str = Field(
        pattern=r"^[0-9A-Za-z][0-9A-Za-z_-]*$",
        max_length=100,
        description="EKS cluster name (at most 100 characters, Amazon EKS API `CreateCluster`).",
    )
    version: QuotedVersion = Field(
        default="1.35",
        pattern=r"^1\.[0-9]+$",
        description="Kubernetes version, quoted. EKS GPU AMIs cover 1.30 to 1.36; 1.35 has the longest standard "
        "support of the versions that most add-ons support.",
    )
    access: Access = Field(default_factory=EksAccess, description="How to reach the API server.")
