"""Text to token ids: tokenizers and chat templates."""
