"""The zoo: small real models that ship with the package, and the code that made them.

Nothing is imported here, so `evomerge.zoo.paths` stays light.
"""
