"""How a value between two codes is rounded, and what follows from it for the compressor around it."""

from __future__ import annotations

from typing import Literal, get_args

from dtrain.arguments import check_name
from dtrain.compressors.policies.error_feedback import ErrorFeedback
from dtrain.exchange import Compressor

Rounding = Literal["nearest", "stochastic"]
"""`nearest` leaves the smallest error, but the same one each time. `stochastic` rounds up with the probability of the
fraction: a larger error, of mean zero (`Workspace.dither_`)."""


def with_feedback_where_biased(compressor: Compressor, rounding: Rounding) -> Compressor:
    """In error feedback for `nearest`, as it is for `stochastic`. Raises ValueError for anything else.

    A biased method needs error feedback. Unbiased ones are published without: coarse ones have an error larger than
    what they quantise, and a residual would grow without end.
    """
    check_name("rounding=", rounding, get_args(Rounding))
    return ErrorFeedback(compressor) if rounding == "nearest" else compressor
