"""What one device does in a round: the loop and the cost models read the same plan."""

import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from tsflora.compression import (
    AnyAdapterCodec,
    AnyCodec,
    AnyGradientCodec,
    AnyImageCodec,
    AnyMerger,
    Codec,
    Kind,
    Section,
    TokenCodec,
    read_frame,
    write_frame,
)
from tsflora.compression.tokens import AllTokens
from tsflora.config import Config
from tsflora.errors import ConfigError, FrameError


class Plan(Config):
    """What a device does in a round, and by which codecs it talks."""

    runs: Literal["nothing", "front", "everything"]
    """Which blocks: none, those before the cut, or all."""
    uploads: Literal["nothing", "tokens", "samples"]
    """What of its samples leaves the device."""
    codec: AnyCodec | None = None
    """Of the tokens; None where none are sent."""
    gradient: AnyGradientCodec | None = None
    """Of what comes back for tokens; None: nothing does, so the front is frozen and has no optimiser."""
    adapter: AnyAdapterCodec | None = None
    """Of the adapter, in both directions; None: none travels."""
    images: AnyImageCodec | None = None
    """Of the samples; None where none are sent."""
    merging: AnyMerger | None = None
    """Of tokens inside the blocks before the cut; None: there is none."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Plan":
        if (self.uploads == "tokens") != (self.codec is not None) or (self.uploads == "samples") != bool(self.images):
            raise ValueError(f"uploads: {self.uploads!r} needs its own codec and no other")
        if self.uploads == "tokens" and self.runs != "front":
            raise ValueError(f"uploads: 'tokens' needs runs: 'front'; given: {self.runs!r}")
        if self.gradient is not None and self.codec is None:
            raise ValueError("gradient: nothing comes back where no tokens are sent")
        if self.adapter is not None and not self.trains:
            raise ValueError("adapter: a device that trains nothing has none to send")
        if self.merging is not None and self.uploads != "tokens":
            raise ValueError(f"merging: needs a device that uploads 'tokens'; given: uploads {self.uploads!r}")
        if self.merging is not None and not _takes_any_lengths(self.codec):
            given = self.codec.tokens if isinstance(self.codec, TokenCodec) else self.codec
            assert given is not None
            raise ValueError(
                f"merging: sequences of different lengths need codec 'tokens' with the token reducer 'all'; "
                f"given: {given.name!r}"
            )
        return self

    @property
    def trains(self) -> bool:
        """Whether the device itself trains."""
        return self.runs == "everything" or self.gradient is not None

    def changes(self, base: "Plan") -> dict[str, Any]:
        """What differs from `base`, as plain JSON values; empty where nothing does."""
        mine, theirs = (json.loads(plan.model_dump_json()) for plan in (self, base))
        return {name: value for name, value in mine.items() if value != theirs[name]}

    def encode(self, base: "Plan") -> bytes:
        """A frame of control that tells a device which knows `base` of this plan."""
        text = json.dumps(self.changes(base), sort_keys=True, separators=(",", ":")).encode()
        return write_frame(Kind.CONTROL, [Section.codes(np.frombuffer(text, np.uint8), 8)])

    @classmethod
    def decode(cls, frame: bytes, base: "Plan") -> "Plan":
        """The plan in such a frame.

        Raises:
            FrameError: damaged bytes, or not a plan.
        """
        (section,) = read_frame(frame, Kind.CONTROL)
        try:
            changes = json.loads(section.values.astype(np.uint8).tobytes())
            return cls.parse({**json.loads(base.model_dump_json()), **changes}, "a scheduled plan")
        except (ValueError, TypeError, ConfigError) as error:
            raise FrameError(f"not a plan: {error}") from None


def _takes_any_lengths(codec: Codec | None) -> bool:
    """Not those that choose among tokens by attention, or that expect all of them."""
    return isinstance(codec, TokenCodec) and isinstance(codec.tokens, AllTokens)


@dataclass(frozen=True)
class Dropped:
    """A device that was drawn and takes no part in this round."""

    why: str


class DeviceRound(Config):
    """What one device did in one round."""

    device: int
    plan: dict[str, Any] | None = None
    """What a scheduler changed of the method's own plan; None: nothing."""
    n_samples: int = 0
    """Training samples seen."""
    uplink_bytes: int = 0
    """Of all kinds, headers included; the same for `downlink_bytes`."""
    downlink_bytes: int = 0
    dropped: str | None = None
    """Why it took no part; None: it did."""
