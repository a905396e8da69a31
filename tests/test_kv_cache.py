"""Keys and values in fewer bits: the format, the pass, and whole models that keep them so."""
