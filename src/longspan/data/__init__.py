"""Raw text becomes shards, and `plan(step)` says which rows make the global batch of a step."""
