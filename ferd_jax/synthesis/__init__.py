"""The generator phase: latents to images that teach, and what stays."""
