"""The model, its weights, its tokenizer and its chat template."""
