"""Numbers, dates, times and money as documents write them -> values, by locale; and back to what is written."""
