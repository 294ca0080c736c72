"""Writing objects: the one path that every create, update, patch, apply and delete takes.

Everything here is synchronous, so each write is atomic in the event loop. Order as in a real server: decode and check
fields, default, admit, validate, count managed fields, store.
"""

from __future__ import annotations

from collections.abc import Callable

from sandbox.apiserver import errors
from sandbox.apiserver.admission.chain import Admission
from sandbox.apiserver.jsontools import Obj, clone, drop_nulls, equal, now, random_suffix
from sandbox.apiserver.patches import apply
from sandbox.apiserver.resources import Registry, Resource
from sandbox.apiserver.schema import crds, defaults, initial, structural, typemeta
from sandbox.apiserver.schema.types import Types
from sandbox.apiserver.storage import checks, replacing
from sandbox.apiserver.storage.deletion import Deletion, finished
from sandbox.apiserver.storage.options import Options
from sandbox.apiserver.store import Record, Store
from sandbox.latency import Latencies
from sandbox.settings import Clock

Modify = Callable[[Obj], Obj]


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
        """apiVersion and kind of a body against what the path says (:func:`checks.check_type`)."""
        checks.check_type(self.registry, resource, obj)

    def check_fields(self, resource: Resource, obj: Obj, options: Options, patch: str | None = None) -> Obj:
        """The object with undeclared fields removed (:func:`checks.check_fields`)."""
        return checks.check_fields(self.types.of(resource), resource, obj, options, patch)

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
        checks.place(resource, namespace, metadata)
        if metadata.get("resourceVersion"):
            raise errors.bad_request("resourceVersion should not be set on objects to be created")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = self._generate(resource, namespace, metadata["generateName"])
        for key in (*replacing.SERVER_SET, "selfLink"):
            metadata.pop(key, None)
        managed = metadata.get("managedFields")
        self.definitions.refuse_creation(resource, metadata.get("name", ""))
        self.admission.namespace(resource, metadata)
        metadata["uid"] = initial.new_uid()
        metadata["creationTimestamp"] = now()
        if resource.generation:
            metadata["generation"] = 1
        self._default(resource, obj)
        if resource.kind == "Job" and not resource.custom:
            initial.generate_job_selector(obj)
        self.admission.mutate(resource, obj, options.user)
        asked = self.admission.webhook.call(resource, obj, "CREATE")
        if asked is not None:
            self._default(resource, obj)
        if not resource.custom:
            initial.initial_status(resource, obj)
        elif resource.status:
            obj.pop("status", None)
        checks.validate(resource, obj, None)
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
        replacing.keep_system_fields(resource, new, old, put=put)
        replacing.limit_to(resource, new, old, subresource)
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
        checks.validate(resource, new, old, subresource)
        self.admission.validate_update(resource, new, old, subresource, dry_run=options.dry_run)
        if resource.generation and replacing.spec_changed(resource, new, old):
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
        checks.place(resource, namespace, metadata)
        if metadata.get("managedFields"):
            raise errors.bad_request("metadata.managedFields must be nil")
        checks.check_declared(self.types.of(resource), resource, config)
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
