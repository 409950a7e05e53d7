"""How small models are trained: what probe and validate share."""
