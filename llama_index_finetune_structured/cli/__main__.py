"""Run the command line as ``python -m llama_index_finetune_structured.cli``."""

from .main import main

main()
