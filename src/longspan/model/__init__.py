"""The encoder: mathematics from packed ids to token states, and checkpoint names both ways."""
