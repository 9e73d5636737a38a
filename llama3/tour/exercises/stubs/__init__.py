"""What `llama3 tour start` copies: signatures, shapes and equations, without the code."""
