"""What cannot be read as the object that the path asks for: codes and words of a 1.36 server."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sandbox.apiserver.builders import (
    BUDGETS,
    DEPLOYMENTS,
    MAPS,
    PODS,
    budget,
    config_map,
    deployment,
    gpu_pod,
    pod,
)
from tests.sandbox.apiserver.client import JSON_PATCH, MERGE, STRATEGIC, Api

pytestmark = pytest.mark.real_api

SECRETS = "/api/v1/namespaces/default/secrets"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
QUANTITIES = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
MICRO = '"2006-01-02T15:04:05.000000Z07:00"'
SECONDS = '"2006-01-02T15:04:05Z07:00"'
REJECTED = "the server rejected our request due to an error in our request"


def lease(**spec: Any) -> dict[str, Any]:
    metadata = {"name": "lock"}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


def secret(value: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": value}}


# ---- values


async def test_an_unparsable_quantity(api: Api) -> None:
    reply = await api.post(PODS, gpu_pod("p", None, "one"))
    assert (reply.code, reply.reason) == (400, "BadRequest")
    assert reply.message == f'Pod in version "v1" cannot be handled as a Pod: {QUANTITIES}'


async def test_an_unparsable_quantity_in_a_quota(api: Api) -> None:
    body = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"cpu": "two"}}}
    reply = await api.post("/api/v1/namespaces/default/resourcequotas", body)
    assert (reply.code, reply.reason) == (400, "BadRequest")
    assert QUANTITIES in reply.message


async def test_an_unparsable_quantity_in_a_merge_patch(api: Api) -> None:
    await api.post(DEPLOYMENTS, deployment("d"))
    limits = {"limits": {"cpu": "two"}}
    change = {"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "a:1", "resources": limits}]}}}}
    reply = await api.patch(f"{DEPLOYMENTS}/d", change, MERGE)
    assert (reply.code, reply.reason) == (422, "Invalid")
    assert reply.message.startswith(' "" is invalid: patch: Invalid value: "{')
    assert reply.message.endswith(f": {QUANTITIES}")


async def test_an_unparsable_quantity_in_a_strategic_patch(api: Api) -> None:
    await api.post(DEPLOYMENTS, deployment("d"))
    limits = {"limits": {"cpu": "two"}}
    change = {"spec": {"template": {"spec": {"containers": [{"name": "main", "resources": limits}]}}}}
    reply = await api.patch(f"{DEPLOYMENTS}/d", change, STRATEGIC)
    assert (reply.code, reply.reason) == (422, "Invalid")
    assert reply.message == (
        ' "" is invalid: patch: Invalid value: "map[spec:map[template:map[spec:map[containers:[map[name:main '
        f'resources:map[limits:map[cpu:two]]]]]]]]": {QUANTITIES}'
    )


async def test_an_unparsable_quantity_in_server_side_apply(api: Api) -> None:
    reply = await api.apply(f"{PODS}/p", gpu_pod("p", None, "one"))
    assert reply.code == 500
    assert reply.message == (
        "failed to convert new object (default/p; /v1, Kind=Pod) to proper version: unable to convert unstructured "
        f"object to /v1, Kind=Pod: {QUANTITIES}"
    )


@pytest.mark.parametrize(("value", "at"), [("not base64!", 3), ("YWJj!", 4), ("YWJ", 0), ("YWJjZA", 4), ("YQ==x", 4)])
async def test_secret_data_that_is_not_base64(api: Api, value: str, at: int) -> None:
    reply = await api.post(SECRETS, secret(value))
    assert (reply.code, reply.reason) == (400, "BadRequest")
    assert reply.message == (
        f'Secret in version "v1" cannot be handled as a Secret: illegal base64 data at input byte {at}'
    )


async def test_secret_data_that_is_base64(api: Api) -> None:
    assert (await api.post(SECRETS, secret("YQ==\n"))).code == 201


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("bad", f'parsing time "bad" as {MICRO}: cannot parse "bad" as "2006"'),
        (
            "2026-01-02T03:04:05Z",
            f'parsing time "2026-01-02T03:04:05Z" as {MICRO}: cannot parse "Z" as ".000000"',
        ),
        (
            "2026-01-02T03:04:05.123Z",
            f'parsing time "2026-01-02T03:04:05.123Z" as {MICRO}: cannot parse ".123Z" as ".000000"',
        ),
        (
            "2026-01-02T03:04:05.123456789Z",
            f'parsing time "2026-01-02T03:04:05.123456789Z" as {MICRO}: cannot parse "789Z" as "Z07:00"',
        ),
        (
            "2026-13-02T03:04:05.123456Z",
            'parsing time "2026-13-02T03:04:05.123456Z": month out of range',
        ),
    ],
)
@pytest.mark.parametrize("field", ["acquireTime", "renewTime"])
async def test_a_lease_whose_times_lack_microseconds(api: Api, field: str, value: str, problem: str) -> None:
    reply = await api.post(LEASES, lease(**{field: value}))
    assert (reply.code, reply.reason) == (400, "BadRequest")
    assert reply.message == f'Lease in version "v1" cannot be handled as a Lease: {problem}'


@pytest.mark.parametrize("value", ["2026-01-02T03:04:05.000000Z", "2026-01-02T03:04:05.123456+02:00"])
async def test_a_lease_with_microseconds(api: Api, value: str) -> None:
    assert (await api.post(LEASES, lease(acquireTime=value, renewTime=value))).code == 201


async def test_a_time_in_a_status(api: Api) -> None:
    await api.post(BUDGETS, budget("b", app="a"))
    disrupted = {"status": {"disruptedPods": {"p": "yesterday"}}}
    reply = await api.patch(f"{BUDGETS}/b/status", disrupted)
    assert reply.code == 422
    assert reply.message.endswith(f': parsing time "yesterday" as {SECONDS}: cannot parse "yesterday" as "2006"')


@pytest.mark.parametrize(("value", "shown"), [(1.5, "number 1.5"), (3_000_000_000, "number 3000000000")])
async def test_a_number_that_is_no_int32(api: Api, value: float, shown: str) -> None:
    body = deployment("d")
    body["spec"]["replicas"] = value
    reply = await api.post(DEPLOYMENTS, body)
    assert reply.code == 400
    assert reply.message.endswith(
        f"json: cannot unmarshal {shown} into Go struct field DeploymentSpec.spec.replicas of type int32"
    )


# ---- bodies


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "unexpected end of JSON input (<empty>)"),
        (b'{"kind":', 'unexpected end of JSON input ({"kind":)'),
        (b"{kind: Pod}", "invalid character 'k' looking for beginning of object key string ({kind: Pod})"),
        (b'{"a":1,}', "invalid character '}' looking for beginning of object key string ({\"a\":1,})"),
        (b'{"a" 1}', "invalid character '1' after object key ({\"a\" 1})"),
        (b'{"a":1 "b"}', 'invalid character \'"\' after object key:value pair ({"a":1 "b"})'),
        (b'{"a":[1 2]}', "invalid character '2' after array element ({\"a\":[1 2]})"),
        (b"oops", "invalid character 'o' looking for beginning of value (6f6f7073)"),
        (b"{} {}", "invalid character '{' after top-level value ({} {})"),
    ],
)
async def test_a_body_that_is_no_json(api: Api, body: bytes, problem: str) -> None:
    reply = await api.post(MAPS, body)
    assert (reply.code, reply.reason) == (400, "BadRequest")
    assert reply.message == (
        "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: "
        f"{problem}"
    )


async def test_a_long_body_that_is_no_json_is_cut(api: Api) -> None:
    reply = await api.post(MAPS, b'{"metadata":{"name":"with-a-long-name"}')
    assert reply.message.endswith('unexpected end of JSON input ({"metadata":{"name":"with-a-lo ...)')


async def test_the_name_of_a_binding_is_that_of_the_path(api: Api) -> None:
    await api.post(PODS, pod("p"))
    for metadata in ({}, {"name": "other"}):
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": {"name": "n1"}}
        reply = await api.post(f"{PODS}/p/binding", body)
        assert (reply.code, reply.reason) == (400, "BadRequest")
        assert reply.message == "name in URL does not match name in Binding object"
    assert "nodeName" not in (await api.get(f"{PODS}/p")).body["spec"]


async def test_the_name_of_an_eviction_is_that_of_the_path(api: Api) -> None:
    await api.post(PODS, pod("p"))
    for metadata in ({}, {"name": "other"}):
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
        reply = await api.post(f"{PODS}/p/eviction", body)
        assert (reply.code, reply.reason) == (400, "BadRequest")
        assert reply.message == "name in URL does not match name in Eviction object"
    assert "deletionTimestamp" not in (await api.get(f"{PODS}/p")).body["metadata"]


async def test_a_binding_to_another_instance_of_the_pod(api: Api) -> None:
    await api.post(PODS, pod("p"))
    metadata = {"name": "p", "uid": "that-of-the-last"}
    body = {"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": {"name": "n1"}}
    reply = await api.post(f"{PODS}/p/binding", body)
    assert (reply.code, reply.reason) == (409, "Conflict")
    assert "Precondition failed: UID in precondition: that-of-the-last, UID in object meta: " in reply.message


# ---- patches


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/data/a", "value": "2"},
        {"op": "remove", "path": "/data/b"},
        {"op": "replace", "path": "/data/b", "value": "2"},
        {"op": "add", "path": "/nothing/here", "value": "2"},
        {"op": "improve", "path": "/data/a", "value": "2"},
    ],
)
async def test_a_json_patch_that_does_not_apply(api: Api, operation: dict[str, Any]) -> None:
    await api.post(MAPS, config_map("a", a="1"))
    reply = await api.patch(f"{MAPS}/a", [operation], JSON_PATCH)
    assert (reply.code, reply.reason, reply.message) == (422, "Invalid", REJECTED)


@pytest.mark.parametrize(
    ("kind", "patch", "problem"),
    [
        (
            JSON_PATCH,
            {"op": "add"},
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp",
        ),
        (JSON_PATCH, b"[", "error decoding patch: unexpected end of JSON input"),
        (
            MERGE,
            [1],
            "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
        (MERGE, b"{", "error decoding patch: unexpected end of JSON input"),
        (STRATEGIC, [1], "json: cannot unmarshal array into Go value of type map[string]interface {}"),
    ],
)
async def test_a_malformed_patch(api: Api, kind: str, patch: Any, problem: str) -> None:
    await api.post(MAPS, config_map("a", a="1"))
    reply = await api.patch(f"{MAPS}/a", patch, kind)
    assert (reply.code, reply.reason, reply.message) == (400, "BadRequest", problem)


async def test_an_unknown_field_in_a_strict_merge_patch_shows_the_patched_object(api: Api) -> None:
    await api.post(MAPS, config_map("a", a="1"))
    reply = await api.patch(f"{MAPS}/a?fieldValidation=Strict", {"dta": {"a": "b"}}, MERGE)
    assert reply.message.startswith(' "" is invalid: patch: Invalid value: "{')
    assert '\\"data\\":{\\"a\\":\\"1\\"}' in reply.message
    assert reply.message.endswith('": strict decoding error: unknown field "dta"')


@pytest.mark.parametrize(
    ("left_out", "shown"),
    [("apiVersion", "/, Kind=ConfigMap"), ("kind", "/v1, Kind="), ("other", "example.com/v1, Kind=ConfigMap")],
)
async def test_an_applied_configuration_of_no_or_another_type(api: Api, left_out: str, shown: str) -> None:
    body = config_map("a", a="1")
    if left_out == "other":
        body["apiVersion"] = "example.com/v1"
    else:
        del body[left_out]
    reply = await api.apply(f"{MAPS}/a", body)
    assert (reply.code, reply.reason, reply.message) == (400, "BadRequest", f"invalid object type: {shown}")


# ---- methods and parameters


@pytest.mark.parametrize(("method", "path"), [("PUT", MAPS), ("PATCH", MAPS), ("POST", f"{MAPS}/a")])
async def test_a_method_that_the_path_does_not_have(api: Api, method: str, path: str) -> None:
    reply = await api.call(
        method, path, config_map("a"), Content_Type=MERGE if method == "PATCH" else "application/json"
    )
    assert (reply.code, reply.reason) == (405, "MethodNotAllowed")
    assert reply.message == "the server does not allow this method on the requested resource"


@pytest.mark.parametrize("query", ["limit=abc", "timeoutSeconds=abc", "watch=1&timeoutSeconds=abc"])
async def test_a_parameter_that_is_no_number(api: Api, query: str) -> None:
    reply = await api.get(f"{MAPS}?{query}")
    assert (reply.code, reply.reason) == (400, "BadRequest")
    assert reply.message == 'strconv.ParseInt: parsing "abc": invalid syntax'


async def test_a_grace_period_that_is_no_number(api: Api) -> None:
    await api.post(PODS, pod("p"))
    reply = await api.delete(f"{PODS}/p?gracePeriodSeconds=abc")
    assert (reply.code, reply.message) == (400, 'strconv.ParseInt: parsing "abc": invalid syntax')


@pytest.mark.parametrize(
    ("selector", "problem"),
    [
        ("a in b", "unable to parse requirement: found 'b' expected: '('"),
        ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
        ("a=b c", "found 'c', expected: ',' or 'end of string'"),
        ("a,", "found '', expected: identifier after ','"),
        ("=b", "found '=', expected: !, identifier, or 'end of string'"),
        ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        ("a=-b", 'unable to parse requirement: values[0][a]: Invalid value: "-b": a valid label must be'),
        ("a>x", "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators"),
        ("-a", 'unable to parse requirement: <nil>: Invalid value: "-a": name part must consist of'),
    ],
)
async def test_a_label_selector_that_cannot_be_read(api: Api, selector: str, problem: str) -> None:
    reply = await api.get(
        f"{MAPS}?labelSelector={selector.replace('=', '%3D').replace(' ', '%20').replace('>', '%3E')}"
    )
    assert (reply.code, reply.reason) == (400, "BadRequest")
    assert reply.message.startswith(problem)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        (PODS, "field label not supported: spec.foo"),
        (MAPS, '"spec.foo" is not a known field selector: only "metadata.name", "metadata.namespace"'),
        ("/apis/batch/v1/namespaces/default/jobs", 'field label "spec.foo" not supported for batchv1.Job'),
    ],
)
async def test_a_field_that_cannot_be_selected_by(api: Api, path: str, problem: str) -> None:
    reply = await api.get(f"{path}?fieldSelector=spec.foo%3Dx")
    assert (reply.code, reply.reason, reply.message) == (400, "BadRequest", problem)


async def test_duplicate_keys_of_a_body(api: Api) -> None:
    body = b'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"x":"1","x":"2"}}'
    warned = await api.post(f"{MAPS}?dryRun=All", body)
    assert (warned.code, warned.body["data"]) == (201, {"x": "2"})
    assert warned.headers["Warning"] == '299 - "duplicate field \\"data.x\\""'
    strict = await api.post(f"{MAPS}?fieldValidation=Strict", body)
    assert (strict.code, strict.message) == (
        400,
        'ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: duplicate field "data.x"',
    )
