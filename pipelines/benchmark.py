"""What compression costs in time: its share of a TSFLora training step on ViT-Tiny, by quantizer."""

import json
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from command import one_line_errors
from tqdm import trange

from tsflora.compression import Kind, TokenCodec, write_frame
from tsflora.experiment import assemble
from tsflora.federation import InProcessFleet, Message
from tsflora.federation.server import SplitServer
from tsflora.files import write_atomically
from tsflora.planned import ExperimentConfig
from tsflora.settings import Settings

WARM_STEPS = 2
"""Not timed: the first ones allocate."""


def quantizers(bits: int) -> dict[str, dict[str, Any]]:
    """What is timed: codes of one width, the same after a rotation, and codes that an entropy coder writes."""
    uniform = {"name": "uniform", "bits": bits}
    return {
        "uniform": uniform,
        "rotated": {"name": "rotated", "bits": bits},
        "entropy_coded": {"name": "entropy_coded", "quantizer": uniform},
    }


def configuration(n_steps: int, batch_size: int, n_tokens: int, quantizer: dict[str, Any]) -> ExperimentConfig:
    """TSFLora on ViT-Tiny/16 at 112 px, with random weights and generated images: a step's time depends on neither.

    An entropy coder's does, mildly: its table is as long as the codes that occur are many.
    """
    method = {
        "algorithm": "sflora",
        "tokens": {"name": "top_k_merge", "n_tokens": n_tokens},
        "quantizer": quantizer,
        "gradient_quantizer": quantizer,
    }
    values = {
        "dataset": {"name": "noise", "n_train": n_steps * batch_size, "n_test": 1},
        "backbone": {"name": "vit_tiny_patch16_224", "image_size": 112, "weights": "random"},
        "training": {"n_devices": 1, "participants": 1, "batch_size": batch_size, "optimizer": {"lr": 1e-3}},
        "method": method,
        "method_key": "tsflora",
    }
    return ExperimentConfig.parse(values, "benchmark")


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Bench:
    """A device and a server, their steps, and the parts of a step one by one."""

    def __init__(self, config: ExperimentConfig) -> None:
        devices, side = assemble(config, Settings(device="cpu"))
        self.terms, self.front = side.terms, side.front
        self.device = InProcessFleet(devices).device(0)
        self.n_samples = len(devices.shards[0])
        self.device.begin(Message("begin", facts={"round": 1}))
        self.server = SplitServer(side)
        self.server.begin_round(1)
        plan = self.terms.plan
        assert isinstance(plan.codec, TokenCodec)
        assert plan.gradient is not None
        self.plan, self.codec, self.gradient = plan, plan.codec, plan.gradient
        inputs = self.device.inputs(self.device.shard[: config.training.batch_size], 0)
        with torch.no_grad():
            self.seen = self.front(inputs).float()

    def step(self) -> None:
        """One training step, at both ends."""
        answer = self.device.forward()
        _, gradient = self.server.step(0, self.n_samples, self.plan, answer.frames)
        assert gradient is not None
        self.device.backward(Message("backward", {"gradient": gradient}))

    def select(self) -> None:
        """Choose and merge tokens, as in a step."""
        self.tokens = self.codec.tokens.reduce(self.seen, self.terms.generator("tokens")).tokens

    def quantise_pack_frame(self) -> None:
        """All of it in a step: tokens up and their gradient down, at both ends."""
        rows, generator = self.tokens.rows(), self.terms.generator("quantizer")
        frame = write_frame(Kind.ACTIVATIONS, self.codec.quantizer.quantize(rows, generator))
        received = self.codec.receiver(self.terms.n_patches).receive(frame, 0).rows()
        gradient = self.gradient.sender().send(received, 0, generator)
        self.gradient.receiver().receive(gradient, tuple(received.shape))


def main(
    output: Annotated[Path, typer.Argument(help="The JSON file to write.")],
    steps: Annotated[int, typer.Option(help="Timed steps, after two that are not.", min=1)] = 10,
    batch_size: Annotated[int, typer.Option(min=1)] = 50,
    n_tokens: Annotated[int, typer.Option(help="Transmitted tokens of 50.", min=2, max=50)] = 40,
    bits: Annotated[int, typer.Option(min=1, max=8)] = 8,
) -> None:
    """Time whole training steps and, right after each, all quantising, packing and framing in both directions.

    The share is a ratio of neighbours in time, so a busy machine changes it little; its median over steps is reported.
    """
    with one_line_errors():
        torch.set_num_threads(1)
        result: dict[str, Any] = {"batch_size": batch_size, "n_tokens": n_tokens, "bits": bits, "steps": steps}
        for name, quantizer in quantizers(bits).items():
            bench = Bench(configuration(steps + WARM_STEPS, batch_size, n_tokens, quantizer))
            parts = (bench.step, bench.select, bench.quantise_pack_frame)
            bar = trange(steps + WARM_STEPS, unit="step", desc=name)
            timed = [[seconds(part) for part in parts] for _ in bar][WARM_STEPS:]
            result[name] = {
                "quantise_pack_frame_percent_of_step": round(
                    100 * statistics.median(codec / step for step, _, codec in timed), 2
                ),
                "select_merge_percent_of_step": round(
                    100 * statistics.median(pick / step for step, pick, _ in timed), 2
                ),
                "step_ms": round(1000 * statistics.median(step for step, *_ in timed), 1),
            }
        write_atomically(output, json.dumps(result, indent=1).encode() + b"\n")
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
