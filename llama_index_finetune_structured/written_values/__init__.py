"""Numbers, dates and money as documents write them -> values, by locale; and from values back to what is written."""
