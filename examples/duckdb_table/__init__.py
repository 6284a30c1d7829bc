"""A DuckDB table that follows a workspace's graded rows."""
