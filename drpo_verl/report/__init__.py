"""``drpo-verl report``: one self-contained HTML file about one or many runs."""

from drpo_verl.report.page import write_report

__all__ = ["write_report"]
