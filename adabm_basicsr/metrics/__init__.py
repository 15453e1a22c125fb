"""Metrics beside BasicSR's own: option files name them under ``val: metrics:``."""
