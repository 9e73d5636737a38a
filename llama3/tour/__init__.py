"""The tour of the model, docs/tour, and its exercises."""
