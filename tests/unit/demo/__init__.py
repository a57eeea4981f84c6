"""What comes before the demonstration with Docker."""
