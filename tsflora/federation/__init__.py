"""Who talks to whom in a round, over counted bytes."""

from tsflora.federation import central, split, whole  # noqa: F401  (each registers its algorithms)
from tsflora.federation.algorithm import Algorithm, algorithms
from tsflora.federation.checkpoint import Checkpoint, CheckpointStore
from tsflora.federation.fleet import InProcessFleet
from tsflora.federation.link import Fleet, Link, Message
from tsflora.federation.plan import DeviceRound, Dropped, Plan
from tsflora.federation.rounds import Run, Step
from tsflora.federation.schedulers import AnyScheduler, Scheduler, schedulers
from tsflora.federation.sides import DeviceSide, ServerSide, Terms
from tsflora.federation.training import TRAJECTORY, OptimizerConfig, TrainingConfig, participants_of

__all__ = [
    "TRAJECTORY",
    "Algorithm",
    "AnyScheduler",
    "Checkpoint",
    "CheckpointStore",
    "DeviceRound",
    "DeviceSide",
    "Dropped",
    "Fleet",
    "InProcessFleet",
    "Link",
    "Message",
    "OptimizerConfig",
    "Plan",
    "Run",
    "Scheduler",
    "ServerSide",
    "Step",
    "Terms",
    "TrainingConfig",
    "algorithms",
    "participants_of",
    "schedulers",
]
