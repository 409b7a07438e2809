"""Tables: read from files and databases, checked, divided, and put into another row order."""
