"""The commands: argparse alone; what they do is in the rooms below."""
