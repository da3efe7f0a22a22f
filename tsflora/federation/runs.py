"""A run in progress: the state of one algorithm, round by round."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from tsflora.federation.device import Step
from tsflora.federation.exchange import InProcessExchange
from tsflora.federation.setup import Setup


class Run(ABC):
    """One run in progress."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.exchange: InProcessExchange

    @abstractmethod
    def train_round(self, round_: int, participants: Sequence[int]) -> Iterator[Step]:
        """Train one round, yielding after every optimiser step."""

    @abstractmethod
    def evaluate(self) -> tuple[float, float]:
        """Accuracy of the judged model, with compression on and off."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that the next round depends on."""

    @abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`."""
