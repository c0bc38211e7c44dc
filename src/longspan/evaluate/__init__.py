"""How good is an embedder: retrieval measures, benchmark suites and reports."""
