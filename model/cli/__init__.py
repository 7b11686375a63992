"""The offline commands of `notellm`. Each reads its options, calls the module that does the work, and prints.

Each command imports these modules when it runs: torch takes seconds to import, and the extras may not be installed.
"""
