"""Ask and tell: algorithms that propose points of the unit box and learn from their scores."""
