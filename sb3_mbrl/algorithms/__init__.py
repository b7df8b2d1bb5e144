"""What all our algorithms share."""
