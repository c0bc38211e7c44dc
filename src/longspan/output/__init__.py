"""Texts of files to vectors in a file: streamed, so that neither has to fit into memory, and gone on with."""
