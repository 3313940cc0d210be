"""Collecting statistics of a base and its experts from a few items of an experiment's data."""
