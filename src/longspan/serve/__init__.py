"""A model as an HTTP service that speaks OpenAI's and text-embeddings-inference's language."""
