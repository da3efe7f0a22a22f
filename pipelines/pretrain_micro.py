"""Pretrains ViT-Micro on rendered letters (never digits) and writes the weights that the package bundles.

The letters come from the TrueType fonts inside matplotlib, so the script needs no network, and from one seed it
writes the same bytes again (same versions, same thread count). Killed, it leaves the old file: start it again.
"""

import hashlib
import json
import math
import platform
import string
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import safetensors.torch
import torch
import typer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from tsflora.files import write_atomically
from tsflora.models.micro import BUNDLED_WEIGHTS, MICRO_NAME  # also registers the model with timm
from tsflora.seeding import seed_for, torch_generator

import timm  # isort: skip  (after tsflora.models, which lets it import torchvision)

# The lower-case letters whose shape is not that of the upper-case one (the classes of EMNIST "balanced" less digits).
LETTERS = string.ascii_uppercase + "abdefghnqrt"
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique", "DejaVuSansMono-Oblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta"),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10"),
)
HELD_OUT_FONTS = ("STIXGeneralItalic", "cmtt10")

IMAGE_PX = 28
CANVAS_PX = 2 * IMAGE_PX  # glyphs are warped at twice the size and then averaged, so that edges do not alias
GLYPH_PX = 48
LEARNING_RATE = 1.5e-3
WEIGHT_DECAY = 0.05

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def render_glyphs(fonts: tuple[str, ...]) -> Tensor:
    """Every letter in every font, uint8, `len(fonts)` × 37 × 56 × 56: light on dark, centred, longer side 48 pixels."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    glyphs = np.zeros((len(fonts), len(LETTERS), CANVAS_PX, CANVAS_PX), dtype=np.uint8)
    for f, font in enumerate(fonts):
        typeface = ImageFont.truetype(folder / f"{font}.ttf", 128)
        for c, letter in enumerate(LETTERS):
            page = Image.new("L", (384, 384))
            ImageDraw.Draw(page).text((128, 128), letter, fill=255, font=typeface)
            glyph = page.crop(page.getbbox())
            shrink = GLYPH_PX / max(glyph.size)
            glyph = glyph.resize((max(1, round(glyph.width * shrink)), max(1, round(glyph.height * shrink))))
            top, left = (CANVAS_PX - glyph.height) // 2, (CANVAS_PX - glyph.width) // 2
            glyphs[f, c, top : top + glyph.height, left : left + glyph.width] = np.asarray(glyph)
    return torch.from_numpy(glyphs)


class LetterStream:
    """An endless stream of distorted letters: model input (B × 3 × 28 × 28, float32 in -1..1) and class (B, int64)."""

    def __init__(self, glyphs: Tensor, generator: torch.Generator) -> None:
        self.glyphs = glyphs
        self.generator = generator

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) * (high - low) + low

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """The next `batch` letters."""
        n_fonts, n_letters = self.glyphs.shape[:2]
        fonts = torch.randint(n_fonts, (batch,), generator=self.generator)
        classes = torch.randint(n_letters, (batch,), generator=self.generator)
        images = self.glyphs[fonts, classes, None].float() / 255
        images = functional.avg_pool2d(self._warp(images), 2)
        images = self._in_part(images, self._blur(images))
        # scikit-learn's digits are 8 × 8 counts of pen pixels, shown to the model enlarged.
        coarse = functional.interpolate(
            functional.interpolate(images, size=8, mode="area"), size=IMAGE_PX, mode="bilinear"
        )
        images = self._in_part(images, coarse)
        peak = images.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
        images = images / peak * self._uniform(0.7, 1.0, batch, 1, 1, 1)
        return (images * 2 - 1).expand(-1, 3, -1, -1), classes

    def _in_part(self, images: Tensor, changed: Tensor) -> Tensor:
        """`changed` for a random half of the batch."""
        return torch.where(self._uniform(0, 1, len(images), 1, 1, 1) < 0.5, changed, images)

    def _warp(self, images: Tensor) -> Tensor:
        """Rotation to 12 degrees, shear to 0.15, each axis 0.87-1.18 times as long, shift to 6 % of the frame."""
        batch = len(images)
        angle = self._uniform(-1, 1, batch) * math.radians(12)
        shear = self._uniform(-0.15, 0.15, batch)
        scale = self._uniform(0.85, 1.15, batch, 2)
        cos, sin = angle.cos(), angle.sin()
        rows = torch.stack(
            [torch.stack([cos, shear * cos - sin], dim=1), torch.stack([sin, shear * sin + cos], dim=1)], dim=1
        )
        # affine_grid maps output to input: a factor above one makes the letter smaller. Its frame is 2 wide.
        theta = torch.cat([rows * scale[:, None, :], self._uniform(-0.12, 0.12, batch, 2, 1)], dim=2)
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, align_corners=False)

    def _blur(self, images: Tensor) -> Tensor:
        """Gaussian blur with a standard deviation of 0.5-1.5 pixels, one for each image."""
        batch = len(images)
        sigma = self._uniform(0.5, 1.5, batch, 1)
        taps = torch.exp(-(torch.arange(-4, 5) ** 2) / (2 * sigma**2))
        taps = (taps / taps.sum(dim=1, keepdim=True))[:, None, :, None]
        stacked = images.transpose(0, 1)  # one channel for each image, so that each is blurred by its own kernel
        stacked = functional.conv2d(stacked, taps, padding=(4, 0), groups=batch)
        stacked = functional.conv2d(stacked, taps.transpose(2, 3), padding=(0, 4), groups=batch)
        return stacked.transpose(0, 1)


def accuracy_of(model: torch.nn.Module, stream: LetterStream, n_samples: int) -> float:
    """Share of `n_samples` letters drawn from `stream` that `model` names."""
    model.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, n_samples, 256):
            images, classes = stream.draw(min(256, n_samples - start))
            right += int((model(images).argmax(dim=1) == classes).sum())
    return right / n_samples


def train(stream: LetterStream, steps: int, batch: int, seed: int) -> torch.nn.Module:
    """ViT-Micro with a letter classifier, trained for `steps` batches (AdamW, one cycle of the learning rate)."""
    with torch.random.fork_rng(devices=[]):  # timm draws initial weights from the global generator
        torch.manual_seed(seed_for("pretrain_micro", "weights", seed))
        model: torch.nn.Module = timm.create_model(MICRO_NAME, num_classes=len(LETTERS))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    smooth_loss = math.log(len(LETTERS))
    with tqdm(total=steps, desc="pretraining ViT-Micro", unit="step", mininterval=1.0) as bar:
        for _ in range(steps):
            images, classes = stream.draw(batch)
            loss = functional.cross_entropy(model(images), classes)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            smooth_loss += 0.02 * (loss.item() - smooth_loss)
            bar.set_postfix(loss=f"{smooth_loss:.3f}", refresh=False)
            bar.update()
    return model


def check_output(output: Path, force: bool) -> None:
    """Refuses, before the long part, what could not or should not be written after it."""
    if output.suffix != ".safetensors":
        raise typer.BadParameter(f"{output} does not end in .safetensors", param_hint="--output")
    if output.exists() and not force:
        raise typer.BadParameter(f"{output} exists; give --force to replace it", param_hint="--output")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"cannot make {output.parent}: {error.strerror}", param_hint="--output") from None


@app.command()
def main(
    output: Annotated[
        Path,
        typer.Option(
            dir_okay=False, show_default="the bundled file", help="The .safetensors file to write; a .json beside it."
        ),
    ] = BUNDLED_WEIGHTS,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 6000,
    batch: Annotated[int, typer.Option(min=1, help="Letters in a step.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights and of every letter drawn.")] = 0,
    held_out_samples: Annotated[int, typer.Option(min=1, help="Fresh letters for each reported accuracy.")] = 4096,
    threads: Annotated[int, typer.Option(min=1, help="torch threads; other counts may change the last bits.")] = 1,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing file, once training is complete.")
    ] = False,
) -> None:
    """Pretrain ViT-Micro on letters rendered from matplotlib's fonts (offline; 15-20 minutes on one core)."""
    check_output(output, force)
    torch.set_num_threads(threads)
    began_s = time.perf_counter()
    glyphs = render_glyphs(FONTS)
    model = train(LetterStream(glyphs, torch_generator("pretrain_micro", "train", seed)), steps, batch, seed)
    fresh = LetterStream(glyphs, torch_generator("pretrain_micro", "held_out", seed))
    unseen = LetterStream(render_glyphs(HELD_OUT_FONTS), torch_generator("pretrain_micro", "held_out_fonts", seed))
    accuracy = accuracy_of(model, fresh, held_out_samples)
    accuracy_unseen_fonts = accuracy_of(model, unseen, held_out_samples)

    state = {name: value.contiguous() for name, value in model.state_dict().items() if not name.startswith("head.")}
    weights = safetensors.torch.save(state)
    card = {
        "model": MICRO_NAME,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "held_out_accuracy": accuracy,
        "held_out_font_accuracy": accuracy_unseen_fonts,
        "held_out_samples": held_out_samples,
        "classes": list(LETTERS),
        "fonts": list(FONTS),
        "held_out_fonts": list(HELD_OUT_FONTS),
        "steps": steps,
        "batch": batch,
        "seed": seed,
        "threads": threads,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "timm", "numpy", "pillow", "matplotlib", "safetensors")},
        },
    }
    write_atomically(output, weights)
    write_atomically(output.with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode())
    typer.echo(
        f"{output}: {len(weights)} bytes, accuracy {accuracy:.4f} on {held_out_samples} fresh letters, "
        f"{accuracy_unseen_fonts:.4f} in fonts never trained on, {time.perf_counter() - began_s:.0f} s"
    )


if __name__ == "__main__":
    app()
