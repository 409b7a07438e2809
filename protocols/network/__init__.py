"""Parties in different processes: gRPC streams over mutual TLS. The author of a method need not read it."""

import os

# gRPC's core reads this once, and else writes a line to standard error for each connection that is not there.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# It also takes part in each fork of the process, as of a DataLoader's workers, and aborts some children
# while a connection is open. No child of ours speaks gRPC.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
