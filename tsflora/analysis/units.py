"""Units that tables, figures and costs share."""

MIB = 2**20
GIGA = 10**9
FULL_BITS = 32
"""Bits of an uncompressed activation entry."""
