"""Tests of service/, with real Redis servers, a real FAISS index, and an engine of words instead of a model."""
