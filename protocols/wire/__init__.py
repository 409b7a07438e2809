"""What crosses the line between two parties: messages, their bytes, transports and the ledger."""

import os

# gRPC's core reads this once, and else writes a line to standard error for each connection that is not there.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
