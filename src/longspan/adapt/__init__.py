"""A finished model made better on one's own documents, and the proof of it."""
