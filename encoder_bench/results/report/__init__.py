"""The report to look at: one HTML file with the table, charts, samples and details."""

from encoder_bench.results.report.figures import write_figures
from encoder_bench.results.report.page import write_report

__all__ = ["write_figures", "write_report"]
