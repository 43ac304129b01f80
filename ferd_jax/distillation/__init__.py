"""The student phase: images, attacks on them, the student's step."""
