"""Top-1 accuracy on the global test set, with compression on, as deployed, and off."""

import torch

from tsflora.errors import NumericsError
from tsflora.federation.setup import Setup
from tsflora.federation.training import precision
from tsflora.models import DevicePart, ServerPart


@torch.no_grad()
def evaluate(setup: Setup, device_part: DevicePart, server_part: ServerPart) -> tuple[float, float]:
    """Fractions of test images classified correctly: (compression on, compression off).

    In batches of the training size: a quantizer's range spans a batch, so another size would be another codec.

    Raises:
        NumericsError: the model puts out NaN or infinity.
    """
    size, codec = setup.training.batch_size, setup.token_codec
    correct_on = correct_off = 0
    for start in range(0, len(setup.test), size):
        images, labels = setup.test_inputs(slice(start, start + size))
        with precision(setup.where, setup.training):
            activations, cls_attention = device_part(images)
        activations = activations.float()
        reduced = codec.reduce(activations, cls_attention, setup.generator("evaluate", "tokens", start))
        received = codec.forward(reduced.tokens, setup.generator("evaluate", "quantizer", start))
        with precision(setup.where, setup.training):
            logits_off = server_part(activations)
            # A lossless codec needs no second pass.
            logits_on = logits_off if torch.equal(received, activations) else server_part(received)
        if not bool(torch.isfinite(logits_on).all() and torch.isfinite(logits_off).all()):
            raise NumericsError(
                "NaN or infinity in the judged model's test logits; a lower learning rate usually helps"
            )
        correct_off += int((logits_off.argmax(-1) == labels).sum())
        correct_on += int((logits_on.argmax(-1) == labels).sum())
    return correct_on / len(setup.test), correct_off / len(setup.test)
