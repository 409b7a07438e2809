"""What crosses the line between two parties: messages, their bytes, transports and the ledger."""
