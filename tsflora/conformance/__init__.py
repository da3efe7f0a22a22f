"""The conformance suite: what holds for every registered component, a third party's included.

Every component comes with `examples`, the options it is tested under. A check raises `AssertionError` with a sentence
that says what is wrong; nothing here needs a checkout or a test runner.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from tsflora.compression import adapter_codecs, codecs, gradient_codecs, mergers, quantizers, token_reducers
from tsflora.config import Registry
from tsflora.conformance.claims import N_PATCHES, check_component
from tsflora.conformance.conduct import check_partition, check_scheduler, check_task
from tsflora.conformance.ends import check_adapter_codec, check_codec, check_gradient_codec
from tsflora.conformance.merging import check_merger
from tsflora.conformance.quantizing import check_quantizer
from tsflora.conformance.reducers import check_reducer
from tsflora.data import partitions, tasks
from tsflora.errors import TsfloraError
from tsflora.federation import schedulers
from tsflora.foreign import blame
from tsflora.revisions import REGISTRIES

__all__ = [
    "N_PATCHES",
    "Case",
    "cases",
    "check_adapter_codec",
    "check_codec",
    "check_component",
    "check_gradient_codec",
    "check_merger",
    "check_partition",
    "check_quantizer",
    "check_reducer",
    "check_scheduler",
    "check_task",
]

_CHECKS: dict[str, Callable[[str, Mapping[str, Any]], None]] = {
    token_reducers.sort: check_reducer,
    mergers.sort: check_merger,
    quantizers.sort: check_quantizer,
    codecs.sort: check_codec,
    gradient_codecs.sort: check_gradient_codec,
    adapter_codecs.sort: check_adapter_codec,
    schedulers.sort: check_scheduler,
    partitions.sort: check_partition,
    tasks.sort: check_task,
}
"""By sort; of any other sort, name, documentation and configuration are checked."""


class Case(NamedTuple):
    """A component with one of its examples."""

    registry: Registry[Any]
    name: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.registry.sort} {self.name} {dict(self.options)}"

    def check(self) -> None:
        """Hold the component to its contract.

        Raises:
            AssertionError: a sentence that says what is wrong.
        """
        check = _CHECKS.get(self.registry.sort)
        if check is None:
            check_component(self.registry, self.name, self.options)
        else:
            check(self.name, self.options)

    def fault(self) -> str | None:
        """What is wrong, in one line, whatever the component does; None: nothing."""
        try:
            self.check()
        except AssertionError as error:
            return " ".join(str(error).split()) or "an assertion of its own fails"
        except Exception as error:  # a bug of the author's is a finding like any other
            line = blame(error, self.registry.classes()[self.name].__module__.partition(".")[0])
            return line if isinstance(error, TsfloraError | ValueError) else f"raises {line}"
        return None


def cases(*registries: Registry[Any], of: Iterable[type] | None = None) -> list[Case]:
    """Every example of every component of these registries, of all where there are none; `of` takes these classes."""
    chosen = None if of is None else set(of)
    return [
        Case(registry, name, options)
        for registry in registries or REGISTRIES
        for name, cls in registry.classes().items()
        if chosen is None or cls in chosen
        for options in cls.examples
    ]
