"""Networks from files: recognised, built, filled; and written."""
