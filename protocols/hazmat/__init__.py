"""Primitives: not from an algorithm, only from a recipe.

Nothing here is safe taken alone. What a party may compute, send and learn is the business of a protocol, such
as those in `protocols.psi`; these are the parts that they are made of, each the batch form of a call that a
library offers for one value, and each tested against that call.
"""
