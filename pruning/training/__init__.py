"""Train networks: the dense default, and the fine-tuning of compressed ones."""
