"""The report to look at: one HTML file with the table, charts, samples and details."""
