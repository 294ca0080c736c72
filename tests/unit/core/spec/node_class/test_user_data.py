"""User data: what Karpenter and the nodes would make of it, and what must not be in it."""

from __future__ import annotations

import textwrap

import pytest

from gpu_fleet.core.spec.node_class.bottlerocket import bottlerocket_problems
from gpu_fleet.core.spec.node_class.node_config import al2023_problems, node_configs
from gpu_fleet.core.spec.node_class.user_data import NODE_CONFIG, UserDataError, parts_of

CONFIG = """\
apiVersion: node.eks.aws/v1alpha1
kind: NodeConfig
spec:
"""


def config(body: str) -> str:
    return CONFIG + textwrap.indent(textwrap.dedent(body).strip("\n"), "  ") + "\n"


def archive(*parts: tuple[str, str], end: str = "--B--\n") -> str:
    text = 'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="B"\n\n'
    for kind, content in parts:
        text += f"--B\nContent-Type: {kind}\n\n{content}\n"
    return text + end


GOOD = config("""
    featureGates:
      InstanceIdNodeName: true
    kubelet:
      config:
        shutdownGracePeriod: 30s
      flags: [--v=4]
    containerd:
      config: |
        [plugins."io.containerd.grpc.v1.cri".containerd]
        discard_unpacked_layers = false
    instance:
      localStorage: {strategy: Mount}
""")


@pytest.mark.parametrize(
    "text",
    ["", "\n", GOOD, "---\n" + GOOD, "#!/bin/bash\nset -e\necho hello\n",
     archive((NODE_CONFIG, GOOD), ("text/x-shellscript", "#!/bin/sh\ntrue"))],
    ids=["nothing", "blank", "NodeConfig", "with a document's start", "script", "archive"],
)  # fmt: skip
def test_nothing_is_wrong_with_what_nodeadm_reads(text: str) -> None:
    assert [str(problem) for problem in al2023_problems(text)] == []


def test_an_archive_has_its_parts_in_order_with_their_lines() -> None:
    text = archive(("text/x-shellscript", "#!/bin/sh\ntrue"), (NODE_CONFIG, GOOD))
    script, node_config = parts_of(text)
    assert (script.kind, script.is_node_config, node_config.is_node_config) == ("text/x-shellscript", False, True)
    assert text.splitlines()[script.line - 1] == "#!/bin/sh"
    assert text.splitlines()[node_config.line - 1] == "apiVersion: node.eks.aws/v1alpha1"
    assert [each["kind"] for each in node_configs(text)] == ["NodeConfig"]


#: situation -> text, line (None: about the whole), part of the message, part of the remedy
WRONG: dict[str, tuple[str, int | None, str, str]] = {
    "YAML that ends too early": (CONFIG + "  kubelet: {config: {a: 1}\n", 5, "not valid YAML", "correct it"),
    "a tab": (CONFIG + "\tkubelet: {}\n", 4, "not valid YAML", "correct it"),
    "a list": ("- a\n- b\n", 1, "not one YAML mapping", "NodeConfig"),
    "plain text": ("hello world\n", 1, "run it as a script", "#!"),
    "two documents": (GOOD + "---\n" + GOOD, 1, "not one YAML mapping", "NodeConfig"),
    "cloud-config": ("#cloud-config\npackages: [jq]\n", 1, "apiVersion is None", "write apiVersion"),
    "another version": (GOOD.replace("v1alpha1", "v2"), 1, "apiVersion", "node.eks.aws/v1alpha1"),
    "another kind": (GOOD.replace("NodeConfig", "NodeClass"), 2, "kind", "NodeConfig"),
    "no spec": (CONFIG, 3, "no spec", "add it"),
    "a key beside the spec": (GOOD + "kubelet: {}\n", 16, "'kubelet' is not a key", "correct"),
    "an unknown field": (config("kublet: {}"), 4, "spec.kublet", "one of cluster"),
    "an unknown gate": (config("featureGates:\n  FastPull: true"), 5, "spec.featureGates.FastPull", "FastImagePull"),
    "a gate that is text": (config('featureGates:\n  FastImagePull: "yes"'), 5, "'yes'", "true or false"),
    "a section that is a list": (config("kubelet: []"), 4, "must be a mapping", "write {key"),
    "the cluster": (config("cluster:\n  name: other"), 4, "written by Karpenter", "remove"),
    "maxPods out of Karpenter's sight": (
        config("kubelet:\n  config:\n    maxPods: 20"), 6, "spec.kubelet.config.maxPods", "nodeClass.kubelet.maxPods"),
    "taints by the kubelet": (
        config("kubelet:\n  config:\n    registerWithTaints: []"), 6, "registerWithTaints", "nodePools[].taints"),
    "labels by a flag": (
        config("kubelet:\n  flags:\n    - --node-labels=a=b"), 6, "--node-labels", "nodePools[].labels"),
    "RAID0 out of Karpenter's sight": (
        config("instance:\n  localStorage:\n    strategy: RAID0"), 6, "size of the disks", "instanceStorePolicy"),
    "an unknown strategy": (
        config("instance:\n  localStorage:\n    strategy: RAID5"), 6, "'RAID5' is unknown", "RAID10"),
    "containerd's config": (config("containerd:\n  config: 'a = ='"), 5, "not valid TOML", "correct"),
    "a config that is no text": (config("containerd:\n  config: {a: b}"), 5, "is not text", "as a block"),
    "a script that is a mapping": ("#!/bin/bash\nset: x\n", 1, "Karpenter would take it for a NodeConfig", "MIME"),
    "an archive without parts": (
        "MIME-Version: 1.0\nContent-Type: text/plain\n\nhello\n", 1, "without parts", "boundary"),
    "an archive without its boundary": (
        'Content-Type: multipart/mixed; boundary="B"\n\nhello\n', None, "no line '--B' begins a part", "boundary"),
    "an archive that does not end": (archive((NODE_CONFIG, GOOD), end=""), None, "does not end", "add that line"),
    "a part without a type": (
        'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="B"\n\n--B\n\nhello\n--B--\n',
        4, "no Content-Type", "application/node.eks.aws"),
    "space before the headers": (" MIME-Version: 1.0\n\n", 1, "begins with its headers", "remove"),
    "a mistake in a part": (
        archive(("text/x-shellscript", "#!/bin/sh\ntrue"), (NODE_CONFIG, config("kublet: {}"))),
        15, "spec.kublet", "one of"),
}  # fmt: skip


@pytest.mark.parametrize("situation", WRONG)
def test_what_nodeadm_would_lose_is_named_with_its_line(situation: str) -> None:
    text, line, message, remedy = WRONG[situation]
    (problem, *more) = al2023_problems(text)
    assert more == []
    assert (problem.line, message in str(problem), remedy in problem.remedy) == (line, True, True), str(problem)
    assert line is None or str(problem).startswith(f"line {line}: ")


def test_an_alias_bomb_in_a_node_config_is_an_error_and_not_a_hang() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
    )
    assert [problem.line for problem in al2023_problems(bomb)] == [1]


# --- Bottlerocket ----------------------------------------------------------------------------------------------------

TOML = """\
[settings.host-containers.admin]
enabled = true

[settings.kubernetes]
log-level = 3

[settings.kubelet-device-plugins.nvidia]
device-list-strategy = "volume-mounts"
"""


@pytest.mark.parametrize("text", ["", TOML], ids=["nothing", "settings"])
def test_nothing_is_wrong_with_settings(text: str) -> None:
    assert list(bottlerocket_problems(text)) == []


#: situation -> text, line, part of the message, part of the remedy
WRONG_TOML: dict[str, tuple[str, int, str, str]] = {
    "not TOML": (TOML + "a = = 1\n", 9, "not valid TOML", "correct"),
    "a table twice": (TOML + "[settings.kubernetes]\n", 9, "not valid TOML", "correct"),
    "it ends too early": ('[settings.motd]\na = "x\n', 2, "not valid TOML", "correct"),
    "a NodeConfig": (GOOD, 1, "not valid TOML", "for AL2023"),
    "beside the settings": ("[kubernetes]\na = 1\n", 1, "[kubernetes] is not read", "below [settings]"),
    "the sharing": (
        TOML + 'device-sharing-strategy = "mps"\n', 9, "device-sharing-strategy follows", "nodePools[].sharing"),
    "time-slicing": (
        TOML + "[settings.kubelet-device-plugins.nvidia.time-slicing]\nreplicas = 2\n",
        9, "time-slicing follows", "nodePools[].sharing"),
    "the plugin switched off": (TOML + "enabled = false\n", 2, "nvidia.enabled follows", "built-in device plugin"),
    "taints": (TOML.replace("log-level = 3", 'node-taints = {a = ["b:NoSchedule"]}'), 5, "node-taints", ".taints"),
    "pods": (TOML.replace("log-level = 3", "max-pods = 20"), 5, "max-pods", "nodeClass.kubelet.maxPods"),
    "the cluster's name": (
        TOML.replace("log-level = 3", 'cluster-name = "x"'), 5, "cluster-name follows", "Karpenter writes it"),
}  # fmt: skip


@pytest.mark.parametrize("situation", WRONG_TOML)
def test_settings_that_would_be_lost_or_contradict_are_named_with_their_line(situation: str) -> None:
    text, line, message, remedy = WRONG_TOML[situation]
    (problem,) = bottlerocket_problems(text)
    assert (problem.line, message in str(problem), remedy in problem.remedy) == (line, True, True), str(problem)


def test_the_snapshotter_is_chosen_once() -> None:
    text = '[settings.container-runtime]\nsnapshotter = "soci"\n'
    assert list(bottlerocket_problems(text)) == []
    (problem,) = bottlerocket_problems(text, fast_start=True)
    assert isinstance(problem, UserDataError)
    assert problem.line == 2
