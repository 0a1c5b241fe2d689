"""Host side: checkpoint -> twins -> healed -> folded -> ONNX bundle (verified)."""
