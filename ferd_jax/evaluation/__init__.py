"""How robust and how fair a network is."""
