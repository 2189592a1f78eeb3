"""Plain data in files and text of JSON and YAML, read strictly: what cannot be meant is refused."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from prunegym.pruning.errors import one_line
from prunegym.pruning.files.content import foreign_content
from prunegym.pruning.files.writing import written_whole

MAX_DEPTH = 50  # of the lists and objects in a JSON file; those of any record are nested a dozen deep
MAX_YAML_CHARACTERS, MAX_YAML_DEPTH = 100_000, 20  # a file of flags has a few hundred, and lists in mappings
TOO_LONG = f"it is longer than {MAX_YAML_CHARACTERS} characters, its aliases written out"
MAX_DIGITS = 300  # of a number in YAML; floats have not many more before the point


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON with a final newline; NaN is refused, since JSON has none."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return the data in a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: see `parse_json`.
    """
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        if found := foreign_content(path):
            raise ValueError(f"it is {found}") from error
        raise


def parse_json(text: bytes) -> Any:
    """Return the data in JSON text, UTF-8.

    Raises:
        ValueError: it is not JSON, holds NaN, infinity, a number that no float can hold or half a surrogate
            pair, a key twice, or is nested more than MAX_DEPTH deep.
    """
    try:
        data = json.loads(
            text.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_int=_whole,
            parse_float=_finite,
            object_pairs_hook=_with_unique_keys,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if b"\\ud" in text.lower():
        try:
            json.dumps(data, ensure_ascii=False).encode("utf-8")
        except (UnicodeEncodeError, RecursionError) as error:
            raise ValueError("it holds half of a surrogate pair, which is no character") from error
    level, depth = [data], 0
    while level := [part for node in level for part in _parts(node)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
    return data


def version_of(data: Any) -> int | None:
    """Return the version that a record says it is of; None if it says none, as with `true` or 2.0."""
    version = data.get("version") if isinstance(data, dict) else None
    return version if type(version) is int else None


def _parts(node: Any) -> Collection[Any]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which JSON has not")


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {shortened(text)}, which is too large")
    return value


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {twice!r} is given twice")
    return entries


def read_yaml(path: Path) -> Any:
    """Return the data in a YAML file.

    Raises:
        OSError: the file cannot be read.
        ValueError: see `parse_yaml`.
    """
    with path.open(encoding="utf-8") as file:
        return parse_yaml(file.read(MAX_YAML_CHARACTERS + 1))


def parse_yaml(text: str) -> Any:
    """Return the data in YAML text.

    Raises:
        ValueError: it is not plain YAML, holds a number of more than MAX_DIGITS characters, is nested more
            deeply than MAX_YAML_DEPTH, or is longer than MAX_YAML_CHARACTERS with its aliases written out.
    """
    if len(text) > MAX_YAML_CHARACTERS:
        raise _TooLargeError(TOO_LONG)
    try:
        if (node := yaml.compose(text, yaml.SafeLoader)) is not None:
            _check_extent(node)
        return yaml.safe_load(text)
    except _TooLargeError:
        raise
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except Exception as error:  # PyYAML raises a dozen kinds, by what is wrong
        raise ValueError(f"it is not plain YAML ({one_line(error)})") from error


class _TooLargeError(ValueError):
    pass


def _check_extent(node: yaml.Node) -> None:
    """Refuse what would take long to work with, although aliases may let it look short."""
    length, depth = _extent(node, {})
    if length > MAX_YAML_CHARACTERS:
        raise _TooLargeError(TOO_LONG)
    if depth > MAX_YAML_DEPTH:
        raise _TooLargeError(f"it is nested more deeply than {MAX_YAML_DEPTH}")


def _extent(node: yaml.Node, known: dict[int, tuple[float, int]]) -> tuple[float, int]:
    """Return the characters and the depth of a YAML node with aliases written out; each is counted once."""
    if id(node) not in known:
        known[id(node)] = math.inf, 0  # until it is counted, for an alias inside itself
        if isinstance(node, yaml.ScalarNode):
            if node.tag.endswith((":int", ":float")) and len(node.value) > MAX_DIGITS:
                raise _TooLargeError(f"it holds the number {shortened(node.value)}, which is too large")
            known[id(node)] = len(node.value) + 1, 1
        else:
            parts = itertools.chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
            extents = [_extent(part, known) for part in parts]
            length, depth = sum(one[0] for one in extents), max((one[1] for one in extents), default=0)
            known[id(node)] = length + 1, depth + 1
    return known[id(node)]


def shortened(text: str) -> str:
    """Return text of at most 40 characters, for a message: the middle of a longer one is left out."""
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
