"""AWS's own endpoints, in every partition."""

from __future__ import annotations

from functools import cache
from typing import Any

from gpu_fleet.core.errors import SpecError


@cache
def _endpoints() -> Any:
    """botocore's list of partitions and their endpoints; read once per process, without a service model."""
    from botocore.loaders import create_loader
    from botocore.regions import EndpointResolver

    return EndpointResolver(create_loader().load_data("endpoints"))


def price_list_regions(region: str) -> list[str]:
    """The regions of this region's partition that have an endpoint of the Price List API; empty: none, as in AWS
    GovCloud, or there is no such region."""
    from botocore.exceptions import UnknownRegionError

    try:
        partition = _endpoints().get_partition_for_region(region)
    except UnknownRegionError:
        return []
    return list(_endpoints().get_available_endpoints("api.pricing", partition))


def regional_endpoint(service: str, region: str) -> str:
    """The URL of a service's own endpoint in a region, of whatever partition: each has a domain of its own.

    Not the client's: that of STS may be the global one (``sts_regional_endpoints = legacy``), which EKS does not accept
    in a token (kubernetes-sigs/aws-iam-authenticator pkg/token/token.go).

    :raises SpecError: if botocore knows no partition with such a region.
    """
    found = _endpoints().construct_endpoint(service, region)
    if not found:
        raise SpecError(f"AWS has no region {region!r}", field="aws.region", remedy="write for example us-west-2")
    return f"https://{found['hostname']}"
