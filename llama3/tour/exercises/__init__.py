"""The exercises of the tour: stubs that a reader fills in, and what grades them (`check.py`)."""
