"""What runs left, as tables and pictures to be read, compared and printed."""
