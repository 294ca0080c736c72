"""Physical GPUs as EC2 describes them."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.aws.hardware import hardware_of
from gpu_fleet.core.errors import SpecError


def described(name: str, count: int = 1, manufacturer: str = "NVIDIA", product: str = "A10G") -> dict[str, Any]:
    gpu = {"Name": product, "Manufacturer": manufacturer, "Count": count, "MemoryInfo": {"SizeInMiB": 24576}}
    return {"InstanceType": name, "GpuInfo": {"Gpus": [gpu], "TotalGpuMemoryInMiB": 24576 * count}}


def test_types_with_equal_counts() -> None:
    found = hardware_of([described("g5.xlarge"), described("g5.2xlarge")], ["g5.xlarge", "g5.2xlarge"])
    assert found.count == 1
    assert found.products == {"g5.xlarge": "A10G", "g5.2xlarge": "A10G"}
    assert found.memory_mib["g5.xlarge"] == 24576


def test_eight_gpus() -> None:
    assert hardware_of([described("p4d.24xlarge", 8, product="A100")], ["p4d.24xlarge"]).count == 8


@pytest.mark.parametrize(
    ("answer", "wanted", "message"),
    [
        ([], ["g5.xlarge"], "EC2 does not know instance type g5.xlarge"),
        ([{"InstanceType": "m5.large"}], ["m5.large"], "m5.large has no NVIDIA GPU"),
        ([described("g4ad.xlarge", manufacturer="AMD")], ["g4ad.xlarge"], "no NVIDIA GPU"),
        ([described("g5.xlarge"), described("g5.12xlarge", 4)], ["g5.xlarge", "g5.12xlarge"], "same number of GPUs"),
        ([], [], "none is named"),
        ([described("g6f.xlarge", 0, product="L4")], ["g6f.xlarge"], "g6f.xlarge has a part of a GPU: EC2 reports 0"),
    ],
)
def test_what_ec2_contradicts(answer: list[dict[str, Any]], wanted: list[str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        hardware_of(answer, wanted)


def test_vcpus_and_places_for_pods() -> None:
    """g4dn.xlarge: the default card has 3 interfaces of 10 addresses each."""
    network = {
        "MaximumNetworkInterfaces": 60,
        "Ipv4AddressesPerInterface": 10,
        "DefaultNetworkCardIndex": 1,
        "NetworkCards": [{"MaximumNetworkInterfaces": 7}, {"MaximumNetworkInterfaces": 3}],
    }
    answer = {**described("g4dn.xlarge"), "VCpuInfo": {"DefaultVCpus": 4}, "NetworkInfo": network}
    found = hardware_of([answer], ["g4dn.xlarge"])
    assert (found.vcpus, found.pod_places) == ({"g4dn.xlarge": 4}, {"g4dn.xlarge": 29})


def test_what_ec2_does_not_tell_is_not_known() -> None:
    found = hardware_of([described("g5.xlarge")], ["g5.xlarge"])
    assert (found.vcpus, found.pod_places) == ({}, {})
