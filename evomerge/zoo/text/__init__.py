"""The text zoo: a small Llama and experts on string and arithmetic tasks, and the code that made
them.
"""
