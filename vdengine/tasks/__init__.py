"""Tasks of multiple choice, which say whether a model still can what it could: files, prompts, tokens, accuracies."""
