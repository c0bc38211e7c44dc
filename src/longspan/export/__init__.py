"""A model in forms that others load, each proven to give the same vectors."""
