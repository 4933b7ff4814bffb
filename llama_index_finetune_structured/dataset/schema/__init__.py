"""A YAML file or a name -> the Pydantic class of an answer."""
