"""What a notebook shows and writes, and everything that a study wrote as one page."""

from tsflora.analysis.page.output import Output

__all__ = [
    "Output",
]
