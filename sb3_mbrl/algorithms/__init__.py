"""Code that all algorithms of this package share."""
