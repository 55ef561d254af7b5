"""A look inside an encoder: pictures of its patch features, and the numbers the field quotes."""
