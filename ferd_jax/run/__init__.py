"""A run: its settings, steps, state, work directory and what it leaves."""
