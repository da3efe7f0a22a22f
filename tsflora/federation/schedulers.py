"""Who does what in a round: schedulers give each device that was drawn a plan, or drop it and say why."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator
from typing_extensions import override

from tsflora.compression import TokenCodec, header_bytes, token_reducers
from tsflora.compression.tokens import SelectAndMerge
from tsflora.config import Component, Registry
from tsflora.errors import ConfigError
from tsflora.federation.plan import DeviceRound, Dropped, Plan
from tsflora.federation.sides import Terms


class Scheduler(Component, ABC):
    """Decides at the start of a round what each device that was drawn does in it.

    A plan that is not the method's own reaches its device as a counted frame of control.
    """

    @abstractmethod
    def plan(
        self, terms: Terms, round_: int, devices: Sequence[int], before: Sequence[DeviceRound]
    ) -> dict[int, Plan | Dropped]:
        """A plan for each of `devices`; `terms.plan` is the method's own, `before` what devices did in the last round.

        Raises:
            ConfigError: a method that this scheduler cannot plan for.
        """


schedulers = Registry[Scheduler]("scheduler", "tsflora.schedulers", Scheduler)

AnyScheduler = Annotated[SerializeAsAny[Scheduler], BeforeValidator(schedulers.build)]


@schedulers.register
class Fixed(Scheduler):
    """Everybody does what the method says."""

    name = "fixed"

    @override
    def plan(
        self, terms: Terms, round_: int, devices: Sequence[int], before: Sequence[DeviceRound]
    ) -> dict[int, Plan | Dropped]:
        return dict.fromkeys(devices, terms.plan)


@schedulers.register
class Deadline(Scheduler):
    """Each device sends as many tokens as it can within one deadline for a mini-batch: a slow one sends fewer.

    A mini-batch takes a device `reference_s / fraction` of computing, whatever it sends, and the bytes of its tokens
    and their gradient at the rates of its link. Fractions are the classes of arXiv 2605.23988, Table II, by device
    number. A device that cannot send even `at_least` tokens in time is dropped.
    """

    name = "deadline"
    examples = ({}, {"deadline_s": 1e-6}, {"deadline_s": 3600.0})

    deadline_s: float = Field(default=0.6, gt=0, allow_inf_nan=False)
    """For one mini-batch, from the device's first block to its optimiser's step; the server counts as free."""
    reference_s: float = Field(default=0.02, gt=0, allow_inf_nan=False)
    """Of computing, on the accelerator whose fractions the devices are."""
    fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.05,) * 3 + (0.10,) * 4 + (0.15,) * 3, min_length=1
    )
    """Of the accelerator's speed, by device number; they repeat."""
    uplink_mbps: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    downlink_mbps: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    at_least: int = Field(default=3, ge=1)
    """Tokens."""
    at_most: int | None = Field(default=None, ge=1)
    """Tokens; None: all that there are."""

    @model_validator(mode="after")
    def _some_room(self) -> "Deadline":
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"at_most: {self.at_most} is less than at_least: {self.at_least}")
        return self

    @override
    def plan(
        self, terms: Terms, round_: int, devices: Sequence[int], before: Sequence[DeviceRound]
    ) -> dict[int, Plan | Dropped]:
        return {device: self._plan_of(device, terms) for device in devices}

    def _plan_of(self, device: int, terms: Terms) -> Plan | Dropped:
        computing_s = self.reference_s / self.fractions[device % len(self.fractions)]
        most = min(terms.n_patches + 1, self.at_most or terms.n_patches + 1)
        for n_tokens in range(most, self.at_least - 1, -1):
            plan = _sending(terms.plan, n_tokens)
            sending_s = self.sending_s(plan, terms)
            if computing_s + sending_s <= self.deadline_s:
                return plan
        return Dropped(
            f"{self.at_least} tokens take {computing_s + sending_s:.3g} s a mini-batch ({computing_s:.3g} s of "
            f"computing), more than the deadline of {self.deadline_s:g} s"
        )

    def sending_s(self, plan: Plan, terms: Terms) -> float:
        """Seconds on the link for a full mini-batch under this plan: its tokens up, their gradient down.

        Raises:
            ConfigError: a codec whose size is not known before there is data.
        """
        batch = terms.training.batch_size
        assert plan.codec is not None
        up = plan.codec.layouts(batch, terms.n_patches, terms.dim)
        n_tokens = plan.codec.n_transmitted(terms.n_patches)
        if up is None or n_tokens is None:
            raise ConfigError("scheduler deadline: needs a codec whose size follows from the number of tokens")
        down = () if plan.gradient is None else plan.gradient.layouts((batch, n_tokens, terms.dim))
        up_bytes, down_bytes = (
            sum(layout.body_bytes for layout in layouts if not layout.side) + header_bytes(layouts)
            for layouts in (up, down)
        )
        return 8e-6 * (up_bytes / self.uplink_mbps + (down_bytes / self.downlink_mbps if down else 0))


def _sending(plan: Plan, n_tokens: int) -> Plan:
    """The same plan with another number of tokens.

    Raises:
        ConfigError: a method that has no such number.
    """
    codec = plan.codec
    if not isinstance(codec, TokenCodec) or not isinstance(codec.tokens, SelectAndMerge):
        raise ConfigError("scheduler deadline: needs a method that selects n_tokens tokens, such as top_k_merge")
    tokens = token_reducers.build({**codec.tokens.model_dump(), "n_tokens": n_tokens})
    return plan.model_copy(update={"codec": codec.model_copy(update={"tokens": tokens})})
