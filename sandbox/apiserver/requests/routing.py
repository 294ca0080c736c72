"""From URL and headers to the requested resource and verb (apiserver pkg/endpoints/request/requestinfo.go)."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote

from aiohttp import web

from sandbox.apiserver import golang
from sandbox.apiserver.access.auth import User
from sandbox.apiserver.errors import ApiError, bad_request
from sandbox.apiserver.resources import Registry, Resource
from sandbox.apiserver.store import Record

_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_NAMESPACE_SUBRESOURCES = frozenset({"status", "finalize"})
_VALIDATIONS = ("Ignore", "Warn", "Strict")


@dataclass
class Call:
    """One request for a resource.

    :ivar written: the object that a write led to; set by the handler.
    """

    http: web.Request
    resource: Resource
    verb: str
    namespace: str
    name: str
    subresource: str
    user: User
    warnings: list[str] = field(default_factory=list)
    written: Record | None = None

    def query(self, key: str, default: str = "") -> str:
        return str(self.http.query.get(key, default))

    def flag(self, key: str) -> bool:
        return self.query(key).lower() in ("true", "1")

    def number(self, key: str) -> int | None:
        """
        An integer parameter; ``None`` if it is not given.

        :raises ApiError: 400 in the words of Go's parser.
        """
        if key not in self.http.query:
            return None
        try:
            return golang.integer(self.query(key))
        except ValueError as problem:
            raise bad_request(str(problem)) from problem

    @property
    def dry_run(self) -> bool:
        values = self.http.query.getall("dryRun", [])
        if any(value != "All" for value in values if value):
            raise bad_request(f'Unsupported dryRun value: "{values[0]}", supported values: "All"')
        return any(values)

    @property
    def field_validation(self) -> str:
        value = self.query("fieldValidation") or "Warn"
        if value not in _VALIDATIONS:
            raise bad_request(
                f'fieldValidation: Unsupported value: "{value}": supported values: "Ignore", "Strict", "Warn"'
            )
        return value

    @property
    def manager(self) -> str:
        """Field manager: the parameter, else the user agent up to its first slash."""
        given = self.query("fieldManager")
        agent = self.http.headers.get("User-Agent", "").split("/")[0].strip()
        return (given or agent or "unknown")[:128]


@dataclass(frozen=True)
class Target:
    """A resource path taken apart."""

    resource: Resource
    namespace: str
    name: str
    subresource: str
    verb: str


def not_served() -> ApiError:
    return ApiError(404, "NotFound", "the server could not find the requested resource", details={})


def parse(request: web.Request, registry: Registry) -> Target | None:
    """
    The resource request that a path means; ``None`` for any other path.

    :raises ApiError: 404 if it looks like a resource path but nothing is served there.
    """
    parts = [unquote(part) for part in request.raw_path.split("?")[0].split("/") if part]
    if len(parts) >= 3 and parts[0] == "api":
        group, version, rest = "", parts[1], parts[2:]
    elif len(parts) >= 4 and parts[0] == "apis":
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    if not registry.version(group, version):
        return None
    watch = rest[0] == "watch"
    if watch:
        rest = rest[1:]
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2 and rest[2] not in _NAMESPACE_SUBRESOURCES:
        namespace, rest = rest[1], rest[2:]
    if not rest:
        return None
    resource = registry.get(group, version, rest[0])
    if resource is None and not registry.has_builtin(group):
        return None  # no definition serves it: plain text, as for any other path
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    if resource is None or len(rest) > 3 or (namespace and not resource.namespaced):
        raise not_served()
    if subresource and not (subresource in resource.subresources or (subresource == "status" and resource.status)):
        raise not_served()
    if resource.kind == "Namespace" and name:
        namespace = name
    verb = _VERBS.get(request.method, request.method.lower())
    if request.method == "GET":
        watching = watch or request.query.get("watch", "").lower() in ("true", "1")
        if watching:
            verb = "watch"
        elif not name:
            verb = "list"
    elif verb == "delete" and not name:
        verb = "deletecollection"
    return Target(resource, namespace, name, subresource, verb)
