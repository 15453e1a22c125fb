"""The whole way on a real network.

Its weights and photographs are there after the installation.
"""
