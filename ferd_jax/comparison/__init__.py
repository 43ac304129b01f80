"""Methods beside each other: runs of all, and what their results can say."""
