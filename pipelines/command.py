"""What the stage scripts share: a user's mistake ends with one line and a non-zero exit, not with a traceback."""

import contextlib
import sys
from collections.abc import Iterator

from tsflora.errors import TsfloraError


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a `TsfloraError` as one line and exit with status 1."""
    try:
        yield
    except TsfloraError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
