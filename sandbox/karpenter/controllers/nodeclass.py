"""EC2NodeClass: resolves its selectors in the account into its status (``pkg/controllers/nodeclass``).

An alias that no SSM parameter knows is an error there, not a finding: ``AMIsReady`` then stays Unknown. Selectors by
id, name or tag that find nothing give ``AMINotFound``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import ClientError

from sandbox.karpenter.conditions import Conditions
from sandbox.karpenter.context import Context
from sandbox.karpenter.hashes import class_hash
from sandbox.karpenter.objects import ours

Object = dict[str, Any]

FINALIZER = "karpenter.k8s.aws/termination"
HASH, HASH_VERSION_KEY = "karpenter.k8s.aws/ec2nodeclass-hash", "karpenter.k8s.aws/ec2nodeclass-hash-version"
HASH_VERSION = "v5"
DEPENDENTS = ("AMIsReady", "SubnetsReady", "SecurityGroupsReady", "InstanceProfileReady", "ValidationSucceeded")
#: Simulated seconds between two looks at the account.
RELOOK = 60.0
_RESTRICTED_TAGS = ("kubernetes.io/cluster/", "karpenter.sh/nodepool", "karpenter.sh/nodeclaim", "eks:eks-cluster-name",
                    "karpenter.k8s.aws/ec2nodeclass")  # fmt: skip
_NVIDIA = "karpenter.k8s.aws/instance-gpu-count"
_GONE = ("NoSuchEntity", "NoSuchEntityException")


class NodeClassController:
    """Reconciles one EC2NodeClass at a time."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._aws = context.aws
        self._cluster = context.settings.cluster_name

    async def reconcile(self, name: str) -> None:
        node_class = self._context.node_classes.get(name)
        if node_class is None:
            return
        if node_class["metadata"].get("deletionTimestamp"):
            await self._finalize(node_class)
            return
        node_class = await self._hashed(node_class)
        conditions = Conditions(node_class, DEPENDENTS)
        status = dict(node_class.get("status") or {})
        errors: list[Exception] = []
        for step in (
            self._amis,
            self._subnets,
            self._security_groups,
            self._instance_profile,
            self._reservations,
        ):
            try:
                await step(node_class, conditions, status)
            except (ClientError, _Unresolved) as error:
                errors.append(error)
        self._validate(node_class, conditions)
        status["conditions"] = conditions.shown()
        await self._context.write_status(node_class, status)
        self._context.node_class_queue.add_after(name, max(1.0, self._context.clock.real(RELOOK)))
        if errors:
            raise errors[0]

    async def _hashed(self, node_class: Object) -> Object:
        """Finalizer and hash."""
        meta = node_class["metadata"]
        wanted = {HASH: class_hash(node_class), HASH_VERSION_KEY: HASH_VERSION}
        patch: Object = {}
        if FINALIZER not in (meta.get("finalizers") or []):
            patch["finalizers"] = [*(meta.get("finalizers") or []), FINALIZER]
        if any((meta.get("annotations") or {}).get(key) != value for key, value in wanted.items()):
            patch["annotations"] = wanted
        return await self._context.patch_metadata(node_class, patch) if patch else node_class

    # --- what the selectors find ---------------------------------------------------------------------------------

    async def _amis(self, node_class: Object, conditions: Conditions, status: Object) -> None:
        terms = node_class["spec"].get("amiSelectorTerms") or []
        alias = next((term["alias"] for term in terms if term.get("alias")), None)
        found = await self._by_alias(alias) if alias else await self._by_terms(terms)
        if not found:
            status["amis"] = None
            conditions.set_false("AMIsReady", "AMINotFound", "AMISelector did not match any AMIs")
            return
        status["amis"] = found
        conditions.set_true("AMIsReady")

    async def _by_alias(self, alias: str) -> list[Object]:
        """Through the public SSM parameters, one per architecture and variant (``amifamily/al2023.go``,
        ``amifamily/bottlerocket.go``)."""
        found = []
        for architecture, variant, path in _paths(alias, self._context.settings.control_plane):
            try:
                answer = await self._aws.call("ssm", "get_parameter", Name=path)
            except ClientError as error:
                if error.response["Error"]["Code"] != "ParameterNotFound":
                    raise
                continue
            arch = "amd64" if architecture == "x86_64" else architecture
            gpu = {"key": _NVIDIA, "operator": "Exists" if variant == "nvidia" else "DoesNotExist"}
            requirements = [{"key": "kubernetes.io/arch", "operator": "In", "values": [arch]}, gpu]
            image_id = answer["Parameter"]["Value"]
            found.append({"id": image_id, "name": path.split("/")[-2], "requirements": requirements})
        if not found:
            raise _Unresolved(
                f"getting amis, getting AMI queries, failed to discover any AMIs for alias (alias={alias})"
            )
        return found

    async def _by_terms(self, terms: list[Object]) -> list[Object]:
        images: dict[str, Object] = {}
        for term in terms:
            filters = _tag_filters(term)
            if term.get("id"):
                filters = [{"Name": "image-id", "Values": [term["id"]]}]
            if term.get("name"):
                filters.append({"Name": "name", "Values": [term["name"]]})
            params: Object = {"Owners": [term["owner"]]} if term.get("owner") else {}
            answer = await self._aws.call("ec2", "describe_images", Filters=filters, **params)
            images |= {image["ImageId"]: image for image in answer["Images"]}
        arches = {"x86_64": "amd64", "arm64": "arm64"}
        return [
            {
                "id": image_id,
                "name": image.get("Name", ""),
                "requirements": [
                    {
                        "key": "kubernetes.io/arch",
                        "operator": "In",
                        "values": [arches.get(image["Architecture"], "amd64")],
                    }
                ],
            }
            for image_id, image in sorted(
                images.items(), key=lambda item: item[1].get("CreationDate", ""), reverse=True
            )
        ]

    async def _subnets(self, node_class: Object, conditions: Conditions, status: Object) -> None:
        found: dict[str, Object] = {}
        for term in node_class["spec"].get("subnetSelectorTerms") or []:
            filters = [{"Name": "subnet-id", "Values": [term["id"]]}] if term.get("id") else _tag_filters(term)
            found |= {each["SubnetId"]: each for each in await self._find("describe_subnets", "Subnets[]", filters)}
        if not found:
            status["subnets"] = None
            conditions.set_false("SubnetsReady", "SubnetsNotFound", "SubnetSelector did not match any Subnets")
            return
        order = sorted(found.values(), key=lambda each: (-each["AvailableIpAddressCount"], each["SubnetId"]))
        status["subnets"] = [
            {"id": each["SubnetId"], "zone": each["AvailabilityZone"], "zoneID": each.get("AvailabilityZoneId", "")}
            for each in order
        ]
        conditions.set_true("SubnetsReady")

    async def _security_groups(self, node_class: Object, conditions: Conditions, status: Object) -> None:
        found: dict[str, Object] = {}
        for term in node_class["spec"].get("securityGroupSelectorTerms") or []:
            filters = [{"Name": "group-id", "Values": [term["id"]]}] if term.get("id") else _tag_filters(term)
            if term.get("name"):
                filters = [{"Name": "group-name", "Values": [term["name"]]}]
            groups = await self._find("describe_security_groups", "SecurityGroups[]", filters)
            found |= {each["GroupId"]: each for each in groups}
        if not found:
            status["securityGroups"] = None
            text = "SecurityGroupSelector did not match any SecurityGroups"
            conditions.set_false("SecurityGroupsReady", "SecurityGroupsNotFound", text)
            return
        status["securityGroups"] = [
            {"id": each["GroupId"], "name": each["GroupName"]} for _, each in sorted(found.items())
        ]
        conditions.set_true("SecurityGroupsReady")

    async def _find(self, operation: str, path: str, filters: list[Object]) -> list[Object]:
        return await self._aws.paginate("ec2", operation, path, Filters=filters)

    async def _reservations(self, node_class: Object, conditions: Conditions, status: Object) -> None:
        """They are looked up anew once a minute, and are never missed (``capacityreservation.go``)."""
        del conditions
        terms = node_class["spec"].get("capacityReservationSelectorTerms") or []
        if not self._context.reserved_capacity or not (terms or status.get("capacityReservations")):
            return
        status["capacityReservations"] = await self._context.cloud.reservations.find(terms) or None

    # --- instance profile ----------------------------------------------------------------------------------------

    async def _instance_profile(self, node_class: Object, conditions: Conditions, status: Object) -> None:
        spec = node_class["spec"]
        if spec.get("instanceProfile"):
            status["instanceProfile"] = spec["instanceProfile"]
            conditions.set_true("InstanceProfileReady")
            return
        role = spec["role"].rsplit("/", 1)[-1]
        name = self._profile_name(node_class)
        if await self._role_of(name) != role:
            await self._create_profile(node_class, name, role)
        status["instanceProfile"] = name
        conditions.set_true("InstanceProfileReady")

    def _profile_name(self, node_class: Object) -> str:
        digest = hashlib.sha256(f"{self._context.settings.region}{node_class['metadata']['uid']}".encode()).hexdigest()
        return f"{self._cluster}_{int(digest[:15], 16)}"

    async def _role_of(self, name: str) -> str | None:
        try:
            answer = await self._aws.call("iam", "get_instance_profile", InstanceProfileName=name)
        except ClientError as error:
            if error.response["Error"]["Code"] in _GONE:
                return None
            raise
        roles = answer["InstanceProfile"]["Roles"]
        return roles[0]["RoleName"] if roles else ""

    async def _create_profile(self, node_class: Object, name: str, role: str) -> None:
        settings = self._context.settings
        tags = {
            **(node_class["spec"].get("tags") or {}),
            f"kubernetes.io/cluster/{self._cluster}": "owned",
            "eks:eks-cluster-name": self._cluster,
            "karpenter.k8s.aws/ec2nodeclass": node_class["metadata"]["name"],
            "topology.kubernetes.io/region": settings.region,
        }
        await self._aws.call("iam", "get_role", RoleName=role)
        current = await self._role_of(name)
        if current is None:
            await self._aws.call(
                "iam",
                "create_instance_profile",
                InstanceProfileName=name,
                Path=f"/karpenter/{settings.region}/{self._cluster}/{node_class['metadata']['uid']}/",
                Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
            )
        elif current:
            await self._aws.call("iam", "remove_role_from_instance_profile", InstanceProfileName=name, RoleName=current)
        await self._aws.call("iam", "add_role_to_instance_profile", InstanceProfileName=name, RoleName=role)

    async def _delete_profile(self, node_class: Object) -> None:
        name = self._profile_name(node_class)
        role = await self._role_of(name)
        if role is None:
            return
        if role:
            await self._aws.call("iam", "remove_role_from_instance_profile", InstanceProfileName=name, RoleName=role)
        await self._aws.call("iam", "delete_instance_profile", InstanceProfileName=name)

    # --- validation and end --------------------------------------------------------------------------------------

    def _validate(self, node_class: Object, conditions: Conditions) -> None:
        restricted = [key for key in node_class["spec"].get("tags") or {} if key.startswith(_RESTRICTED_TAGS)]
        if restricted:
            shown = ", ".join(f'"{key}"' for key in restricted)
            text = f"tags failed validation requirements (tags={shown})"
            conditions.set_false("ValidationSucceeded", "TagValidationFailed", text)
            return
        before = DEPENDENTS[:-1]
        failed = [name for name in before if not conditions.is_true(name)]
        if any(not conditions.is_unknown(name) for name in failed):
            text = "Awaiting AMI, Instance Profile, Security Group, and Subnet resolution"
            conditions.set_false("ValidationSucceeded", "DependenciesNotReady", text)
        elif failed:
            text = "Awaiting AMI, Instance Profile, Security Group, and Subnet resolution"
            conditions.set_unknown("ValidationSucceeded", "DependenciesNotReady", text)
        else:
            conditions.set_true("ValidationSucceeded")

    async def _finalize(self, node_class: Object) -> None:
        meta = node_class["metadata"]
        if FINALIZER not in (meta.get("finalizers") or []):
            return
        using = [
            claim["metadata"]["name"]
            for claim in self._context.claims.items()
            if claim["spec"]["nodeClassRef"]["name"] == meta["name"] and ours(claim["spec"]["nodeClassRef"])
        ]
        if using:
            self._context.events.nodeclass_waits(node_class, sorted(using))
            return
        await self._context.cloud.templates.delete_all(node_class)
        await self._delete_profile(node_class)
        finalizers = [each for each in meta["finalizers"] if each != FINALIZER]
        await self._context.patch_metadata(node_class, {"finalizers": finalizers})


class _Unresolved(Exception):
    """The real controller returns an error and tries again; no condition changes."""


def _paths(alias: str, version: str) -> Iterator[tuple[str, str, str]]:
    """Architecture, variant and path of the parameters of an alias."""
    family, _, release = alias.partition("@")
    for architecture, variant in (("x86_64", "nvidia"), ("x86_64", "standard"), ("arm64", "standard")):
        if family == "bottlerocket":
            kind = f"aws-k8s-{version}{'-nvidia' if variant == 'nvidia' else ''}"
            yield (
                architecture,
                variant,
                f"/aws/service/bottlerocket/{kind}/{architecture}/{release.lstrip('v')}/image_id",
            )
            continue
        last = (
            "recommended"
            if release == "latest"
            else f"amazon-eks-node-{family}-{architecture}-{variant}-{version}-{release}"
        )
        base = f"/aws/service/eks/optimized-ami/{version}/amazon-linux-2023/{architecture}/{variant}"
        yield architecture, variant, f"{base}/{last}/image_id"


def _tag_filters(term: Object) -> list[Object]:
    filters: list[Object] = []
    for key, value in (term.get("tags") or {}).items():
        any_value = value in ("", "*")
        filters.append({"Name": "tag-key", "Values": [key]} if any_value else {"Name": f"tag:{key}", "Values": [value]})
    return filters
