"""A YAML file, or the name of a class -> the Pydantic class that answers are validated against."""
