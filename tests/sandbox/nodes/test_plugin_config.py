from __future__ import annotations

import pytest

from sandbox.nodes.gpus.plugin_config import ConfigError, Sharing, Strategy, choose, parse

_PREFIX = "unable to parse config file: error parsing config file: "
_JSON = "unmarshal error: error unmarshaling JSON: while decoding JSON: "


def _config(block: str, strategy: str = "timeSlicing") -> str:
    return f"version: v1\nsharing:\n  {strategy}:\n{block}"


_FOUR = "    resources: [{name: nvidia.com/gpu, replicas: 4}]\n"


@pytest.mark.parametrize("text", ["", "version: v1\n", "version: v1\nflags: {migStrategy: none}\n", "{}"])
def test_without_a_sharing_block_every_gpu_is_announced_once(text):
    """The configuration that silently turned sharing off."""
    assert parse(text).sharing == Sharing(Strategy.NONE, 1, "nvidia.com/gpu", False)


def test_time_slicing_lets_larger_requests_through_unless_told_otherwise():
    assert parse(_config(_FOUR)).sharing == Sharing(Strategy.TIME_SLICING, 4, "nvidia.com/gpu", False)
    strict = parse(_config("    failRequestsGreaterThanOne: true\n" + _FOUR)).sharing
    assert strict.one_only


def test_mps_refuses_larger_requests_unless_told_otherwise():
    assert parse(_config(_FOUR, "mps")).sharing == Sharing(Strategy.MPS, 4, "nvidia.com/gpu", True)


def test_mps_wins_over_time_slicing():
    both = _config(_FOUR) + "  mps:\n    resources: [{name: nvidia.com/gpu, replicas: 2}]\n"
    assert parse(both).sharing.strategy is Strategy.MPS


def test_renaming_gives_the_shared_resource_another_name():
    assert parse(_config("    renameByDefault: true\n" + _FOUR)).sharing.resource == "nvidia.com/gpu.shared"


def test_sharing_of_other_resources_leaves_whole_gpus_alone():
    text = _config("    resources: [{name: nvidia.com/mig-1g.5gb, replicas: 4}]\n")
    assert parse(text).sharing.strategy is Strategy.NONE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_config("    resources: [{name: nvidia.com/gpu, replicas: 1}]\n"), _JSON + "number of replicas must be >= 2"),
        (_config("    resources: [{name: nvidia.com/gpu}]\n"), _JSON + "no replicas specified"),
        (_config("    resources: [{replicas: 4}]\n"), _JSON + "no resource name specified"),
        (_config("    resources: []\n"), _JSON + "no resources specified"),
        (_config("    renameByDefault: true\n"), _JSON + "no resources specified"),
        ("version: v2\n", "unknown version: v2"),
    ],
)
def test_a_configuration_that_the_plugin_does_not_start_with(text, message):
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert str(error.value) == _PREFIX + message


@pytest.mark.parametrize("text", ["- a\n", "flags: text\n", "sharing: 3\n", "a: [\n"])
def test_malformed_files_are_unmarshal_errors(text):
    with pytest.raises(ConfigError, match="unmarshal error"):
        parse(text)


@pytest.mark.parametrize(
    ("entries", "label", "default", "fallbacks", "chosen"),
    [
        ({"a": "", "b": ""}, "b", "a", [], "b"),
        ({"a": "", "b": ""}, None, "a", [], "a"),
        ({"default": "", "b": ""}, None, "", ["named", "single"], "default"),
        ({"b": ""}, None, "", ["named", "single"], "b"),
        ({"a": "", "b": ""}, None, "", ["named", "single", "empty"], ""),
    ],
)
def test_which_entry_a_node_gets(entries, label, default, fallbacks, chosen):
    assert choose(entries, label, default, fallbacks) == chosen


@pytest.mark.parametrize(
    ("entries", "label", "default", "message"),
    [
        ({"a": ""}, "nope", "a", "specified config nope does not exist"),
        ({"a": "", "b": ""}, None, "", "no config was set, no default was provided, and all fallbacks failed"),
        ({}, None, "", "no configuration files available"),
    ],
)
def test_no_entry_fits(entries, label, default, message):
    with pytest.raises(ConfigError, match=message):
        choose(entries, label, default, ["named", "single"])
