"""What a run leaves to look at: figures, plots and pictures, in one file that opens anywhere."""

# First, as its import registers the model, which uses this package in turn: either would meet
# itself half-way.
import basicsr  # noqa: F401
