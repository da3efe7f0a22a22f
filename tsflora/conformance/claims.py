"""What the checks are written in: claims that raise `AssertionError` with a sentence, also under `python -O`."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tsflora.config import Component, Registry

N_PATCHES = 9
"""Of the model that components are tested on."""


def holds(claim: object, sentence: str) -> None:
    """Raise an `AssertionError` with this sentence unless the claim is true."""
    if not claim:
        raise AssertionError(sentence)


def close(actual: Tensor, expected: Tensor, sentence: str) -> None:
    """The same for two tensors that are equal but for rounding."""
    alike = actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-5, atol=1e-6)
    holds(alike, sentence)


@contextlib.contextmanager
def refused(sort: type[Exception], what: str) -> Iterator[None]:
    """The same for what has to raise an error of this sort."""
    try:
        yield
    except sort:
        return
    except Exception as error:
        raise AssertionError(
            f"{what} has to raise {sort.__name__}, and raises {type(error).__name__}: {error}"
        ) from error
    raise AssertionError(f"{what} has to raise {sort.__name__}, and does not")


def check_component(registry: Registry[Any], name: str, options: Mapping[str, Any]) -> Any:
    """Name, documentation and configuration; returns the component.

    Raises:
        AssertionError: a sentence that says what is wrong.
    """
    cls: type[Component] = registry.classes()[name]
    holds(cls.name == name, f"its name is {cls.name!r}, and it is listed as {name!r}")
    holds(vars(cls).get("__doc__"), "it has no docstring: a component says what it does")
    component = registry.build({"name": name, **options})
    again = registry.build(component.model_dump(mode="json"))
    holds(again == component, f"a record must rebuild it, and its dump makes another one: {again!r}")
    with refused(ValueError, "an option that it does not have (no_such_option)"):
        registry.build({"name": name, **options, "no_such_option": 1})
    return component
