"""Names, their order and printed form in every table and figure: the suite's methods first, a user's after them."""

import re
from collections.abc import Iterable

from tsflora.records import RunRecord

METHODS = (
    "local_lora",
    "fed_lora",
    "split_lora",
    "sflora",
    "sflora_8bit",
    "sflora_4bit",
    "tsflora_8bit_40",
    "tsflora_8bit_30",
)
"""The eight methods of the suite, in the order of the TSFLora paper's Table III."""

REFERENCE = "sflora"
"""The method others are compared with: split federated LoRA without any compression."""


def method_rank(method: str) -> tuple[int, str]:
    """Sort key of a method: the suite's order, then unknown methods by name."""
    return (METHODS.index(method), "") if method in METHODS else (len(METHODS), method)


_DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny_imagenet": "Tiny-ImageNet"}


def dataset_label(dataset: str) -> str:
    """The printed name of a data set; an unknown one stays as it is."""
    return _DATASETS.get(dataset, dataset)


def partition_rank(partition: str) -> tuple[bool, str]:
    """Sort key of a partition: IID first, then by name."""
    return (partition != "iid", partition)


def partition_label(partition: str) -> str:
    """The printed name of a partition: `dirichlet_0.5` becomes `Dirichlet(0.5)`; an unknown name stays as it is."""
    if partition == "iid":
        return "IID"
    match = re.fullmatch(r"dirichlet_(\d+(?:\.\d+)?)", partition)
    return f"Dirichlet({match[1]})" if match else partition


def significant_digits(amount: float, digits: int) -> str:
    """An amount with `digits` digits that count, never as an exponent from 0.0001 up; an exact zero is `0`."""
    if amount == 0:
        return "0"
    return f"{amount:.0f}" if amount >= 10 ** (digits - 1) else f"{amount:#.{digits}g}".rstrip(".")


def in_order(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Records by data set, partition, method and seed, whatever order they came in."""
    return sorted(
        records,
        key=lambda run: (run.dataset, partition_rank(run.partition), method_rank(run.method), run.seed),
    )
