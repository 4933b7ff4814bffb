"""A scorecard -> text, table, picture, page."""
