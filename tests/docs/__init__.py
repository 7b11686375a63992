"""Tests of the documentation: generated pages, links, form, and code blocks that run."""
