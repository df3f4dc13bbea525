"""Fitted estimators in files: ours, those of the authors, and ONNX."""
