"""A local chart repository: stand-in charts (or real archives), as a Helm repository and as an OCI registry.

``/charts/index.yaml`` and ``/charts/<name>-<version>.tgz`` for ``helm --repo``; below ``/v2/`` the pull half of the OCI
distribution specification for ``oci://127.0.0.1:PORT/karpenter/karpenter`` (plain HTTP).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from sandbox.doors import Door

CHARTS = Path(__file__).parent / "charts"
# name → the versions under which a stand-in is served
VERSIONS: dict[str, tuple[str, ...]] = {
    "nvidia-device-plugin": ("0.17.0", "0.17.4", "0.19.3", "0.20.0"),
    "karpenter": ("1.13.0", "1.14.1"),
    "karpenter-crd": ("1.13.0", "1.14.1"),
}
# repository of the real charts → where they are mirrored, below the server's address
ORIGINS = {
    "https://nvidia.github.io/k8s-device-plugin": "/charts",
    "oci://public.ecr.aws/karpenter": "/charts",
}
_EPOCH = 1_700_000_000  # a fixed time, so that archives are the same bytes in each run
_CREATED = "2026-08-19T00:00:00Z"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.cncf.helm.config.v1+json"
_LAYER_TYPE = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"


@dataclass(frozen=True)
class Archive:
    """A packaged chart."""

    name: str
    version: str
    metadata: dict[str, Any]
    data: bytes

    @property
    def digest(self) -> str:
        """sha256, hex."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.version}.tgz"


class ChartError(ValueError):
    """A chart archive cannot be read; the message names the file."""


def package(directory: Path, version: str) -> Archive:
    """
    A chart folder as a .tgz: the same bytes for the same content.

    :param version: replaces both ``version`` and ``appVersion`` of Chart.yaml.
    """
    metadata = yaml.safe_load((directory / "Chart.yaml").read_text())
    metadata |= {"version": version, "appVersion": version}
    name = metadata["name"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        files = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
        if name == "karpenter":  # as the real chart, which carries the CRDs of karpenter-crd a second time
            crds = directory.parent / "karpenter-crd" / "templates"
            files |= {f"crds/{path.name}": path for path in crds.glob("*.yaml")}
        for relative, path in sorted(files.items()):
            data = path.read_bytes()
            if relative == "Chart.yaml":
                data = yaml.safe_dump(metadata, sort_keys=True).encode()
            entry = tarfile.TarInfo(f"{name}/{relative}")
            entry.size, entry.mode, entry.mtime = len(data), 0o644, _EPOCH
            tar.addfile(entry, io.BytesIO(data))
    return Archive(name, version, metadata, gzip.compress(buffer.getvalue(), mtime=_EPOCH))


def read_archive(path: Path) -> Archive:
    """A chart archive from disk, for example a real one from ``helm pull``."""
    data = path.read_bytes()
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
            member = next(item for item in tar.getmembers() if re.fullmatch(r"[^/]+/Chart\.yaml", item.name))
            handle = tar.extractfile(member)
            metadata: Any = yaml.safe_load(handle.read()) if handle else None
        return Archive(metadata["name"], str(metadata["version"]), metadata, data)
    except (tarfile.TarError, StopIteration, KeyError, TypeError, OSError, yaml.YAMLError) as error:
        raise ChartError(f"{path} is not a chart archive: {error}") from error


def stand_ins() -> list[Archive]:
    """Our own charts under every version they are served as."""
    return [package(CHARTS / name, version) for name, versions in VERSIONS.items() for version in versions]


def from_directory(directory: Path) -> list[Archive]:
    """
    Every archive of a folder.

    :raises ChartError: the folder holds none, or one that cannot be read.
    """
    archives = [read_archive(path) for path in sorted(directory.glob("*.tgz"))]
    if not archives:
        raise ChartError(f"no *.tgz in {directory}")
    return archives


def index(archives: Iterable[Archive]) -> str:
    """The repository's index.yaml; versions newest first, as Helm writes it."""
    entries: dict[str, list[dict[str, Any]]] = {}
    for archive in archives:
        entry = {
            **archive.metadata,
            "created": _CREATED,
            "digest": archive.digest,
            "urls": [archive.file_name],
        }
        entries.setdefault(archive.name, []).append(entry)
    for versions in entries.values():
        versions.sort(key=lambda entry: [int(part) for part in re.findall(r"\d+", entry["version"])], reverse=True)
    return yaml.safe_dump({"apiVersion": "v1", "entries": entries, "generated": _CREATED}, sort_keys=True)


class ChartRepository:
    """
    The server. :meth:`start` binds it to loopback.

    :param charts_dir: serve the archives of this folder instead of the stand-ins; a chart that it lacks is not served.
    """

    def __init__(self, charts_dir: Path | None = None) -> None:
        self.archives = stand_ins() if charts_dir is None else from_directory(charts_dir)
        self._files = {archive.file_name: archive for archive in self.archives}
        self._index = index(self.archives)
        self._blobs: dict[str, bytes] = {}
        self._manifests: dict[tuple[str, str], bytes] = {}
        for archive in self.archives:
            self._add_oci(archive)
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/charts"

    def mirrors(self) -> dict[str, str]:
        """For ``GPU_FLEET_CHART_MIRRORS``: repository → mirror."""
        return {origin: f"http://127.0.0.1:{self.port}{path}" for origin, path in ORIGINS.items()}

    async def start(self, port: int = 0) -> None:
        application = web.Application()
        application.add_routes(
            [
                web.get("/charts/index.yaml", self._serve_index),
                web.get("/charts/{file}", self._serve_file),
                web.get("/v2/", self._serve_api),
                web.get("/v2/{name:.+}/tags/list", self._serve_tags),
                web.get("/v2/{name:.+}/manifests/{reference}", self._serve_manifest),
                web.get("/v2/{name:.+}/blobs/{digest}", self._serve_blob),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.port = self._runner.addresses[0][1]

    def door(self) -> Door:
        """Of the running server."""
        assert self._runner is not None  # noqa: S101 - asked for after the start
        return Door("charts", self._runner, self.port)

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    # Helm repository

    async def _serve_index(self, _: web.Request) -> web.Response:
        return web.Response(text=self._index, content_type="application/yaml")

    async def _serve_file(self, request: web.Request) -> web.Response:
        archive = self._files.get(request.match_info["file"])
        if archive is None:
            raise web.HTTPNotFound(text="no such chart")
        return web.Response(body=archive.data, content_type="application/gzip")

    # OCI registry

    def _add_oci(self, archive: Archive) -> None:
        config = json.dumps(archive.metadata, sort_keys=True).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST_TYPE,
                "config": self._blob(config, _CONFIG_TYPE),
                "layers": [self._blob(archive.data, _LAYER_TYPE)],
            },
            sort_keys=True,
        ).encode()
        self._manifests[archive.name, archive.version] = manifest
        self._manifests[archive.name, f"sha256:{hashlib.sha256(manifest).hexdigest()}"] = manifest

    def _blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    async def _serve_api(self, _: web.Request) -> web.Response:
        return web.json_response({}, headers={"Docker-Distribution-API-Version": "registry/2.0"})

    async def _serve_tags(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        chart = name.rsplit("/", 1)[-1]
        tags = [archive.version for archive in self.archives if archive.name == chart]
        if not tags:
            return _oci_error("NAME_UNKNOWN", f"repository {name} is not known")
        return web.json_response({"name": name, "tags": tags})

    async def _serve_manifest(self, request: web.Request) -> web.Response:
        chart = request.match_info["name"].rsplit("/", 1)[-1]
        reference = request.match_info["reference"]
        manifest = self._manifests.get((chart, reference))
        if manifest is None:
            return _oci_error("MANIFEST_UNKNOWN", f"{chart}:{reference} is not known")
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        return web.Response(body=manifest, headers={"Content-Type": _MANIFEST_TYPE, "Docker-Content-Digest": digest})

    async def _serve_blob(self, request: web.Request) -> web.Response:
        digest = request.match_info["digest"]
        data = self._blobs.get(digest)
        if data is None:
            return _oci_error("BLOB_UNKNOWN", f"{digest} is not known")
        return web.Response(
            body=data, headers={"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest}
        )


def _oci_error(code: str, message: str) -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": message}]}, status=404)
