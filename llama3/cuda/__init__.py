"""The transformer of `llama3/model/` on a GPU: the same file names for the same ideas."""
