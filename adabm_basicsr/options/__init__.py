"""Option files: every option in one table, and reading and checking them."""
