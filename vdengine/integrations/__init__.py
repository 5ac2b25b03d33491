"""The engine in other trainers: drift of any causal language model, and the fused head."""
