"""What a deployment would cost: traffic, compute, memory, radio, latency. Pure functions with units; nothing trains."""

from tsflora.edge.compute import Compute, backbone_forward_macs, compute, compute_per_image
from tsflora.edge.deployment import Deployment, MeasuredError, Workload, plan_of
from tsflora.edge.latency import (
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
from tsflora.edge.memory import Memory, MemoryConfig, device_memory, server_memory
from tsflora.edge.radio import MBPS, Channel, Link, shannon_bps
from tsflora.edge.shape import VitShape
from tsflora.edge.traffic import Traffic, paper_uplink_mib, token_readings, traffic

__all__ = [
    "MBPS",
    "MEMORY_LINE_BYTES",
    "REFERENCE",
    "TESTBED",
    "Accelerator",
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
    "Traffic",
    "VitShape",
    "Work",
    "Workload",
    "backbone_forward_macs",
    "compute",
    "compute_per_image",
    "device_memory",
    "paper_uplink_mib",
    "plan_of",
    "round_latency",
    "server_memory",
    "shannon_bps",
    "token_readings",
    "traffic",
]
