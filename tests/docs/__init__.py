"""The documentation: its generated pages, its links, its form."""
