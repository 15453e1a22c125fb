"""Option files: every option in one table, and reading and checking them."""

# First, as its import registers the modules of other folders, which read the table of options: one
# of this folder imported before would meet itself half-way.
import basicsr  # noqa: F401
