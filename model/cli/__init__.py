"""The offline commands of `notellm`. Each reads its options, calls the module that does the work, and prints.

These modules are imported by the command that needs them: torch takes seconds to import, and the extras may not be
installed.
"""
