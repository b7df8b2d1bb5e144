"""The same numbers, faster."""
