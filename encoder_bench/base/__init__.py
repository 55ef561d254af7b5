"""What every package stands on: recipes, records, errors, files. Imports no other package."""
