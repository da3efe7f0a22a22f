"""One device, one server and the bytes between them, without the federation around it: for a training loop of your own.

`python docs/one_step.py` trains a small Vision Transformer on handwritten digits for 30 steps. Nothing is downloaded.
"""

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from tsflora.compression import TokenCodec, decode_labels, encode_labels, gradient_codecs
from tsflora.data import data_sources, to_input
from tsflora.models import BackboneConfig, LoraConfig, add_lora, load_backbone, split
from tsflora.seeding import torch_generator

BATCH, STEPS, DEVICE = 16, 30, 0
TOKENS = {"name": "top_k_merge", "n_tokens": 30}  # CLS, the 28 patches with most CLS attention, the others as one
EIGHT_BITS = {"name": "uniform", "bits": 8}

# What both sides agree on before: a backbone with adapters, cut after block 2, and how things travel.
images, _ = data_sources.build("digits").load(None)
backbone = load_backbone(BackboneConfig(weights="bundled"), images.n_classes, seed=0)
add_lora(backbone.model, LoraConfig(rank=8), seed=0)
front, back = split(backbone.model, cut=2)
codec = TokenCodec.parse({"tokens": TOKENS, "quantizer": EIGHT_BITS})
gradient_codec = gradient_codecs.build({"name": "values", "quantizer": EIGHT_BITS})

# Each side has one end of each codec, which may remember, and an optimiser for what it trains.
sender, receiver = codec.sender(), codec.receiver(backbone.n_patches)
gradient_sender, gradient_receiver = gradient_codec.sender(), gradient_codec.receiver()
device_optimizer, server_optimizer = (
    torch.optim.SGD([p for p in part.parameters() if p.requires_grad], lr=0.02, momentum=0.9) for part in (front, back)
)

rng = np.random.default_rng(0)
up_bytes = down_bytes = 0
for step in range(STEPS):
    # Device: embedding and blocks 1 and 2, then choose, merge, quantise and pack. What leaves it are two frames.
    rows = rng.choice(len(images), BATCH, replace=False)
    inputs = to_input(images.images[rows], backbone.image_size, backbone.mean, backbone.std, torch.device("cpu"))
    tokens, frame = sender.send(front(inputs), rows, lambda purpose, step=step: torch_generator(purpose, step))
    labels = encode_labels(torch.from_numpy(images.labels[rows]), images.n_classes)

    # Server: the tokens in the frame are a leaf of its graph; it steps, and their gradient is what goes back.
    received = receiver.receive(frame, DEVICE)
    leaf = received.rows().requires_grad_()
    loss = cross_entropy(back(received.like(leaf)), decode_labels(labels, images.n_classes))
    server_optimizer.zero_grad()
    loss.backward()
    server_optimizer.step()
    answer = gradient_sender.send(leaf.grad, DEVICE, torch_generator("gradient", step))

    # Device: the gradient's way back through merging and the front. The quantiser counts as the identity.
    gradient = gradient_receiver.receive(answer, tuple(tokens.rows().shape))
    device_optimizer.zero_grad()
    tokens.rows().backward(gradient)
    device_optimizer.step()

    up_bytes += len(frame) + len(labels)
    down_bytes += len(answer)
    if step % 5 == 0 or step == STEPS - 1:
        print(f"step {step:2}  loss {loss.item():.3f}  up {len(frame) + len(labels)}  down {len(answer)} bytes")

print(f"{STEPS} steps: {up_bytes} bytes up, {down_bytes} bytes down")
