"""Class labels on the wire: each at the width of the number of classes."""

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from tsflora.errors import ConfigError, DataError, FrameError
from tsflora.wire.bits import MAX_BITS, code_dtype
from tsflora.wire.frames import Kind, read_frame, write_frame
from tsflora.wire.sections import Format, Layout, Section


def label_bits(n_classes: int) -> int:
    """Bits per label: ceil(log2(n_classes)), at least 1.

    Raises:
        ConfigError: `n_classes` is outside 1 to 65536.
    """
    if not 1 <= n_classes <= 2**MAX_BITS:
        raise ConfigError(f"labels are sent for 1 to {2**MAX_BITS} classes, given: {n_classes}")
    return max(1, (n_classes - 1).bit_length())


def encode_labels(labels: Int[Tensor, " batch"], n_classes: int) -> bytes:
    """One frame of labels at `label_bits(n_classes)` bits each.

    Raises:
        DataError: a label outside 0 to n_classes - 1.
    """
    bits = label_bits(n_classes)
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= n_classes:
        raise DataError(f"labels must be 0 to {n_classes - 1}, given: {lowest} to {highest}")
    return write_frame(Kind.LABELS, [Section.codes(labels.cpu().numpy().astype(code_dtype(bits)), bits)])


def decode_labels(frame: bytes, n_classes: int) -> Int64[Tensor, " batch"]:
    """The labels of a frame.

    Raises:
        FrameError: a damaged frame, not a frame of labels for `n_classes` classes, or a label outside them.
    """
    sections = read_frame(frame, Kind.LABELS)
    values, layout = sections[0].values, sections[0].layout
    bits = label_bits(n_classes)
    if len(sections) != 1 or layout != Layout((layout.entries,), Format.PACKED, bits):
        raise FrameError(
            f"expected one row of labels at {bits} bits, given: {[section.layout for section in sections]}"
        )
    if int(values.max()) >= n_classes:
        raise FrameError(f"labels must be 0 to {n_classes - 1}, given: {int(values.max())}")
    return torch.from_numpy(values.astype(np.int64))
