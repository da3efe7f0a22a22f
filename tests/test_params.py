"""YAML is read once and in one way: as DVC reads it, or not at all."""

import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from ruamel.yaml import YAML, YAMLError

from tsflora.errors import ConfigError
from tsflora.params import parse_yaml, read_yaml

ROOT = Path(__file__).parent.parent
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "params.yaml")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("params.yaml")
    return line


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10), ("-3", -3), ("+5", 5), ("0", 0), ("0o10", 8), ("0x1F", 31), ("9" * 30, int("9" * 30)),
        ("1e-3", 1e-3), ("1E3", 1e3), ("2.5", 2.5), (".5", 0.5), ("1.", 1.0), ("-.5e+2", -50.0), ("08.5", 8.5),
        ("true", True), ("False", False), ("~", None), ("", None), ("NULL", None),
        ("y", "y"), ("1.2.3", "1.2.3"), ("a_1", "a_1"), ("'010'", "010"), ('"yes"', "yes"), ("!!str 010", "010"),
        ("2024", 2024), ("'2024-01-01'", "2024-01-01"), ("tRue", "tRue"), ("!!float 1", 1.0),
    ],
)  # fmt: skip
def test_scalars_are_those_of_the_core_schema(text, value):
    read = parse_yaml(text, "x")
    assert read == value
    assert type(read) is type(value)


def test_infinity_is_a_float_which_no_setting_takes():
    assert parse_yaml("[.inf, -.INF]", "x") == [float("inf"), -float("inf")]


@pytest.mark.parametrize(
    "scalar",
    [
        "010", "012", "09", "-07", "0o1_0", "-0o7", "-0x1F", "0b11", "1_000", "1_0.5", "1_0e5", "._5",
        "1:30", "1:30.5", "yes", "No", "on", "OFF", "2024-01-01", "0x_1", "=", ".5e3",
    ],
)  # fmt: skip
def test_what_two_readers_take_for_two_values_is_refused_with_its_line(scalar):
    line = refused(f"# a comment\na: 1\nb: [2,\n  {scalar}]")
    assert line.startswith(f"params.yaml, line 4: {scalar} is read in different ways")
    assert refused(f"{scalar}: 1").startswith(f"params.yaml, line 1: {scalar} is read in different ways")
    assert parse_yaml(f"'{scalar}'", "x") == scalar


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3", "params.yaml, line 3: key 'a' is there twice, first in line 1"),
        ("a:\n  b: 1\n  c: 2\n  'b': 1", "params.yaml, line 4: key 'b' is there twice, first in line 2"),
        ("a: [{b: 1, b: 1}]", "params.yaml, line 1: key 'b' is there twice, first in line 1"),
        ("1: a\n0x1: b", "params.yaml, line 2: key 1 is there twice, first in line 1"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  <<: *x", "params.yaml, line 4: key '<<' is there twice, first in line 3"),
        ("x: &x\n  a: 1\n  a: 2\ny: *x", "params.yaml, line 3: key 'a' is there twice, first in line 2"),
        ("? !!set {a, a}\n: 1", "params.yaml, line 1: key 'a' is there twice, first in line 1"),
    ],
)  # fmt: skip
def test_a_key_twice_is_one_line_with_both_places(text, line):
    assert refused(text) == line


def test_a_merged_mapping_may_be_overridden():
    text = "base: &base {a: 1, b: 2}\nmine:\n  <<: *base\n  b: 3\nlast: {<<: [*base], a: 0}"
    assert parse_yaml(text, "x") == YAML(typ="safe").load(text)
    assert parse_yaml(text, "x")["mine"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [", "is not YAML, line 1: "),
        ("a: 1\nb: c: d", "is not YAML, line 2: mapping values are not allowed here"),
        ("a: *nowhere", "is not YAML, line 1: found undefined alias 'nowhere'"),
        ("a: 1\n---\nb: 2", "is not YAML, line 2: but found another document"),
        ("a: \x07", "is not YAML: unacceptable character"),
        ("a: &a [*a]", ", line 1: found unconstructable recursive node"),
        ("a: &a {b: *a}", ", line 1: found unconstructable recursive node"),
        ("[a]: 1", ", line 1: a key is text or a number"),
        ("{a: 1}: 1", ", line 1: a key is text or a number"),
        ("a: !!int x", ", line 1: not a value of 'int'"),
        ("a: !!float x", ", line 1: not a value of 'float'"),
        ("a: !!bool x", ", line 1: not a value of 'bool'"),
        ("a: !!timestamp x", ", line 1: not a value of 'timestamp'"),
        ("a: " + "9" * 5000, ", line 1: not a value of 'int'"),
        ("a: !mine x", ", line 1: could not determine a constructor for the tag '!mine'"),
        ("a: !!python/object/apply:os.getcwd []", ", line 1: could not determine a constructor"),
        ("a: <<", ", line 1: could not determine a constructor"),
        ("[" * 5000, "is nested too deeply"),
    ],
)
def test_what_is_not_yaml_is_one_line(text, part):
    assert part in refused(text)


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(path) == {"a": 1}
    path.write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"params\.yaml is not UTF-8 text: .*byte 3"):
        read_yaml(path)
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read \(No such"):
        read_yaml(tmp_path / "nowhere.yaml")


SCALARS = st.text("0123456789.eE+-_:obxaftnyrusl~=T ", min_size=1, max_size=7)


@given(SCALARS.map(str.strip).filter(bool))
@example("-0o7")
@example("0_0")
@example(".0E0")
@example("12e03")
@example("190:20:30.15")
def test_a_scalar_is_what_dvc_reads_or_refused(scalar):
    """ruamel.yaml is DVC's reader."""
    try:
        ours = parse_yaml(f"a: {scalar}", "x")
    except ConfigError:
        return
    try:
        theirs = YAML(typ="safe", pure=True).load(f"a: {scalar}")
    except (YAMLError, ValueError):
        return  # DVC cannot read it
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("name", [name for name in TRACKED if name.endswith((".yaml", "dvc.lock"))])
def test_every_file_of_the_repository_is_what_both_readers_say(name):
    text = (ROOT / name).read_text()
    assert parse_yaml(text, name) == YAML(typ="safe").load(text)


def test_the_old_reader_would_have_said_otherwise():
    assert yaml.safe_load("{a: 010, b: yes, c: 1e-3, a: 2}") == {"a": 2, "b": True, "c": "1e-3"}
