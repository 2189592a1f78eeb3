import json
import math
import os

import pytest

from prunegym.pruning.files.plain_data import parse_json, parse_yaml, read_json, write_json


def test_json_comes_back_equal_and_ends_in_a_newline(tmp_path):
    data = {"a": [1, 2.5, None], "ä": {"nested": True}}
    write_json(tmp_path / "data.json", data)
    assert read_json(tmp_path / "data.json") == data
    assert (tmp_path / "data.json").read_text(encoding="utf-8").endswith("}\n")


def test_nan_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "data.json", {"a": math.nan})
    assert os.listdir(tmp_path) == []


def test_what_is_not_json_or_not_there_raises(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(json.JSONDecodeError):
        read_json(tmp_path / "bad.json")
    with pytest.raises(OSError, match=r"gone\.json"):
        read_json(tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[" * 10**5, "it is nested too deeply"),
        ('{"a": ' * 10**5, "it is nested too deeply"),
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "the key 'b' is given twice"),
        ('{"a": [NaN]}', "it holds NaN"),
        ("-Infinity", "it holds -Infinity"),
        ("", "it is an empty file; copy or download it anew"),
        ("version https://git-lfs.github.com/spec/v1", "it is a Git LFS pointer, .*; run git lfs pull"),
        ("<html><body>Not found", "it is a web page"),
        ('{"a": ' * 60 + "1" + "}" * 60, "it is nested too deeply"),
        ('["\\uDCFF"]', "it holds half of a surrogate pair"),
        ("{", "Expecting property name"),
    ],
)
def test_what_is_no_plain_json_is_refused(tmp_path, text, complaint):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 400, "9" * 5000, "1e999", "-1e999"])
def test_a_number_in_json_that_no_float_holds_is_refused(number):
    with pytest.raises(ValueError, match=r"^it holds the number \S{1,41}, which is too large$"):
        parse_json(f'{{"macs": [{number}]}}'.encode())
    assert parse_json(f"[1e300, 3, 1{'0' * 300}]".encode()) == [1e300, 3, 10**300]


def aliases(times, of, leaf):
    """YAML whose last line stands for `of` ** `times` leaves."""
    lines = [f"- &a0 {leaf}"] + [f"- &a{i + 1} [{', '.join([f'*a{i}'] * of)}]" for i in range(times)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (aliases(9, 10, "x"), "longer than 100000 characters"),
        (aliases(3, 10, "x" * 99), "longer than 100000 characters"),
        ("a: &a {k: v}\n" + "b: &b {<<: [" + "*a, " * 30_000 + "*a]}", "longer than 100000 characters"),
        ("&a [*a]", "longer than 100000 characters"),
        ("x" * 100_001, "longer than 100000 characters"),
        ("[" * 21 + "]" * 21, "nested more deeply than 20"),
        ("[" * 10_000, "nested too deeply"),
        ("9" * 5000, "holds the number 9"),
        ("0x" + "f" * 5000, "holds the number 0x"),
        ("!!timestamp x", "not plain YAML"),
        ("!!bool x", "not plain YAML"),
        ("!!float ''", "not plain YAML"),
        ("!!python/name:os.system", "not plain YAML"),
        ("a: [", "not plain YAML"),
        ("\0", "not plain YAML"),
    ],
)
def test_yaml_that_is_not_plain_or_takes_long_to_work_with_is_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_yaml(text)


def test_yaml_may_use_aliases():
    assert parse_yaml(aliases(2, 3, "x"))[2] == [["x"] * 3] * 3
    assert parse_yaml("a: &a {lr: 0.1}\nb: {<<: *a, seed: 1}")["b"] == {"lr": 0.1, "seed": 1}
    assert parse_yaml("") is None
