"""The method. Imports torch and never BasicSR; `adaptive` holds the core idea."""
