"""What every part stands on: devices, loops, checks, files."""
