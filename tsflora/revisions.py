"""What numbers depend on, by name: revisions of the loop and of components, and versions of what computes.

A record stays valid while these stay, whatever else changes in the code. They are raised by hand where numbers change;
`tests/test_golden.py` fails where numbers changed and they did not.
"""

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

from tsflora.compression import adapter_codecs, codecs, gradient_codecs, mergers, quantizers, token_reducers
from tsflora.config import Component
from tsflora.data import data_sources, partitions, tasks
from tsflora.federation import TRAJECTORY, algorithms, schedulers
from tsflora.foreign import source_digest

REGISTRIES = (
    algorithms,
    schedulers,
    codecs,
    mergers,
    token_reducers,
    quantizers,
    gradient_codecs,
    adapter_codecs,
    data_sources,
    partitions,
    tasks,
)
_COMPUTING = ("torch", "timm", "peft", "numpy")


def versions() -> dict[str, str]:
    """Versions of the packages that compute."""
    return {name: version(name) for name in _COMPUTING}


def components_of(config: object) -> Iterator[Component]:
    """Every component in a configuration, outer ones first."""
    if isinstance(config, Component):
        yield config
    if isinstance(config, BaseModel):
        for name in type(config).model_fields:
            yield from components_of(getattr(config, name))


def title(cls: type[Component]) -> str:
    """A component's sort and name, as `Quantizer.uniform`."""
    (sort,) = [base for base in cls.__mro__ if Component in base.__bases__]
    return f"{sort.__name__}.{cls.name}"


def revisions_of(*configs: object) -> dict[str, int]:
    """The revision of each component in these configurations."""
    parts = [type(part) for config in configs for part in components_of(config)]
    return dict(sorted((title(part), part.revision) for part in parts))


def sources_of(*configs: object) -> dict[str, str]:
    """SHA-256 of the source file of each component in these configurations that is not this package's own.

    Our own revisions are held by a golden log; of anybody else's code only the text can tell that it changed.
    """
    parts = [type(part) for config in configs for part in components_of(config)]
    return {title(part): digest for part in parts if (digest := source_digest(part)) is not None}


def revisions() -> dict[str, Any]:
    """All of them, as the pipeline's `revisions` stage writes them: run stages depend on this instead of on code."""
    return {
        "trajectory": TRAJECTORY,
        "components": dict(
            sorted((title(cls), cls.revision) for registry in REGISTRIES for cls in registry.classes().values())
        ),
        "versions": versions(),
    }
