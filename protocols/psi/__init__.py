"""Entity alignment: which ids two parties share, and in which order both list them."""
