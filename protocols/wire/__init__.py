"""What crosses the line between two parties: messages, their bytes, the transport's shape and the ledger."""
