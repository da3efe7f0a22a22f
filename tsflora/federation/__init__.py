"""Who talks to whom in a round, over counted bytes."""

from tsflora.federation.algorithms import Algorithm, algorithms
from tsflora.federation.checkpoint import CheckpointStore
from tsflora.federation.runs import Run
from tsflora.federation.setup import Setup
from tsflora.federation.training import TRAJECTORY, OptimizerConfig, TrainingConfig, participants_of

__all__ = [
    "TRAJECTORY",
    "Algorithm",
    "CheckpointStore",
    "OptimizerConfig",
    "Run",
    "Setup",
    "TrainingConfig",
    "algorithms",
    "participants_of",
]
