"""A page to search in files and to look at them: ranked passages, and a map of the corpus."""
