"""Files of tensors and JSON, each written whole or not at all."""
