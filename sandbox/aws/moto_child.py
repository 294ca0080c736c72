"""The child process that serves moto: ``python -m sandbox.aws.moto_child`` (started by :mod:`sandbox.aws.moto`).

These things are added to moto, in this process only:

* instances take time, and their changes of state are known (:mod:`sandbox.aws.instancelife`);
* EventBridge's rules decide about services' own events (:mod:`sandbox.aws.eventrules`);
* Auto Scaling replaces what it lost (:mod:`sandbox.aws.scalinggroups`);
* the images and public SSM parameters of the EKS optimised AMIs exist (names after awslabs/amazon-eks-ami), and those
  of Bottlerocket;
* volumes keep the IOPS and throughput of their launch (:mod:`sandbox.aws.volumes`);
* EC2 has capacity reservations and Capacity Blocks (:mod:`sandbox.aws.reservations`);
* below ``/_sandbox/`` are routes for the sandbox itself (:class:`SandboxRoutes`).

Besides, moto finds the tags of a resource by its id, instead of searching all tags of the account.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import hashlib
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from sandbox.aws import eventrules, reservations, scalinggroups, volumes
from sandbox.aws.instancelife import Latency, Transitions, forget_terminated, reclaim, slow_instances, state_of
from sandbox.aws.reservations import Reservations

AMI_RELEASES = ("v20260601", "v20260714")
BOTTLEROCKET_RELEASES = ("1.60.0",)
KUBERNETES_VERSIONS = ("1.33", "1.34", "1.35", "1.36")
_AMI_OWNER = "602401143452"  # the account that publishes EKS AMIs, docs.aws.amazon.com/eks/latest/userguide
_PR_SET_PDEATHSIG = 1
#: Simulated seconds that EC2 shows a terminated instance ("usually an hour", docs.aws.amazon.com/AWSEC2, Terminate your
#: instance). Moto keeps it forever, which makes every list of instances slower.
FORGOTTEN_AFTER = 3600.0


def end_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when the thread that started it ends (prctl(2), Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call above
        raise SystemExit("the sandbox that started this process is gone")


def ami_name(flavour: str, version: str, release: str) -> str:
    """Name of an EKS optimised Amazon Linux 2023 image; flavour ``standard`` or ``nvidia``."""
    return f"amazon-eks-node-al2023-x86_64-{flavour}-{version}-{release}"


def eks_images(versions: Iterable[str]) -> list[dict[str, Any]]:
    """What moto loads as images: every flavour of AL2023 and Bottlerocket per Kubernetes version and release."""
    images = []
    for version in versions:
        al2023 = f"EKS-optimized Kubernetes node based on Amazon Linux 2023, (k8s: {version})"
        for release in AMI_RELEASES:
            date = f"{release[1:5]}-{release[5:7]}-{release[7:9]}"
            for flavour in ("standard", "nvidia"):
                images.append(_image(ami_name(flavour, version, release), al2023, _AMI_OWNER, date))
        for release in BOTTLEROCKET_RELEASES:
            for variant in ("", "-nvidia"):
                # Names as in the public images of account 092701018921.
                name = f"bottlerocket-aws-k8s-{version}{variant}-x86_64-v{release}-0a1b2c3d"
                images.append(_image(name, "The Bottlerocket operating system", "092701018921", "2026-07-14"))
    return images


def _image(name: str, description: str, owner: str, date: str) -> dict[str, Any]:
    return {
        "ami_id": "ami-" + hashlib.sha256(name.encode()).hexdigest()[:17],
        "name": name,
        "description": description,
        "owner_id": owner,
        "public": True,
        "virtualization_type": "hvm",
        "architecture": "x86_64",
        "state": "available",
        "platform": None,
        "image_type": "machine",
        "hypervisor": "xen",
        "root_device_type": "ebs",
        "root_device_name": "/dev/xvda",
        "sriov": "simple",
        "creation_date": f"{date}T00:00:00.000Z",
        "image_location": f"amazon/{name}",
    }


def _parameters_of(image: dict[str, Any]) -> list[str]:
    """The names of the public SSM parameters with an image's id."""
    name = image["name"]
    if name.startswith("bottlerocket-"):
        variant, _, rest = name.removeprefix("bottlerocket-").partition("-x86_64-v")
        release = rest.partition("-")[0]
        # Without the v of the releases on GitHub (karpenter-provider-aws pkg/providers/amifamily/bottlerocket.go).
        return [f"/aws/service/bottlerocket/{variant}/x86_64/{tag}/image_id" for tag in (release, "latest")]
    flavour, version, release = name.removeprefix("amazon-eks-node-al2023-x86_64-").split("-")
    base = f"/aws/service/eks/optimized-ami/{version}/amazon-linux-2023/x86_64/{flavour}"
    newest = [f"{base}/recommended/image_id"] if release == AMI_RELEASES[-1] else []
    return [f"{base}/{name}/image_id", *newest]


def publish_parameters(account: str, region: str, images: Iterable[dict[str, Any]]) -> None:
    """The public parameters that lead from an alias to an image; SSM itself refuses writes below ``/aws``."""
    from moto.ssm.models import Parameter, ssm_backends

    parameters = ssm_backends[account][region]._parameters
    for image in images:
        for name in _parameters_of(image):
            parameters[name] = [
                Parameter(
                    account_id=account,
                    name=name,
                    value=image["ami_id"],
                    parameter_type="String",
                    description=None,
                    allowed_pattern=None,
                    keyid=None,
                    last_modified_date=datetime.datetime(2026, 7, 14, tzinfo=datetime.UTC),
                    version=1,
                    data_type="aws:ec2:image",
                )
            ]


def find_tags_by_id() -> None:
    """A resource's tags by its id; moto matches the id against every tag of the account, for each resource it shows."""
    from moto.ec2.models.core import TaggedEC2Resource
    from moto.ec2.utils import EC2_PREFIX_TO_RESOURCE, get_prefix

    def tags_of(self: Any) -> list[dict[str, str]]:
        tags = self.ec2_backend.tags.get(self.id) if self.id else None
        if not tags:
            return []
        kind = EC2_PREFIX_TO_RESOURCE.get(get_prefix(self.id), "")
        return [
            {"resource_id": self.id, "key": key, "value": value, "resource_type": kind}
            for key, value in tags.copy().items()
        ]

    TaggedEC2Resource.get_tags = tags_of


def credentials_of(account: str, access_key: str) -> dict[str, Any] | None:
    """Secret, session token and principal ARN of an access key that IAM or STS made, or ``None``."""
    from moto.iam.models import iam_backends
    from moto.sts.models import sts_backends

    for user in iam_backends[account]["aws"].users.values():
        for key in user.access_keys:
            if key.access_key_id == access_key:
                if key.status != "Active":
                    return None
                return {"secret": key.secret_access_key, "token": None, "arn": user.arn}
    role = sts_backends[account]["aws"].get_assumed_role_from_access_key(access_key)
    if role is None:
        return None
    return {"secret": role.secret_access_key, "token": role.session_token, "arn": role.arn}


class SandboxRoutes:
    """WSGI front of moto's application that answers what only the sandbox asks, below ``/_sandbox/``.

    ==================================  ===========================================================================
    ``GET credentials/<access key>``    secret and principal of a key that IAM or STS issued (for the shim)
    ``GET waits``                       the waits of instances
    ``GET transitions?since=N&wait=S``  changes of instances' state from number N on
    ``POST match``                      for each of these events: the targets that it goes to
    ``POST send``                       put these messages into queues
    ``POST reclaim``                    body ``{"instances": […], "action"}``: EC2 takes them back
    ``GET reservations``                capacity reservations, with their instances
    ``POST reservations``               reserve capacity; ``POST reservations/<id>`` changes it
    ==================================  ===========================================================================
    """

    def __init__(
        self,
        application: Any,
        account: str,
        region: str,
        waits: deque[dict[str, Any]],
        transitions: Transitions,
        reservations: Reservations,
    ) -> None:
        self._application = application
        self._account = account
        self._region = region
        self._waits = waits
        self._transitions = transitions
        self._reservations = reservations

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ.get("PATH_INFO", "")
        if not path.startswith("/_sandbox/"):
            return self._application(environ, start_response)
        if environ["REQUEST_METHOD"] == "POST":
            found = self._post(path, json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))))
        else:
            found = self._get(path, dict(parse_qsl(environ.get("QUERY_STRING", ""))))
        start_response("404 Not Found" if found is None else "200 OK", [("Content-Type", "application/json")])
        return [json.dumps(found).encode()]

    def _get(self, path: str, query: dict[str, str]) -> Any:
        if path == "/_sandbox/waits":
            now = time.time()
            return [wait for wait in list(self._waits) if wait["ended"] <= now]
        if path == "/_sandbox/transitions":
            return self._transitions.since(int(query["since"]), float(query["wait"]))
        if path == "/_sandbox/reservations":
            return self._reservations.listed()
        if path.startswith("/_sandbox/credentials/"):
            return credentials_of(self._account, path.rsplit("/", 1)[1])
        return None

    def _post(self, path: str, body: Any) -> Any:
        account, region = self._account, self._region
        if path == "/_sandbox/match":
            return [eventrules.match(account, region, event) for event in body]
        if path == "/_sandbox/send":
            return eventrules.send(account, region, body)
        if path == "/_sandbox/reclaim":
            taken = reclaim(account, region, body["instances"], body["action"])
            scalinggroups.lost(account, region, taken)
            return taken
        if path == "/_sandbox/reservations":
            return self._reservations.add(body)
        if path.startswith("/_sandbox/reservations/"):
            return self._reservations.change(path.rsplit("/", 1)[1], body)
        return None


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--speed", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--region", required=True)
    parser.add_argument("--account", required=True)
    parser.add_argument("--kubernetes-version", required=True)
    parser.add_argument("--amis", type=Path, required=True)
    options = parser.parse_args(argv)
    end_with_parent(options.parent)
    # The sandbox decides when this process ends; Ctrl-C is sent to the whole process group and would end it too early.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

    images = eks_images(sorted({*KUBERNETES_VERSIONS, options.kubernetes_version}))
    options.amis.write_text(json.dumps(images))
    os.environ |= {
        "MOTO_AMIS_PATH": str(options.amis),
        "MOTO_ACCOUNT_ID": options.account,
        "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION": "true",
        "MOTO_ENABLE_AMI_VALIDATION": "true",
    }

    from moto.moto_api._internal import mock_random
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    from sandbox.latency import Latencies

    class Quiet(MotoRequestHandler):  # type: ignore[misc]
        def log_request(self, code: Any = "-", size: Any = "-") -> None:
            """A line per request would be thousands a minute."""

    mock_random.seed(options.seed)  # ids of instances, volumes …: the same for the same seed and order of calls
    latencies = Latencies(options.seed)
    waits: deque[dict[str, Any]] = deque(maxlen=20_000)

    def wait(step: str) -> float:
        seconds: float = latencies.sample(step) / options.speed
        started = time.time()
        waits.append({"label": step, "started": started, "ended": started + seconds})
        return seconds

    transitions = Transitions()
    latency = Latency(
        lambda: wait("instance_running"), lambda: wait("instance_stop"), lambda: wait("instance_terminate")
    )
    slow_instances(latency, transitions)
    forget_terminated(FORGOTTEN_AFTER / options.speed)
    find_tags_by_id()
    volumes.keep_performance()
    eventrules.refuse_sources_of_aws()
    scalinggroups.read_later_versions()
    scalinggroups.replace_in_time(lambda: wait("group_replaces"))
    publish_parameters(options.account, options.region, images)
    reserved = Reservations(
        options.speed,
        lambda instance: state_of(options.account, options.region, instance),
        lambda taken: scalinggroups.lost(
            options.account, options.region, reclaim(options.account, options.region, taken, "terminate")
        ),
        options.account,
    )
    reservations.serve(reserved)
    reserved.watch()
    moto = DomainDispatcherApplication(create_backend_app)
    application = SandboxRoutes(moto, options.account, options.region, waits, transitions, reserved)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    print(json.dumps({"port": server.server_port}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
