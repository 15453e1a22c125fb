"""The training model, at the edge to BasicSR."""

# First, as its import registers the modules of this folder: one of them imported before would meet
# itself half-way.
import basicsr  # noqa: F401
