"""One batch, drawn: images, maps over patches, codes, and the bytes that carry them."""
