"""Tiny random models of each family, made with the transformers library; a test that imports one needs that library."""
