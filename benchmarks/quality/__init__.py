"""How good it is: records, tables and plots."""
