"""Compressors around compressors: error feedback, cast, warm-up, and which elements are exchanged at all."""
