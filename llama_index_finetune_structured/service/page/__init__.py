"""The page of the service in a browser: a client of its own API; it has no data before the browser asks for it."""
