"""Steps 1 and 2: ranges, bits and rounding from low-resolution images."""
