"""Score table -> text, terminal table, pictures, HTML page."""
