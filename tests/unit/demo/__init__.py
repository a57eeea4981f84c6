"""What stands before the demonstration with Docker."""
