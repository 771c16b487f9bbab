"""The fictional world."""
