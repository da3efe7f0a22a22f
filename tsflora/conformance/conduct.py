"""What holds for what conducts and divides: schedulers, partitions and tasks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tsflora.compression import TokenCodec, adapter_codecs, gradient_codecs
from tsflora.config import Registry
from tsflora.conformance.claims import check_component, holds
from tsflora.data import InputSpec, Partition, Task, partitions, tasks
from tsflora.federation import Dropped, Plan, Scheduler, Terms, TrainingConfig, algorithms, schedulers

_DEVICES = (0, 2, 3)


def terms() -> Terms:
    """Of a method that selects tokens, on a model of 49 patches."""
    codec = TokenCodec.parse({"tokens": {"name": "top_k_merge", "n_tokens": 30}, "quantizer": "float16"})
    plan = algorithms.build("sflora").plan(codec, gradient_codecs.build("values"), adapter_codecs.build("values"))
    return Terms(
        dataset="conformance",
        seed=0,
        n_classes=10,
        n_patches=49,
        dim=64,
        task=tasks.build("image_classification"),
        spec=InputSpec(28, (0.5,) * 3, (0.5,) * 3),
        training=TrainingConfig(),
        plan=plan,
        where=torch.device("cpu"),
    )


def check_scheduler(name: str, options: Mapping[str, Any], registry: Registry[Any] = schedulers) -> None:
    """A plan for everyone that was drawn, or a word on why not.

    Raises:
        AssertionError: a sentence that says what is wrong.
    """
    scheduler: Scheduler = check_component(registry, name, options)
    agreed = terms()
    plans = scheduler.plan(agreed, 1, _DEVICES, ())
    holds(plans.keys() == set(_DEVICES), f"devices {_DEVICES} were drawn, and {sorted(plans)} are planned for")
    for device, plan in plans.items():
        if isinstance(plan, Dropped):
            holds(plan.why and "\n" not in plan.why, f"device {device} is dropped without one line that says why")
            continue
        told = Plan.decode(plan.encode(agreed.plan), agreed.plan)
        holds(told == plan, f"device {device} is told another plan than it was given: {told!r}")
        holds(plan.adapter == agreed.plan.adapter, f"device {device}: a device's adapters keep their codec")
    holds(scheduler.plan(agreed, 1, _DEVICES, ()) == plans, "the same round is planned in two ways")


def check_partition(name: str, options: Mapping[str, Any], registry: Registry[Any] = partitions) -> None:
    """Shards are disjoint, nobody's is empty, and a seed fixes them.

    Raises:
        AssertionError: a sentence that says what is wrong.
    """
    partition: Partition = check_component(registry, name, options)
    labels = np.random.default_rng(7).permutation(np.repeat(np.arange(10), 30))
    first, again = (partition.split(labels, 6, 0, "conformance") for _ in range(2))
    holds(len(first) == 6, f"6 devices get {len(first)} shards")
    holds(all(len(shard) for shard in first), "a device has no image")
    if partition.min_samples is None:
        held = np.concatenate(first)
        holds(len(set(held.tolist())) == len(held), "an image is on two devices")
        holds(held.min() >= 0 and held.max() < len(labels), "an index is not one of an image")
    same = [np.array_equal(a, b) for a, b in zip(first, again, strict=True)]
    holds(all(same), "one seed gives two partitions: draw from the generator that is given, and from nothing else")


def check_task(name: str, options: Mapping[str, Any], registry: Registry[Any] = tasks) -> None:
    """A metric with a name, and its sum over a batch.

    Raises:
        AssertionError: a sentence that says what is wrong.
    """
    task: Task = check_component(registry, name, options)
    holds(task.metric, "metric: what `score` measures has no name")
    outputs = torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 1.0]])
    targets = task.targets(np.array([1, 0, 0]), torch.device("cpu"))
    loss = task.loss(outputs, targets)
    holds(loss.ndim == 0 and bool(loss.isfinite()), f"the loss is {loss!r}; expected: a finite scalar")
    _, count = task.score(outputs, targets)
    holds(count >= 1, f"score is a mean over {count}; expected: at least 1 for a batch of 3")
