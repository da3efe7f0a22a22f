"""A planned run: a method with its codecs, and all else that determines the run's numbers."""

import json
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, model_serializer, model_validator

from tsflora.compression import (
    AnyAdapterCodec,
    AnyCodec,
    AnyGradientCodec,
    AnyMerger,
    AnyQuantizer,
    AnyTokenReducer,
    TokenCodec,
    adapter_codecs,
    gradient_codecs,
    quantizers,
    token_reducers,
)
from tsflora.config import Config
from tsflora.data import AnyTask, AugmentConfig, DataSource, Partition, data_sources, partitions, tasks
from tsflora.errors import ConfigError
from tsflora.federation import Algorithm, AnyScheduler, Plan, TrainingConfig, algorithms, schedulers
from tsflora.models import BackboneConfig, LoraConfig
from tsflora.plugins import PluginConfig
from tsflora.records import RunRecord, config_digest

AnyAlgorithm = Annotated[SerializeAsAny[Algorithm], BeforeValidator(algorithms.build)]
AnyDataSource = Annotated[SerializeAsAny[DataSource], BeforeValidator(data_sources.build)]
AnyPartition = Annotated[SerializeAsAny[Partition], BeforeValidator(partitions.build)]


class MethodConfig(Config):
    """An algorithm with its codecs: uplink tokens, returned gradient, adapters.

    `tokens` and `quantizer` are short for the codec that most methods use, and `gradient_quantizer` and
    `adapter_quantizer` for sending values as they are; `codec`, `gradient` and `adapter` name any other.
    """

    label: str | None = None
    """The printed name; None prints the key."""
    algorithm: AnyAlgorithm
    cut: int | None = Field(default=None, ge=1)
    """None takes the study's."""
    tokens: AnyTokenReducer = Field(default_factory=lambda: token_reducers.build("all"))
    quantizer: AnyQuantizer = Field(default_factory=lambda: quantizers.build("float32"))
    gradient_quantizer: AnyQuantizer = Field(default_factory=lambda: quantizers.build("float32"))
    adapter_quantizer: AnyQuantizer = Field(default_factory=lambda: quantizers.build("float32"))
    codec: AnyCodec | None = None
    """In place of `tokens` and `quantizer`."""
    gradient: AnyGradientCodec | None = None
    """In place of `gradient_quantizer`."""
    adapter: AnyAdapterCodec | None = None
    """In place of `adapter_quantizer`."""
    merging: AnyMerger | None = None
    """Of tokens inside the device's blocks; None: there is none."""
    scheduler: AnyScheduler = Field(default_factory=lambda: schedulers.build("fixed"))

    @property
    def plan(self) -> Plan:
        """What each device does, unless the scheduler says otherwise."""
        plan = self.algorithm.plan(
            self.codec or TokenCodec(tokens=self.tokens, quantizer=self.quantizer),
            self.gradient or gradient_codecs.build({"name": "values", "quantizer": self.gradient_quantizer}),
            self.adapter or adapter_codecs.build({"name": "values", "quantizer": self.adapter_quantizer}),
        )
        return plan if self.merging is None else Plan.parse({**dict(plan), "merging": self.merging}, "plan")

    @model_validator(mode="after")
    def _what_is_named_is_used(self) -> "MethodConfig":
        try:
            plan = self.plan
        except ConfigError as error:
            raise ValueError(str(error)) from None
        parts = {
            "tokens": ("codec", plan.codec, "activations"),
            "quantizer": ("codec", plan.codec, "activations"),
            "gradient_quantizer": ("gradient", plan.gradient, "gradient"),
            "adapter_quantizer": ("adapter", plan.adapter, "adapter"),
        }
        for short, (full, used, what) in parts.items():
            # A record's configuration lists the defaults too, and has to be read again.
            default = type(self).model_fields[short].get_default(call_default_factory=True)
            named = [name for name in (short, full) if getattr(self, name) not in (None, default)]
            if used is None and named:
                raise ValueError(f"algorithm {self.algorithm.name!r} sends no {what}; remove {named[0]}")
            if len(named) == 2:
                raise ValueError(f"give {short} or {full}, not both")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # What runs are called by is a digest of this, and those without merging keep their names.
        values = dump(self)
        if values.get("merging") is None:
            values.pop("merging", None)
        return values


class ExperimentConfig(PluginConfig):
    """All that determines one run's numbers."""

    dataset: AnyDataSource
    partition: AnyPartition = Field(default_factory=lambda: partitions.build("iid"))
    dataset_key: str | None = None
    """How records name the data set; None takes its component's name. The same for `partition_key`."""
    partition_key: str | None = None
    backbone: BackboneConfig
    lora: LoraConfig = LoraConfig()
    cut: int = Field(default=2, ge=1)
    training: TrainingConfig = TrainingConfig()
    augment: AugmentConfig | None = None
    method: MethodConfig
    method_key: str
    task: AnyTask = Field(default_factory=lambda: tasks.build("image_classification"))
    sweep: str | None = None
    """The sweep that this run is a point of; None for a method of the study."""
    seed: int = Field(default=0, ge=0)

    @property
    def dataset_name(self) -> str:
        """The data set as records name it."""
        return self.dataset_key or self.dataset.name

    @property
    def partition_name(self) -> str:
        """The partition as records name it."""
        return self.partition_key or self.partition.name

    @property
    def label(self) -> str:
        """The method as reports name it."""
        return self.method.label or self.method_key

    def dump(self) -> dict[str, Any]:
        """The resolved configuration as plain JSON values; `parse` reads it back."""
        return json.loads(self.model_dump_json())

    @property
    def digest(self) -> str:
        """SHA-256 of the resolved configuration."""
        return config_digest(self.dump())

    def without_names(self) -> "ExperimentConfig":
        """What the run computes, whatever its method is called."""
        method = self.method.model_copy(update={"label": None, "cut": None})
        return self.model_copy(update={"method": method, "method_key": "", "sweep": None, "plugins": ()})


def run_of(record: RunRecord) -> ExperimentConfig:
    """The run that a record was made by.

    Raises:
        ConfigError: a configuration that is no longer valid.
    """
    return ExperimentConfig.parse(record.config, f"record of {record.method}")
