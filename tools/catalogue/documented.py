"""Types that no generated table has, because AWS sells them by UltraServer and Capacity Block only.

An UltraServer u-p6e-gb200x72 is 18 instances p6e-gb200.36xlarge, with 72 GPUs, 2,592 vCPUs, 17,280 GiB of memory,
13,320 GB of GPU memory, 405 TB of NVMe, 28.8 Tbps of network and 1,080 Gbps to EBS together (Amazon EC2 P6e
UltraServers, aws.amazon.com/ec2/instance-types/p6). What is unknown is ``None``, and EC2 is asked when a run starts.
"""

from __future__ import annotations

from typing import Any

PAGE = "aws.amazon.com/ec2/instance-types/p6"

TYPES: dict[str, dict[str, Any]] = {
    "p6e-gb200.36xlarge": {
        "gpus": 4,
        "gpu": "gb200",
        "gpuMemoryMiB": 185 * 1024,
        "vcpus": 144,
        "memoryMiB": 960 * 1024,
        "architecture": "arm64",
        "nvmeGB": 22_500,
        "efa": None,
        "networkMbps": 1_600_000,
        "ebsMaximumMBps": 7_500.0,
        "podPlaces": None,
        "from": PAGE,
    },
}
