"""Images, where they come from, who holds them, and how they become a model's input."""

from tsflora.data.images import ImageSet
from tsflora.data.partition import Partition, label_counts, partitions
from tsflora.data.sources import DataSource, data_sources
from tsflora.data.transforms import AugmentConfig, to_input

__all__ = [
    "AugmentConfig",
    "DataSource",
    "ImageSet",
    "Partition",
    "data_sources",
    "label_counts",
    "partitions",
    "to_input",
]
