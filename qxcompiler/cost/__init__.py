"""What a product or a whole model costs on a target: time, bytes, energy, and what bounds them."""
