"""Values as a document that helm reads without changing them. Pure.

The document is JSON, which YAML 1.2 accepts; helm's parser accepts less (helm/helm v4.2.3 pkg/chart/common/values.go,
sigs.k8s.io/yaml, go-yaml v2 ``yamlh.go`` and ``readerc.go``): a pair of escaped surrogates, JSON's way to write
characters beyond U+FFFF, is an error there, and so is a control character that is not escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.errors import SpecError

#: Not printable to go-yaml's reader, or a line break to its scanner, where JSON needs no escape: escaped one by one.
_NOT_PLAIN = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_HALF = re.compile("[\ud800-\udfff]")


def values_document(values: Mapping[str, Any]) -> str:
    """The text of a values file, to be encoded in UTF-8.

    :raises SpecError: a text holds half of a surrogate pair, which is no character and has no encoding.
    """
    text = json.dumps(dict(values), ensure_ascii=False, default=str)
    if half := _HALF.search(text):
        raise SpecError(
            f"a text holds half of a surrogate pair (U+{ord(half[0]):04X}), which is no character",
            field="values",
            remedy="write the character itself",
        )
    return _NOT_PLAIN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
