"""The same model on many machines, with Ray (the extra `ray`): cluster.py connects, placement.py shares it out."""
