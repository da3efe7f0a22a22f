"""Images, where they come from, who holds them, and how they become a model's input."""

from tsflora.data.images import ImageSet
from tsflora.data.noise import Noise
from tsflora.data.partition import Partition, label_counts, partitions
from tsflora.data.sources import DataSource, data_sources
from tsflora.data.task import AnyTask, ImageClassification, InputSpec, Task, tasks
from tsflora.data.transforms import AugmentConfig, to_input

__all__ = [
    "AnyTask",
    "AugmentConfig",
    "DataSource",
    "ImageClassification",
    "ImageSet",
    "InputSpec",
    "Noise",
    "Partition",
    "Task",
    "data_sources",
    "label_counts",
    "partitions",
    "tasks",
    "to_input",
]
