"""The whole road on real text, on a CPU, in minutes."""
