"""Files of fitted estimators: save and load, published checkpoints, and export to ONNX."""
