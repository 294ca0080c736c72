"""Writing objects: the one path that every create, update, patch, apply and delete takes.

Everything here is synchronous, so each write is atomic in the event loop. Order as in a real server: decode and check
fields, default, admit, validate, count managed fields, store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sandbox.apiserver import errors
from sandbox.apiserver.access.auth import User
from sandbox.apiserver.admission.chain import Admission
from sandbox.apiserver.errors import ApiError
from sandbox.apiserver.jsontools import Obj, clone, drop_nulls, equal, now, random_suffix
from sandbox.apiserver.patches import apply
from sandbox.apiserver.resources import Registry, Resource
from sandbox.apiserver.rules import names, validation
from sandbox.apiserver.schema import crds, decoding, defaults, structural, typemeta
from sandbox.apiserver.schema.types import Types, prune, unknown_fields
from sandbox.apiserver.storage.deletion import Deletion, finished
from sandbox.apiserver.store import Record, Store
from sandbox.latency import Latencies
from sandbox.settings import Clock

_SERVER_SET = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation")
_RESERVED = frozenset({"apiVersion", "kind", "metadata", "status"})


@dataclass
class Options:
    """
    How to write.

    :ivar manager: owner of the written fields.
    :ivar validation: Ignore, Warn or Strict: what to do about undeclared fields.
    :ivar warnings: filled with what the client is to be warned of.
    :ivar repeated: what strict decoding says of keys that the body has more than once.
    """

    user: User
    manager: str = "unknown"
    dry_run: bool = False
    validation: str = "Warn"
    force: bool = False
    warnings: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)


Modify = Callable[[Obj], Obj]
#: Kinds whose strategy allows no unconditional update (pkg/registry/*/strategy.go ``AllowUnconditionalUpdate``).
_VERSIONED_UPDATES = frozenset({"CustomResourceDefinition", "Lease", "PodDisruptionBudget", "RuntimeClass"})


class Writer(Deletion):
    def __init__(
        self,
        store: Store,
        registry: Registry,
        types: Types,
        admission: Admission,
        clock: Clock,
        latencies: Latencies,
    ) -> None:
        super().__init__(store, registry, admission, clock, latencies)
        self.types = types

    # ---- checks shared by all writes

    def check_type(self, resource: Resource, obj: Obj) -> None:
        """
        apiVersion and kind of a body against what the path says; built-in types fill in what is absent.

        :raises ApiError: 400 for another type; 422 for a custom resource of another kind.
        """
        if not isinstance(obj.get("metadata") or {}, dict):
            raise errors.bad_request("metadata: expected an object")
        problem = typemeta.problem(self.registry, resource, obj)
        if problem is not None:
            raise problem
        obj["apiVersion"], obj["kind"] = resource.api_version, resource.kind
        obj.setdefault("metadata", {})

    def check_fields(self, resource: Resource, obj: Obj, options: Options, patch: str | None = None) -> Obj:
        """
        The object with undeclared fields removed.

        :param patch: how a patch that led to ``obj`` is shown; changes the form of the refusal.
        :raises ApiError: 400 (422 for a patch) for a value that cannot be read, or for an undeclared or repeated field
            under Strict.
        """
        node = self.types.of(resource)
        wrong = None if resource.custom else decoding.decoding_error(node, obj)
        if wrong is not None:
            raise _undecodable(resource, wrong, patch)
        found = [*(f'unknown field "{path}"' for path in unknown_fields(node, obj)), *options.repeated]
        if found and options.validation == "Strict":
            raise _undecodable(resource, "strict decoding error: " + ", ".join(found), patch)
        if options.validation == "Warn":
            options.warnings.extend(found)
        pruned: Obj = prune(node, drop_nulls(obj))
        pruned.setdefault("metadata", {})
        return pruned

    def _validate(self, resource: Resource, new: Obj, old: Obj | None, subresource: str = "") -> None:
        causes = list(names.metadata(resource, new))
        if resource.custom:
            causes += validation.custom(resource, new, old)
        else:
            causes += validation.builtin(resource, new, old, subresource)
        if causes:
            raise errors.invalid(resource, new["metadata"].get("name", ""), causes)

    # ---- create

    def create(
        self, resource: Resource, namespace: str, body: Obj, options: Options, *, checked: bool = False
    ) -> Record:
        """Store a new object."""
        if not checked:
            self.check_type(resource, body)
            body = self.check_fields(resource, body, options)
        obj = body
        metadata = obj["metadata"] = dict(obj["metadata"])
        self._place(resource, namespace, metadata)
        if metadata.get("resourceVersion"):
            raise errors.bad_request("resourceVersion should not be set on objects to be created")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = self._generate(resource, namespace, metadata["generateName"])
        for key in (*_SERVER_SET, "selfLink"):
            metadata.pop(key, None)
        managed = metadata.get("managedFields")
        self.definitions.refuse_creation(resource, metadata.get("name", ""))
        self.admission.namespace(resource, metadata)
        metadata["uid"] = defaults.new_uid()
        metadata["creationTimestamp"] = now()
        if resource.generation:
            metadata["generation"] = 1
        self._default(resource, obj)
        if resource.kind == "Job" and not resource.custom:
            defaults.generate_job_selector(obj)
        self.admission.mutate(resource, obj, options.user)
        asked = self.admission.webhook.call(resource, obj, "CREATE")
        if asked is not None:
            self._default(resource, obj)
        if not resource.custom:
            defaults.initial_status(resource, obj)
        elif resource.status:
            obj.pop("status", None)
        self._validate(resource, obj, None)
        if resource.storage == crds.KEY:
            crds.keep_status(obj, None)
        existing = self.store.get(resource.storage, metadata.get("namespace", ""), metadata["name"])
        if existing is not None:
            raise errors.already_exists(resource, metadata["name"])
        self.admission.validate_create(resource, obj, dry_run=options.dry_run)
        if not managed:
            self._record(resource, None, obj, asked, options, "")
        if options.dry_run:
            return Record(obj, self.store.revision)
        record = self.store.put(resource.storage, obj)
        if resource.storage == crds.KEY:
            self.definitions.created(record.obj)
        return record

    def _record(
        self, resource: Resource, old: Obj | None, new: Obj, asked: Obj | None, options: Options, subresource: str
    ) -> None:
        """Write down who owns what, in ``new``.

        :param asked: the object before a webhook changed it, ``None`` if none did: what a webhook adds has no owner.
        """
        node = self.types.of(resource)
        apply.record_update(node, old, asked or new, options.manager, resource.api_version, subresource)
        if asked is not None and "managedFields" in asked["metadata"]:
            new["metadata"]["managedFields"] = asked["metadata"]["managedFields"]

    def _place(self, resource: Resource, namespace: str, metadata: Obj) -> None:
        if not resource.namespaced:
            metadata.pop("namespace", None)
            return
        given = metadata.get("namespace")
        if given and given != namespace:
            raise errors.bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
        metadata["namespace"] = namespace

    def _generate(self, resource: Resource, namespace: str, prefix: str) -> str:
        limit = 63 - 5  # apiserver storage/names/generate.go
        while True:
            name = prefix[:limit] + random_suffix()
            if self.store.get(resource.storage, namespace if resource.namespaced else "", name) is None:
                return name

    def _default(self, resource: Resource, obj: Obj) -> None:
        if resource.custom:
            schema = {key: value for key, value in (resource.schema or {}).items() if key != "default"}
            structural.fill_defaults(schema, obj)
        else:
            defaults.apply(resource, obj)

    # ---- update

    def update(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        modify: Modify,
        options: Options,
        *,
        subresource: str = "",
        applied: bool = False,
        put: bool = False,
    ) -> tuple[Record, bool]:
        """
        Replace an object by what ``modify`` makes of a copy of it.

        :param subresource: "" or "status": which part of the object the result may change.
        :param applied: the result comes from server-side apply and carries its own managedFields.
        :param put: the client sent the whole object: its uid is a precondition, and some kinds demand its version.
        :returns: the record, and whether anything changed.
        :raises ApiError: 404, 409 for a stale resourceVersion or a foreign uid, 422.
        """
        record = self.get(resource, namespace, name)
        old = record.obj
        new = modify(clone(old))
        self._keep_system_fields(resource, new, old, put=put)
        self._limit_to(resource, new, old, subresource)
        if subresource != "status":
            self._default(resource, new)
        if resource.storage == crds.KEY and subresource != "status":
            crds.keep_status(new, old)
        if not applied:
            managed = new["metadata"].get("managedFields")
            cleared = managed == [{}] or managed == []
            if "managedFields" in old["metadata"] and managed is None:
                new["metadata"]["managedFields"] = old["metadata"]["managedFields"]
            elif cleared:
                new["metadata"].pop("managedFields", None)
        asked = None if subresource else self.admission.webhook.call(resource, new, "UPDATE")
        if asked is not None:
            self._default(resource, new)
        if equal(new, old):
            return record, False
        self._validate(resource, new, old, subresource)
        self.admission.validate_update(resource, new, old, subresource, dry_run=options.dry_run)
        if resource.generation and self._spec_changed(resource, new, old):
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        if not applied:
            self._record(resource, old, new, asked, options, subresource)
        if options.dry_run:
            return Record(new, self.store.revision), True
        if finished(resource, new):
            return self._remove(resource, new), True
        stored = self.store.put(resource.storage, new)
        if resource.storage == crds.KEY:
            self.definitions.updated(stored.obj, old)
        return stored, True

    def _keep_system_fields(self, resource: Resource, new: Obj, old: Obj, *, put: bool) -> None:
        metadata, before = new.setdefault("metadata", {}), old["metadata"]
        name = before["name"]
        if metadata.get("name", name) != name:
            raise errors.bad_request(
                f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
            )
        uid = metadata.get("uid")
        if uid and uid != before["uid"]:
            if put:
                raise errors.stored_otherwise(resource, before.get("namespace", ""), name, "UID", uid, before["uid"])
            raise errors.invalid(resource, name, [errors.invalid_value("metadata.uid", uid, "field is immutable")])
        version = metadata.get("resourceVersion")
        if put and not version and (resource.custom or resource.kind in _VERSIONED_UPDATES):
            raise errors.version_missing(resource, name)
        if version and version != before["resourceVersion"]:
            raise errors.stale(resource, name)
        if before.get("deletionTimestamp"):
            added = [item for item in metadata.get("finalizers") or [] if item not in (before.get("finalizers") or [])]
            if added:
                detail = (
                    "no new finalizers can be added if the object is being deleted, found new finalizers "
                    f"{_go_strings(added)}"
                )
                raise errors.invalid(resource, name, [errors.forbidden_value("metadata.finalizers", detail)])
        for key in (*_SERVER_SET, "name", "namespace", "resourceVersion", "generateName"):
            if key in before:
                metadata[key] = before[key]
            else:
                metadata.pop(key, None)
        for key in ("finalizers", "ownerReferences", "labels", "annotations"):
            if key in metadata and not metadata[key]:
                del metadata[key]

    def _limit_to(self, resource: Resource, new: Obj, old: Obj, subresource: str) -> None:
        """A write of the status leaves the rest alone, and the other way round."""
        if subresource == "status":
            for key in (old.keys() | new.keys()) - {"status", "metadata", "apiVersion", "kind"}:
                if key in old:
                    new[key] = old[key]
                else:
                    new.pop(key, None)
            if resource.custom:
                managed = new["metadata"].get("managedFields")
                new["metadata"] = dict(old["metadata"])
                if managed is not None:
                    new["metadata"]["managedFields"] = managed
        elif resource.status:
            if "status" in old:
                new["status"] = old["status"]
            else:
                new.pop("status", None)

    @staticmethod
    def _spec_changed(resource: Resource, new: Obj, old: Obj) -> bool:
        ignored = _RESERVED if resource.status or not resource.custom else _RESERVED - {"status"}
        keys = (old.keys() | new.keys()) - ignored
        return any(not equal(new.get(key), old.get(key)) for key in keys)

    # ---- server-side apply

    def apply(
        self, resource: Resource, namespace: str, name: str, config: Obj, options: Options, subresource: str = ""
    ) -> tuple[Record, bool]:
        """
        Server-side apply.

        :returns: the record, and whether it was created.
        :raises ApiError: 500 for a field that is not declared, 409 for fields of other managers.
        """
        if (config.get("apiVersion"), config.get("kind")) != (resource.api_version, resource.kind):
            shown = typemeta.gvk(str(config.get("apiVersion") or ""), str(config.get("kind") or ""))
            raise errors.bad_request(f"invalid object type: {shown}")
        metadata = config.setdefault("metadata", {})
        if metadata.get("name", name) != name:
            text = f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
            raise errors.bad_request(text)
        metadata["name"] = name
        self._place(resource, namespace, metadata)
        if metadata.get("managedFields"):
            raise errors.bad_request("metadata.managedFields must be nil")
        self._check_declared(resource, config)
        config = self.check_fields(resource, drop_nulls(config), options)
        node = self.types.of(resource)
        version = resource.api_version
        record = self.store.get(resource.storage, metadata.get("namespace", ""), name)
        if record is None:
            if subresource:
                raise errors.not_found(resource, name)
            created = apply.apply(node, None, config, options.manager, version, "", force=options.force)
            return self.create(resource, namespace, created, options, checked=True), True

        def merged(live: Obj) -> Obj:
            desired = config
            if subresource == "status":
                desired = {key: value for key, value in config.items() if key != "spec"}
            elif resource.status:
                desired = {key: value for key, value in config.items() if key != "status"}
            result = apply.apply(node, live, desired, options.manager, version, subresource, force=options.force)
            return self.check_fields(resource, result, Options(options.user, validation="Ignore"))

        changed, _ = self.update(resource, namespace, name, merged, options, subresource=subresource, applied=True)
        return changed, False

    def _check_declared(self, resource: Resource, config: Obj) -> None:
        """What structured-merge-diff cannot type, or what conversion cannot read afterwards: plain errors, so 500."""
        node = self.types.of(resource)
        plain = drop_nulls(config)
        problems = [f".{path}: field not declared in schema" for path in unknown_fields(node, config)]
        problems += decoding.typed_errors(node, plain)
        metadata, gvk = config["metadata"], typemeta.gvk(resource.api_version, resource.kind)
        where = f"{metadata.get('namespace', '')}/{metadata['name']}; {gvk}"
        if problems:
            listed = problems[0] if len(problems) == 1 else "errors:\n  " + "\n  ".join(problems)
            raise ApiError(500, "", f"failed to create typed patch object ({where}): {listed}")
        unread = None if resource.custom else decoding.unreadable(node, plain)
        if unread is not None:
            text = f"failed to convert new object ({where}) to proper version: unable to convert unstructured object to"
            raise ApiError(500, "", f"{text} {gvk}: {unread}")


def _undecodable(resource: Resource, problem: str, patch: str | None) -> ApiError:
    if patch is not None:
        return errors.invalid_patch(patch, problem)
    kind = resource.kind
    return errors.bad_request(f'{kind} in version "{resource.version}" cannot be handled as a {kind}: {problem}')


def _go_strings(values: list[str]) -> str:
    return "[]string{" + ", ".join(f'"{value}"' for value in values) + "}"
