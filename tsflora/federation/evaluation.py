"""The metric on the global test set, with compression on, as deployed, and off."""

from collections.abc import Callable

import torch
from torch import Tensor

from tsflora.compression import Seen, Sender, Tokens
from tsflora.errors import NumericsError
from tsflora.federation.sides import ServerSide, Terms
from tsflora.federation.training import precision
from tsflora.models import Back, Front


@torch.no_grad()
def evaluate(side: ServerSide, front: Front, back: Back, sender: Sender | None = None) -> tuple[float, float]:
    """The mean score over the test set: (compression on, compression off); without a sender both are one.

    A front that merges tokens does so with compression on.

    In batches of the training size: a quantizer's range spans a batch, so another size would be another codec. The
    sender judges, so that nothing it remembers changes.

    Raises:
        NumericsError: the model puts out NaN or infinity.
    """
    terms = side.terms
    on, off = Mean(terms), Mean(terms)
    size = terms.training.batch_size
    for start in range(0, len(side.test), size):
        rows = slice(start, start + size)
        inputs = terms.task.inputs(side.test.images[rows], terms.spec, terms.where)
        targets = terms.task.targets(side.test.labels[rows], terms.where)
        draw = _draw(terms, start)
        with precision(terms.where, terms.training):
            seen: Seen = front(inputs, draw)
            whole = seen if front.merging is None else front.unmerged(inputs)
        seen, whole = seen.float(), whole.float()
        received = seen.tokens if sender is None else sender.judge(seen, draw)
        with precision(terms.where, terms.training):
            plain = back(whole.tokens)
            # A lossless codec needs no second pass.
            outputs = plain if _same(received, whole.tokens) else back(received)
        on.add(outputs, targets)
        off.add(plain, targets)
    return on.value, off.value


class Mean:
    """A task's metric over batches of outputs.

    Raises:
        NumericsError: NaN or infinity in the outputs.
    """

    def __init__(self, terms: Terms) -> None:
        self.task = terms.task
        self.total, self.count = 0.0, 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in a batch."""
        if not bool(torch.isfinite(outputs).all()):
            raise NumericsError("NaN or infinity in the judged model's test outputs")
        total, count = self.task.score(outputs, targets)
        self.total += total
        self.count += count

    @property
    def value(self) -> float:
        """The mean so far."""
        return self.total / self.count


def _draw(terms: Terms, start: int) -> Callable[[str], torch.Generator]:
    return lambda purpose: terms.generator("evaluate", purpose, start)


def _same(received: Tokens, sent: Tokens) -> bool:
    return received.lengths is None and received.sizes is None and torch.equal(received.values, sent.values)
