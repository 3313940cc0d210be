"""Search for the best merge of a base model and its experts."""

__version__ = "0.1.0"
