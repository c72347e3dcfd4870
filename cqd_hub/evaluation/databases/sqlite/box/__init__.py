"""What runs in the box: standard library only, shipped there as text."""
