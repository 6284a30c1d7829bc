"""A coding agent whose outcome is that its pull request was merged."""
