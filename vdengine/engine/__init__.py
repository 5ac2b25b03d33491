"""The training run: trainer, probes, checkpoints, ranks."""
