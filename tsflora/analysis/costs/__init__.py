"""What a deployment would cost: traffic, compute, memory, radio, latency. Pure functions with units; nothing trains."""

from tsflora.analysis.costs.cases import Case, Scenario, cost_frame, deployments, latency_frame
from tsflora.analysis.costs.compute import Compute, backbone_forward_macs, compute, compute_per_image
from tsflora.analysis.costs.deployment import Deployment, MeasuredError, Workload, plan_of
from tsflora.analysis.costs.grid import at_setting, settings_grid, with_latency
from tsflora.analysis.costs.latency import (
    MEMORY_LINE_BYTES,
    REFERENCE,
    TESTBED,
    Accelerator,
    DeviceClass,
    Latency,
    Participant,
    RoundLatency,
    Work,
    round_latency,
)
from tsflora.analysis.costs.memory import Memory, MemoryConfig, device_memory, server_memory
from tsflora.analysis.costs.radio import MBPS, Channel, Link, shannon_bps
from tsflora.analysis.costs.shape import VitShape
from tsflora.analysis.costs.traffic import Traffic, paper_uplink_mib, token_readings, traffic

__all__ = [
    "MBPS",
    "MEMORY_LINE_BYTES",
    "REFERENCE",
    "TESTBED",
    "Accelerator",
    "Case",
    "Channel",
    "Compute",
    "Deployment",
    "DeviceClass",
    "Latency",
    "Link",
    "MeasuredError",
    "Memory",
    "MemoryConfig",
    "Participant",
    "RoundLatency",
    "Scenario",
    "Traffic",
    "VitShape",
    "Work",
    "Workload",
    "at_setting",
    "backbone_forward_macs",
    "compute",
    "compute_per_image",
    "cost_frame",
    "deployments",
    "device_memory",
    "latency_frame",
    "paper_uplink_mib",
    "plan_of",
    "round_latency",
    "server_memory",
    "settings_grid",
    "shannon_bps",
    "token_readings",
    "traffic",
    "with_latency",
]
