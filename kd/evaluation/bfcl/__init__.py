"""BFCL itself: the data and the checker of its published package judge our model's answers."""
