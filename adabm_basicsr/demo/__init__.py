"""The whole way on a real network, with weights and photographs that are there after the installation."""
