"""Networks: the Vision Transformer encoder, the predictor, and their position embeddings."""
