"""A container's environment variables and files, resolved as the kubelet does before it starts the container."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from sandbox.kube.client import Kube

Object = dict[str, Any]
_REFERENCE = re.compile(r"\$(\$|\(([A-Za-z_][A-Za-z0-9_.-]*)\))")


class MissingReference(Exception):
    """A ConfigMap, Secret or key that the pod needs is not there; the message is the kubelet's."""


async def _data(kube: Kube, kind: str, name: str, namespace: str, optional: bool) -> dict[str, str] | None:
    found = await kube.find(kind, name, namespace)
    if found is None:
        if optional:
            return None
        raise MissingReference(f'{kind.lower()} "{name}" not found')
    data = found.get("data") or {}
    if kind == "Secret":
        return {key: base64.b64decode(value).decode(errors="replace") for key, value in data.items()}
    return dict(data)


async def resolve_env(kube: Kube, pod: Object, container: Object, status: Object) -> dict[str, str]:
    """
    :param status: node name and addresses for the downward API: ``podIP``, ``hostIP``.
    :raises MissingReference: when the container cannot be created yet.
    """
    namespace = pod["metadata"]["namespace"]
    env: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if reference := source.get(field):
                data = await _data(kube, kind, reference["name"], namespace, reference.get("optional", False))
                env |= {source.get("prefix", "") + key: value for key, value in (data or {}).items()}
    for item in container.get("env") or []:
        if "valueFrom" in item:
            value = await _from(kube, pod, container, item["valueFrom"], status)
            if value is not None:
                env[item["name"]] = value
        else:
            env[item["name"]] = expand(str(item.get("value") or ""), env)
    return env


def expand(text: str, env: dict[str, str]) -> str:
    """``$(NAME)`` by its value, ``$$`` by ``$``; unknown names stay as they are.

    After kubernetes/kubernetes ``third_party/forked/golang/expansion``.
    """

    def replace(match: re.Match[str]) -> str:
        return "$" if match[1] == "$" else env.get(match[2], match[0])

    return _REFERENCE.sub(replace, text)


async def _from(kube: Kube, pod: Object, container: Object, source: Object, status: Object) -> str | None:
    namespace = pod["metadata"]["namespace"]
    if field := source.get("fieldRef"):
        return _field(pod, field["fieldPath"], status)
    if resource := source.get("resourceFieldRef"):
        section, _, name = resource["resource"].partition(".")
        return str(((container.get("resources") or {}).get(section) or {}).get(name, "0"))
    for field_name, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
        if reference := source.get(field_name):
            optional = reference.get("optional", False)
            data = await _data(kube, kind, reference["name"], namespace, optional)
            if data is None:
                return None
            if reference["key"] not in data:
                if optional:
                    return None
                raise MissingReference(
                    f"couldn't find key {reference['key']} in {kind} {namespace}/{reference['name']}"
                )
            return data[reference["key"]]
    return None


def _field(pod: Object, path: str, status: Object) -> str:
    meta, spec = pod["metadata"], pod["spec"]
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return str((meta.get(match[1]) or {}).get(match[2], ""))
    values = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": status.get("podIP", ""),
        "status.hostIP": status.get("hostIP", ""),
    }
    return str(values.get(path, ""))


async def missing_volume(kube: Kube, pod: Object) -> str | None:
    """The kubelet's complaint about the first volume that cannot be mounted, or None."""
    namespace = pod["metadata"]["namespace"]
    for volume in pod["spec"].get("volumes") or []:
        if claim := (volume.get("persistentVolumeClaim") or {}).get("claimName"):
            if await kube.find("PersistentVolumeClaim", claim, namespace) is None:
                # pkg/kubelet/volumemanager/populator/desired_state_of_world_populator.go
                missing = f'failed to fetch PVC from API server: persistentvolumeclaims "{claim}" not found'
                return f"Unable to attach or mount volumes: error processing PVC {namespace}/{claim}: {missing}"
            continue
        for field, kind, key in (("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName")):
            source = volume.get(field)
            if source is None or source.get("optional"):
                continue
            if await kube.find(kind, source[key], namespace) is None:
                name = source[key]
                return f'MountVolume.SetUp failed for volume "{volume["name"]}" : {kind.lower()} "{name}" not found'
    return None


async def write_volumes(kube: Kube, pod: Object, container: Object, folder: Path, claims: Path) -> dict[str, str]:
    """Lay the container's ConfigMap, Secret and emptyDir volumes out under ``folder``.

    :param claims: of PersistentVolumeClaims: a folder for each, which the pods of all nodes share and which outlives
        them, as that of a shared file system does.
    :return: private path by the path that the container knows.
    """
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or []}
    namespace = pod["metadata"]["namespace"]
    paths: dict[str, str] = {}
    for mount in container.get("volumeMounts") or []:
        volume = volumes.get(mount["name"], {})
        target = folder / mount["name"]
        if "configMap" in volume or "secret" in volume:
            kind = "ConfigMap" if "configMap" in volume else "Secret"
            name = volume["configMap"]["name"] if kind == "ConfigMap" else volume["secret"]["secretName"]
            data = await _data(kube, kind, name, namespace, True)
            target.mkdir(parents=True, exist_ok=True)
            for key, value in (data or {}).items():
                (target / key).write_text(value)
                (target / key).chmod(0o755 if kind == "ConfigMap" else 0o600)
        elif "emptyDir" in volume:
            target.mkdir(parents=True, exist_ok=True)
        elif "persistentVolumeClaim" in volume:
            target = claims / namespace / volume["persistentVolumeClaim"]["claimName"]
            target.mkdir(parents=True, exist_ok=True)
        else:
            continue
        paths[mount["mountPath"]] = str(target / mount["subPath"]) if mount.get("subPath") else str(target)
    return paths
