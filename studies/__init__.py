"""Studies that the package's commands make: their material and recipes."""
