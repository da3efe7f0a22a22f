"""What methods would cost in a deployment, as frames: bytes, work, memory and latency of a round. Nothing is run."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tsflora.analysis.costs.compute import compute
from tsflora.analysis.costs.deployment import Deployment, MeasuredError, Workload
from tsflora.analysis.costs.latency import (
    REFERENCE,
    TESTBED,
    Accelerator,
    DeviceClass,
    Participant,
    Work,
    round_latency,
)
from tsflora.analysis.costs.memory import Memory, MemoryConfig, device_memory, server_memory
from tsflora.analysis.costs.radio import MBPS, Link
from tsflora.analysis.costs.shape import VitShape
from tsflora.analysis.costs.traffic import paper_uplink_mib, traffic
from tsflora.analysis.units import GIGA, MIB
from tsflora.config import Config, did_you_mean
from tsflora.errors import ConfigError
from tsflora.federation.split import SplitLoRA
from tsflora.models import LoraConfig
from tsflora.study import StudyConfig

log = logging.getLogger(__name__)

PHASES = ("device", "uplink", "server", "downlink")
"""Of a round, in the order in which they follow each other."""
MEMORY_PARTS = tuple(name.removesuffix("_bytes") for name in vars(Memory()))
_SIZES = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H"}


class Scenario(Config):
    """Where a round takes place: all that costs depend on and a deployment does not say."""

    link: Link = Link(uplink_bps=10 * MBPS, downlink_bps=10 * MBPS)
    """Of every device. The paper (arXiv 2605.23988) gives a rate of the uplink; the same downlink is our assumption."""
    testbed: tuple[DeviceClass, ...] = TESTBED
    """The participants of a round."""
    accelerator: Accelerator = REFERENCE
    """What device classes are fractions of."""
    server: Accelerator = REFERENCE
    memory: MemoryConfig = MemoryConfig()

    def with_rates(self, uplink_mbps: int | float, downlink_mbps: int | float | None = None) -> "Scenario":
        """The same at other rates; no downlink rate takes the uplink's."""
        down_mbps = uplink_mbps if downlink_mbps is None else downlink_mbps
        rates = {"uplink_bps": MBPS * uplink_mbps, "downlink_bps": MBPS * down_mbps}
        link = Link.parse({**self.link.model_dump(), **rates}, "link")
        return self.model_copy(update={"link": link})

    @property
    def rates(self) -> str:
        """The link in words."""
        up, down = self.link.uplink_bps / MBPS, self.link.downlink_bps / MBPS
        return f"{up:g} Mbps each way" if up == down else f"{up:g} Mbps up, {down:g} Mbps down"

    @property
    def machines(self) -> str:
        """Processors in words, assumptions included."""
        unit = self.accelerator
        speed = _span([device.compute_fraction for device in self.testbed])
        memory = _span([device.memory_fraction for device in self.testbed])
        reached = f"{unit.peak_flop_per_s / 1e12:g} TFLOP/s, {100 * unit.utilisation:g} % of it reached"
        server = "one whole" if self.server == unit else self.server.name
        return (
            f"{len(self.testbed)} devices with {speed} of the speed and {memory} of the memory of one {unit.name} "
            f"({reached}); server: {server}"
        )


@dataclass(frozen=True)
class Case:
    """One method on one backbone, with its names."""

    method: str
    label: str
    deployment: Deployment
    in_turn: bool = False
    """The participants work one after another (SplitLoRA): a round takes the sum of their times, not the longest."""

    @property
    def backbone_label(self) -> str:
        """The printed name of the backbone."""
        return backbone_label(self.deployment.vit)


def backbone_label(vit: VitShape) -> str:
    """`vit_base_patch32_224` as ViT-B/32, other names as they are; with the image side where it is not the usual one.

    Usual are 224 px, and for other names the side that they end in.
    """
    name, usual = vit.backbone, vit.backbone.endswith(f"_{vit.image_size}")
    match = re.match(r"vit_([a-z]+)_patch(\d+)", vit.backbone)
    if match is not None and match[1] in _SIZES:
        name, usual = f"ViT-{_SIZES[match[1]]}/{match[2]}", vit.image_size == 224
    return name if usual else f"{name} at {vit.image_size} px"


def deployments(
    study: StudyConfig,
    vits: Sequence[VitShape],
    workload: Workload | None = None,
    lora: LoraConfig | None = None,
    cut: int | None = None,
    methods: Sequence[str] | None = None,
) -> list[Case]:
    """Methods of a study on each backbone, in the study's order; None takes the study's LoRA, its cut, all methods.

    Of all methods, one that sends what has no size before there is data is left out, with a warning. What `split_lora`
    averages within a round in its periodic mode is not counted, nor what a scheduler changes of a method's plan.

    Raises:
        MeasuredError: a method by name that sends what has no size before there is data.
        ConfigError: a method that the study does not have, a cut or a token count that the backbone does not have.
    """
    for key in methods or ():
        if key not in study.methods:
            raise ConfigError(f"unknown method {key!r}; {did_you_mean(key, study.methods)}")
    chosen = {key: method for key, method in study.methods.items() if methods is None or key in methods}
    cases = [
        Case(
            method=key,
            label=method.label or key,
            deployment=Deployment.of(method, vit, lora or study.lora, cut or study.cut, workload),
            in_turn=isinstance(method.algorithm, SplitLoRA),
        )
        for vit in vits
        for key, method in chosen.items()
    ]
    measured = _measured(cases)
    for key, error in measured.items():
        if methods is not None:
            raise MeasuredError(f"method {key}: {error.what}")
        log.warning("left out, %s: %s", error, key)
    return [case for case in cases if case.method not in measured]


def _measured(cases: Sequence[Case]) -> dict[str, MeasuredError]:
    """Methods that send what has no size before there is data, and why."""
    found: dict[str, MeasuredError] = {}
    for case in cases:
        try:
            traffic(case.deployment)
        except MeasuredError as error:
            found.setdefault(case.method, error)
    return found


def cost_frame(cases: Sequence[Case], scenario: Scenario | None = None) -> pd.DataFrame:
    """One row per backbone and method, in the order given: everything of one device in one round.

    `uplink_mib`, `downlink_mib`, `total_mib` count all bytes, `paper_uplink_mib` what Table I of arXiv 2605.23988
    counts. `server_gflop` is on one device's batches; one FLOP is half a multiply-accumulate. `*_memory_gb` are peaks
    (10^9 bytes), followed by their parts in MiB. `latency_*_s` are the round's phases and `latency_s` their sum; it is
    also given where `feasible` is false, which says that some device of the testbed cannot hold the method.
    `radio_joule` is what a device spends on sending; what it spends on computing needs a power that nobody states.
    `held_by` names the classes that can.

    Raises:
        ConfigError: no case.
    """
    scenario = scenario or Scenario()
    if not cases:
        raise ConfigError("cases: given none; allowed: at least one")
    return pd.DataFrame([_cost_row(case, scenario) for case in cases])


def latency_frame(
    cases: Sequence[Case],
    uplinks_mbps: Sequence[int | float],
    downlink_mbps: int | float | None = None,
    scenario: Scenario | None = None,
) -> pd.DataFrame:
    """`cost_frame` at several uplink rates, with a first column `uplink_mbps`; no downlink rate takes the uplink's."""
    scenario = scenario or Scenario()
    frames = []
    for uplink_mbps in uplinks_mbps:
        costs = cost_frame(cases, scenario.with_rates(uplink_mbps, downlink_mbps))
        costs.insert(0, "uplink_mbps", uplink_mbps)
        frames.append(costs)
    return pd.concat(frames, ignore_index=True)


def phases_s(case: Case, scenario: Scenario) -> dict[str, float]:
    """Seconds of each phase of a round with the whole testbed; the slowest participant's, or all in turn."""
    macs, sent = compute(case.deployment), traffic(case.deployment)
    work = Work(macs.device_flops, macs.server_flops, sent.uplink_bytes, sent.downlink_bytes)
    everyone = [Participant(device, scenario.link, work) for device in scenario.testbed]
    groups = [[participant] for participant in everyone] if case.in_turn else [everyone]
    slowest = [round_latency(group, scenario.accelerator, scenario.server).slowest for group in groups]
    return {phase: math.fsum(getattr(latency, f"{phase}_s") for latency in slowest) for phase in PHASES}


def _span(fractions: Sequence[float]) -> str:
    """In percent, the least and the most."""
    least, most = 100 * min(fractions), 100 * max(fractions)
    return f"{least:g} %" if least == most else f"{least:g}–{most:g} %"


def _cost_row(case: Case, scenario: Scenario) -> Mapping[str, Any]:
    deployment = case.deployment
    sent, macs = traffic(deployment), compute(deployment)
    device, server = device_memory(deployment, scenario.memory), server_memory(deployment, scenario.memory)
    holders = [unit for unit in scenario.testbed if unit.holds(device.total_bytes, scenario.accelerator)]
    latency = phases_s(case, scenario)
    row: dict[str, Any] = {
        "backbone": case.backbone_label,
        "method": case.method,
        "label": case.label,
        "runs": deployment.plan.runs,
        "uploads": deployment.plan.uploads,
        "in_turn": case.in_turn,
        "paper_uplink_mib": paper_uplink_mib(deployment),
        "uplink_mib": sent.uplink_bytes / MIB,
        "downlink_mib": sent.downlink_bytes / MIB,
        "total_mib": sent.total_bytes / MIB,
        "device_gflop": macs.device_flops / GIGA,
        "server_gflop": macs.server_flops / GIGA,
        "device_memory_gb": device.total_bytes / GIGA,
        "server_memory_gb": server.total_bytes / GIGA,
    }
    for side, memory in (("device", device), ("server", server)):
        row |= {f"{side}_{part}_mib": getattr(memory, f"{part}_bytes") / MIB for part in MEMORY_PARTS}
    row |= {f"latency_{phase}_s": seconds for phase, seconds in latency.items()}
    return row | {
        "latency_s": sum(latency.values()),
        "radio_joule": scenario.link.uplink_joule(sent.uplink_bytes),
        "feasible": len(holders) == len(scenario.testbed),
        "held_by": ", ".join(dict.fromkeys(unit.name for unit in holders)),
    }
