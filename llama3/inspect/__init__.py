"""Look inside a model: what it attends to, what each layer would answer, how each token was chosen."""
