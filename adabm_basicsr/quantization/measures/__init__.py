"""What a quantized network costs, covers and loses."""
