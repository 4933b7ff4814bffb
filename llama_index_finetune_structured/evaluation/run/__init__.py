"""Systems and examples -> raw answers."""
