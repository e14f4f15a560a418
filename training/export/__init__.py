"""Writes the trained model as a Hugging Face folder that plain transformers reads."""
