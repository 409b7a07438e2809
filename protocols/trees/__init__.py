"""Decision trees over columns that several parties hold: pure functions and arrays; nothing here sends.

`bins` divides a party's own columns, `sums` adds up statistics by node and bin, `splits` finds the best split
of each node, `forest` holds what the label party and what an owner of columns keeps.
"""
