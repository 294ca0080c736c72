"""The volumes of Karpenter's instances (aws/karpenter-provider-aws v1.14.1 ``pkg/providers/launchtemplate``)."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.karpenter.cloudprovider.launchtemplates import block_devices


@pytest.mark.parametrize(
    ("mappings", "devices"),
    [
        (
            [
                {
                    "deviceName": "/dev/xvda",
                    "ebs": {"volumeType": "gp3", "volumeSize": "100Gi", "encrypted": True, "deleteOnTermination": True},
                }
            ],
            [
                {
                    "DeviceName": "/dev/xvda",
                    "Ebs": {"VolumeType": "gp3", "VolumeSize": 100, "Encrypted": True, "DeleteOnTermination": True},
                }
            ],
        ),
        (
            [{"deviceName": "/dev/xvdb", "ebs": {"volumeSize": "30.5Gi", "deleteOnTermination": False}}],
            [{"DeviceName": "/dev/xvdb", "Ebs": {"VolumeType": "gp3", "VolumeSize": 31, "DeleteOnTermination": False}}],
        ),
        (None, [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeType": "gp3", "VolumeSize": 20, "Encrypted": True}}]),
    ],
    ids=["of the class", "rounded up to GiB", "the default of AL2023"],
)
def test_the_volumes_of_an_instance_are_those_of_its_class(mappings: Any, devices: Any) -> None:
    spec = {} if mappings is None else {"blockDeviceMappings": mappings}
    assert block_devices({"metadata": {"name": "c"}, "spec": spec}) == devices
