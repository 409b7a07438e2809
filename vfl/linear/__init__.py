"""Generalised linear models over columns of several parties, with residuals that leave only encrypted.

`losses`, `block` and `search` are numerics; `masks` and `sealed` are what is hidden from whom; `exact` and
`hidden` are the roles; `program`, `estimator` and `saving` are what is around them.
"""
