"""The oracle of the end-to-end tests: it can see that a pool has more instances than its file allows."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import yaml

from tests.e2e.caps import CapWatch, caps_of
from tests.unit.core.specs import demo_mapping
from tests.unit.sandboxed import sandbox_cloud

pytestmark = pytest.mark.slow


def write(folder: Path, **changes: Any) -> None:
    (folder / "demo.yaml").write_text(yaml.safe_dump(demo_mapping(**changes)))


def test_the_cap_is_the_files(tmp_path: Path) -> None:
    write(tmp_path, nodePools__0__limits=..., nodePools__1__limits=..., nodePools__1__wantedNodes=0)
    (tmp_path / "hostile.yaml").write_text("nodePools: 7")
    assert caps_of(tmp_path) == {"shared-a10g": 3, "whole-a100": 0}


def test_an_instance_too_many_is_seen_and_one_that_is_going_is_not(tmp_path: Path) -> None:
    clusters = tmp_path / "clusters"
    clusters.mkdir()
    write(clusters, nodePools__0__limits={"nodes": 2})
    with sandbox_cloud(tmp_path) as cloud:
        account = yaml.safe_load(cloud.connection)
        environment = {
            "AWS_ENDPOINT_URL": cloud.endpoint_url,
            "AWS_DEFAULT_REGION": cloud.settings.region,
            "AWS_ACCESS_KEY_ID": account["login"],
            "AWS_SECRET_ACCESS_KEY": account["password"],
        }
        ec2 = boto3.client(
            "ec2",
            endpoint_url=cloud.endpoint_url,
            region_name=cloud.settings.region,
            aws_access_key_id=account["login"],
            aws_secret_access_key=account["password"],
        )

        def launch(count: int) -> list[str]:
            tags = [{"Key": "karpenter.sh/nodepool", "Value": "shared-a10g"}]
            answer = ec2.run_instances(
                ImageId=ec2.describe_images()["Images"][0]["ImageId"],
                InstanceType="g5.xlarge",
                MinCount=count,
                MaxCount=count,
                TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
            )
            return [each["InstanceId"] for each in answer["Instances"]]

        first = launch(2)
        watch = CapWatch(SimpleNamespace(clusters_dir=clusters, environment=environment)).start()  # type: ignore[arg-type]
        ec2.terminate_instances(InstanceIds=first[:1])
        extra = launch(1)
        time.sleep(1.2)
        assert watch.broken == {}
        extra += launch(1)
        deadline = time.monotonic() + 20
        while not watch.broken and time.monotonic() < deadline:
            time.sleep(0.1)
        ec2.terminate_instances(InstanceIds=extra)
        watch.stop()
        ec2.close()
    assert watch.broken == {"shared-a10g": (3, 2)}
    assert watch.most["shared-a10g"] == 3
    assert watch.looks > 2


@pytest.mark.parametrize("limits", [{"nodes": 0}, {"nodes": 7}])
def test_a_limit_in_the_file_stands(tmp_path: Path, limits: dict[str, int]) -> None:
    write(tmp_path, nodePools__1__wantedNodes=0, nodePools__1__limits=limits)
    assert caps_of(tmp_path)["whole-a100"] == limits["nodes"]
