"""Side-by-side measurements against peers. Records are kept in `results/`, append-only."""
