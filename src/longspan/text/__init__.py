"""Text becomes token ids: the task prefixes, the tokenizer, and the packed batch that has no padding."""
