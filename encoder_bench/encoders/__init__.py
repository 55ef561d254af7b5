"""Visual encoders: names, weights, preprocessing, and the patch-token contract."""
