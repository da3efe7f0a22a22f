"""What compression costs in time: its share of a TSFLora training step on ViT-Tiny."""

import json
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import torch
import typer
from command import one_line_errors
from tqdm import trange

from tsflora.compression import Kind, TensorCodec, TokenCodec, quantizers, token_reducers
from tsflora.data import ImageSet
from tsflora.federation import OptimizerConfig, Setup, TrainingConfig, algorithms
from tsflora.files import write_atomically
from tsflora.models import BackboneConfig, LoraConfig, add_lora, load_backbone, split

ResultT = TypeVar("ResultT")


class Stopwatch:
    """Wraps methods and adds up the time that is spent in them."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., ResultT]) -> Callable[..., ResultT]:
        """`function`, timed."""

        def timed(*arguments: object) -> ResultT:
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def random_setup(batch_size: int, n_tokens: int, bits: int) -> Setup:
    """ViT-Tiny/16 at 112 px with random weights and one device's random images: time does not depend on either."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, 32, 32, 3), dtype=np.uint8)
    data = ImageSet(images, rng.integers(0, 10, batch_size), tuple("0123456789"))
    config = BackboneConfig(name="vit_tiny_patch16_224", image_size=112, weights="random")
    backbone = load_backbone(config, n_classes=10, seed=0)
    add_lora(backbone.model, LoraConfig(), seed=0)
    device_part, server_part = split(backbone.model, cut=2)
    return Setup(
        dataset="random",
        train=data,
        test=data,
        shards=(np.arange(batch_size),),
        device_part=device_part,
        server_part=server_part,
        image_size=backbone.image_size,
        mean=backbone.mean,
        std=backbone.std,
        augment=None,
        training=TrainingConfig(n_devices=1, participants=1, batch_size=batch_size, optimizer=OptimizerConfig(lr=1e-3)),
        seed=0,
        where=torch.device("cpu"),
        token_codec=TokenCodec(
            token_reducers.build({"name": "top_k_merge", "n_tokens": n_tokens}),
            quantizers.build({"name": "uniform", "bits": bits}),
        ),
        gradient_codec=TensorCodec(quantizers.build("float32"), Kind.GRADIENTS),
        adapter_codec=TensorCodec(quantizers.build("float32"), Kind.ADAPTERS),
    )


def main(
    output: Annotated[Path, typer.Argument(help="The JSON file to write.")],
    steps: Annotated[int, typer.Option(help="Timed steps, after two that are not.", min=1)] = 10,
    batch_size: Annotated[int, typer.Option(min=1)] = 50,
    n_tokens: Annotated[int, typer.Option(help="Transmitted tokens of 50.", min=2, max=50)] = 40,
    bits: Annotated[int, typer.Option(min=1, max=16)] = 8,
) -> None:
    """Time whole training steps, and inside the same steps all quantising, packing and framing in both directions.

    The share is a ratio inside one step, so a busy machine changes it little; its median over steps is reported.
    """
    with one_line_errors():
        torch.set_num_threads(1)
        setup = random_setup(batch_size, n_tokens, bits)
        codec, selection = Stopwatch(), Stopwatch()
        for part in (setup.token_codec, setup.gradient_codec):
            part.encode = codec.wrap(part.encode)  # type: ignore[method-assign]
            part.decode = codec.wrap(part.decode)  # type: ignore[method-assign]
        setup.token_codec.reduce = selection.wrap(setup.token_codec.reduce)  # type: ignore[method-assign]
        run = algorithms.build("sflora").start(setup)
        codec_shares, selection_shares, step_ms = [], [], []
        for step in trange(steps + 2, unit="step"):
            (device,) = run.devices([0], step + 1)
            codec.seconds = selection.seconds = 0.0
            start = time.perf_counter()
            run.step(device)
            seconds = time.perf_counter() - start
            if step >= 2:
                codec_shares.append(codec.seconds / seconds)
                selection_shares.append(selection.seconds / seconds)
                step_ms.append(1000 * seconds)
        result = {
            "quantise_pack_frame_percent_of_step": round(100 * statistics.median(codec_shares), 2),
            "select_merge_percent_of_step": round(100 * statistics.median(selection_shares), 2),
            "step_ms": round(statistics.median(step_ms), 1),
            "batch_size": batch_size,
            "n_tokens": n_tokens,
            "bits": bits,
            "steps": steps,
        }
        write_atomically(output, json.dumps(result, indent=1).encode() + b"\n")
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
