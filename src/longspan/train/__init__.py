"""The loop from a recipe to a finished run: optimiser, schedule, checkpoints, processes and cost."""
