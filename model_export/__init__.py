"""Carries a trained run into a bundle: ONNX graphs, label index, label records, proof."""
