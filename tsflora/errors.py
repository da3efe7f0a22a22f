"""Every mistake that a user, a file or a peer can make has a class here, so that a front end can print one line."""

import re

_ADDRESS = re.compile(r"\s*<[^<>]* at 0x[0-9a-fA-F]+>")
_LONGEST_REASON = 200


class TsfloraError(Exception):
    """A fault outside the program: its message is one line that names what was given and what is allowed."""


class ConfigError(TsfloraError):
    """A configuration value that is unknown, of the wrong type, or outside what the model or the data allow."""


class DataError(TsfloraError):
    """A data set that is missing, truncated, or not in the format it claims."""


class WeightsError(TsfloraError):
    """Backbone weights that are missing, out of reach, or do not fit the model."""


class FrameError(TsfloraError):
    """Bytes from a peer that are not a complete, intact frame of the expected kind."""


class CheckpointError(TsfloraError):
    """A checkpoint that is damaged or belongs to another run."""


class NumericsError(TsfloraError):
    """NaN or infinity: the message names the round, the device and the tensor."""


class StorageError(TsfloraError):
    """A folder that cannot be written, or a disk that is full."""


def reason(error: BaseException) -> str:
    """What another library's exception says, for the brackets of an error line: the first line that is not empty.

    Without memory addresses, so that the same fault reads the same every time, and without the pages that some add.
    """
    text = _ADDRESS.sub("", str(error))
    first = next((line for line in map(str.strip, text.splitlines()) if line), "") or type(error).__name__
    return first if len(first) <= _LONGEST_REASON else f"{first[:_LONGEST_REASON].rstrip()} ..."
