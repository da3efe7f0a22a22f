"""Local work that every algorithm shares: settings, optimisers, mini-batches, and the watch for NaN."""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tsflora.compression import Adapter
from tsflora.config import Config
from tsflora.errors import NumericsError
from tsflora.seeding import numpy_generator

TRAJECTORY = 1
"""The loop's revision, raised by hand when a change to it alters the numbers of a run; a run's record depends on it."""

Order = Literal["interleaved", "sequential"]
"""How the batches of a round's participants arrive at the server; see `turns`."""


class OptimizerConfig(Config):
    """SGD as in the authors' code, or AdamW by name (methods: lr 0.1 would break Adam)."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """SGD only."""
    weight_decay: float = Field(default=0.0, ge=0)

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """An optimiser over `parameters` with no state yet."""
        if self.name == "adamw":
            return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


class TrainingConfig(Config):
    """Who trains, for how long, on how much. Defaults are the TSFLora paper's (arXiv 2605.23988)."""

    rounds: int = Field(default=50, ge=1)
    n_devices: int = Field(default=50, ge=1)
    participants: int = Field(default=10, ge=1)
    """Devices drawn without replacement in each round."""
    local_epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=64, ge=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    clip_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Before each step an optimiser's gradients are scaled down to this total norm; None leaves them as they are."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the blocks under autocast; the wire and the adapters stay fp32."""
    evaluate_every: int = Field(default=1, ge=1)
    """Rounds between evaluations; the last round is always evaluated."""

    @model_validator(mode="after")
    def _enough_devices(self) -> "TrainingConfig":
        if self.participants > self.n_devices:
            raise ValueError(
                f"participants: {self.participants} is more than n_devices: {self.n_devices}; "
                f"allowed: 1 to {self.n_devices}"
            )
        return self

    def evaluates(self, round_: int) -> bool:
        """Whether this round (counted from 1) ends with an evaluation."""
        return round_ == self.rounds or round_ % self.evaluate_every == 0


def participants_of(training: TrainingConfig, dataset: str, seed: int, round_: int) -> tuple[int, ...]:
    """The devices of a round, the same for every method."""
    rng = numpy_generator("participants", dataset, seed, round_)
    return tuple(sorted(rng.choice(training.n_devices, training.participants, replace=False).tolist()))


def minibatches(shard: np.ndarray, training: TrainingConfig, *names: object) -> Iterator[np.ndarray]:
    """Index arrays of at most `batch_size`, reshuffled every local epoch from the stream called `names`."""
    rng = numpy_generator("minibatches", *names)
    for _ in range(training.local_epochs):
        order = rng.permutation(shard)
        for start in range(0, len(order), training.batch_size):
            yield order[start : start + training.batch_size]


def turns(n_steps: Sequence[int], order: Order, *names: object) -> Iterator[int]:
    """Whose batch comes next at the server: positions in `n_steps`, each as often as it says.

    `interleaved`: one batch of everyone who has some left, in a fresh random order each time. `sequential`: one after
    the other in random order. Draws from the stream called `names`.
    """
    rng = numpy_generator("order", *names)
    left, active = list(n_steps), list(range(len(n_steps)))
    while active:
        for place in rng.permutation(len(active)).tolist():
            for _ in range(1 if order == "interleaved" else left[active[place]]):
                yield active[place]
                left[active[place]] -= 1
        active = [position for position in active if left[position]]


def check_finite(tensor: Tensor, what: str, round_: int, device: int) -> None:
    """Stop on NaN or infinity.

    Raises:
        NumericsError: names the tensor, the round and the device.
    """
    if not bool(torch.isfinite(tensor).all()):
        raise NumericsError(
            f"NaN or infinity in {what} (round {round_}, device {device}); a lower learning rate usually helps"
        )


def check_adapter(adapter: Adapter, round_: int, device: int) -> None:
    """Stop on NaN or infinity in an adapter (see `check_finite`)."""
    for name, tensor in adapter.items():
        check_finite(tensor, f"the adapter's {name}", round_, device)


def step(optimizer: torch.optim.Optimizer, training: TrainingConfig) -> None:
    """One step on the gradients that are there, clipped where `training.clip_norm` says so."""
    if training.clip_norm is not None:
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, training.clip_norm)
    optimizer.step()


class _PlainAttention(contextlib.AbstractContextManager[None]):
    """The plain attention kernel while anybody is inside: the choice is the process's, and threads must not undo it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._chosen = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._chosen.enter_context(sdpa_kernel(SDPBackend.MATH))
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._chosen.close()


_plain_attention = _PlainAttention()


@contextlib.contextmanager
def precision(device: torch.device, training: TrainingConfig) -> Iterator[None]:
    """The precision in which blocks run, and on the CPU the attention kernel.

    The plain kernel there: at 50 tokens the fused one's backward costs two to three times as much (bf16: 20 ms against
    6 ms for a batch of 50 with 3 heads), and its memory, which fusing saves, is no concern at this length.
    """
    kernel = _plain_attention if device.type == "cpu" else contextlib.nullcontext()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=training.precision == "bf16"), kernel:
        yield
