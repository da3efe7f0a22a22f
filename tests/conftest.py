"""Small worlds for the tests: a two-second backbone, a handful of images, a settings object that touches no home."""

import os
from pathlib import Path

import pytest
import torch

from tsflora import plugins
from tsflora.errors import ConfigError
from tsflora.experiment import ExperimentConfig
from tsflora.settings import Settings


def pytest_addoption(parser):
    parser.addoption("--golden", action="store_true", help="write the golden training log anew")
    parser.addoption("--plugin", action="append", default=[], help="file whose components the suite tests as well")


def pytest_configure(config):
    try:
        plugins.load_plugins(config.getoption("--plugin"), config.invocation_params.dir)
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _files_of_one_test():
    before = set(plugins._loaded)
    yield
    for name in set(plugins._loaded) - before:
        plugins._forget(name)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch) -> Settings:
    # What lies on this machine must not decide what a test sees; test_real_images asks for it by itself.
    for name in [name for name in os.environ if name.startswith("TSFLORA_")]:
        monkeypatch.delenv(name)
    return Settings(device="cpu", checkpoint_dir=tmp_path / "checkpoints", workers=1)


def small_config(method: dict | None = None, **changes) -> ExperimentConfig:
    """A few seconds of training on digits with a random backbone: for what must be equal, not for what must be good."""
    values = {
        "dataset": {"name": "digits", "train_size": 160, "test_size": 40},
        "partition": {"name": "iid", "min_samples": 24, "max_samples": 24},
        "backbone": {"weights": "random"},
        "lora": {"rank": 4},
        "cut": 2,
        "training": {
            "rounds": 2,
            "n_devices": 4,
            "participants": 3,
            "batch_size": 10,
            "optimizer": {"lr": 0.05},
        },
        "method": method or {"algorithm": "sflora"},
        "method_key": "under_test",
        "seed": 1,
    }
    return ExperimentConfig.parse({**values, **changes}, "test")
