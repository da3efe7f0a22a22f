"""Configuration: numbers are numbers, keys are safe as file names, and a mistake is one line."""

import math
from typing import Literal

import pytest
from pydantic import Field
from pydantic import ValidationError as PydanticError

from tsflora.config import Component, Config, Key
from tsflora.errors import ConfigError


class Inner(Config):
    rate: float = Field(default=0.1, gt=0)


class Outer(Config):
    rounds: int = 1
    seeds: tuple[int, ...] = ()
    cut: int | None = None
    flag: bool = False
    lr: float = 0.1
    rates: dict[str, float] = Field(default_factory=dict)
    byte_counts: dict[int, int] = Field(default_factory=dict)
    inner: Inner = Inner()
    mode: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"rounds": True}, "here.rounds: Input should be a valid integer; given: True"),
        ({"rounds": "3"}, "here.rounds: Input should be a valid integer; given: '3'"),
        ({"rounds": 3.0}, "here.rounds: Input should be a valid integer; given: 3.0"),
        ({"seeds": [0, False]}, "here.seeds.1: Input should be a valid integer; given: False"),
        ({"cut": True}, "here.cut: Input should be a valid integer; given: True"),
        ({"flag": 1}, "here.flag: Input should be a valid boolean; given: 1"),
        ({"flag": "yes"}, "here.flag: Input should be a valid boolean; given: 'yes'"),
        ({"lr": True}, "here.lr: Input should be a valid number; given: True"),
        ({"lr": "0.1"}, "here.lr: Input should be a valid number; given: '0.1'"),
        ({"lr": math.inf}, "here.lr: Input should be a finite number; given: inf"),
        ({"rates": {"a": math.nan}}, "here.rates.a: Input should be a finite number; given: nan"),
        ({"inner": {"rate": math.inf}}, "here.inner.rate: Input should be a finite number; given: inf"),
        ({"inner": {"rate": True}}, "here.inner.rate: Input should be a valid number; given: True"),
    ],
)
def test_numbers_are_numbers(values, line):
    with pytest.raises(ConfigError) as caught:
        Outer.parse(values, "here")
    assert str(caught.value) == line


def test_a_component_has_strict_numbers_too():
    class Part(Component):
        name = "part"
        bits: int

    with pytest.raises(PydanticError, match="valid integer"):
        Part(bits=True)


def test_what_numbers_are_is_taken():
    outer = Outer.parse({"rounds": 3, "lr": 1, "seeds": [0, 1], "flag": True, "mode": "b"})
    assert (outer.rounds, outer.lr, outer.seeds, outer.flag) == (3, 1.0, (0, 1), True)
    counted = Outer(byte_counts={1: 2}, rates={"a": 0.5}, lr=2.0)
    assert Outer.model_validate_json(counted.model_dump_json()) == counted
    assert Outer.model_validate(counted.model_dump(mode="json")) == counted


class Named(Config):
    name: Key
    parts: dict[Key, int] = Field(default_factory=dict)


@pytest.mark.parametrize("key", ["a", "dirichlet_0.5", "sflora_8bit", "a.b-c", "con", "0", "-", "A" * 64, "a..b"])
def test_a_key_is_a_name(key):
    assert Named.parse({"name": key, "parts": {key: 1}}).parts == {key: 1}


@pytest.mark.parametrize(
    "key",
    [
        *(
            "",
            ".",
            "..",
            "../../up",
            "a/b",
            "/a",
            "a\\b",
            ".a",
            "a.",
            " a",
            "a b",
            "a\n",
            "\na",
            "a\0",
            "é",
            "a:b",
            "~",
        ),
        *("~", "A" * 65, 2024, None, 1.5, True),
    ],
)
def test_what_cannot_be_a_file_name_is_no_key(key):
    with pytest.raises(ConfigError) as caught:
        Named.parse({"name": key}, "here")
    assert str(caught.value).startswith("here.name: a key becomes a part of paths: letters (a-z, A-Z), ")
    assert str(caught.value).endswith(f"given: {key!r}")
    with pytest.raises(ConfigError) as caught:
        Named.parse({"name": "a", "parts": {key: 1}}, "here")
    assert str(caught.value).startswith("here.parts: a key becomes a part of paths: ")
    assert "\n" not in str(caught.value)
