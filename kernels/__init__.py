"""vdengine's kernels, each beside its torch reference; they need nothing else of vdengine and embed alone."""

from vdengine.kernels.gather import gather_rows, gather_sum
from vdengine.kernels.linear_logprob import linear_logprob, linear_logprob_reference

__all__ = ["gather_rows", "gather_sum", "linear_logprob", "linear_logprob_reference"]
