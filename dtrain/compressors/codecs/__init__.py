"""From float32 values to bytes and back: blocks of small integers, sparse formats, factors, and their parts."""
