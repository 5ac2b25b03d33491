"""vdengine's kernels, each with a reference in plain torch. They import nothing else of vdengine but its native module,
and can be used without the engine."""

from vdengine.kernels.cross_entropy import LinearCrossEntropy, linear_cross_entropy
from vdengine.kernels.decode_attention import decode_attention
from vdengine.kernels.gather import embedding_rows, gather_rows, gather_sum, segment_sum
from vdengine.kernels.linear_logprob import LinearLogprob, linear_logprob, linear_logprob_reference
from vdengine.kernels.lora_linear import lora_linear
from vdengine.kernels.preference import Preference, preference_loss, preference_loss_from_padded
from vdengine.kernels.rms_norm import RMSNorm, rms_norm
from vdengine.kernels.rope import qk_rope
from vdengine.kernels.sample import Sampled, sample
from vdengine.kernels.swiglu import swiglu
from vdengine.kernels.thin_linear import thin_linear

__all__ = [
    "LinearCrossEntropy",
    "LinearLogprob",
    "Preference",
    "RMSNorm",
    "Sampled",
    "decode_attention",
    "embedding_rows",
    "gather_rows",
    "gather_sum",
    "linear_cross_entropy",
    "linear_logprob",
    "linear_logprob_reference",
    "lora_linear",
    "preference_loss",
    "preference_loss_from_padded",
    "qk_rope",
    "rms_norm",
    "sample",
    "segment_sum",
    "swiglu",
    "thin_linear",
]
