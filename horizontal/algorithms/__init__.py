"""Algorithms of horizontal learning, a file each, found by their registered names.

A file holds one `Choice`: the settings of a client's half (`ClientChoice`) or of a server's rule
(`ServerChoice`), and the rule that they make. A package registers its own as entry points of the group
`vfl.algorithms`; a name and settings are all that crosses a network.
"""
