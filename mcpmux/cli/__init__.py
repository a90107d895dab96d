"""The command line: `mcpmux serve`, and what people run beside it.

Owns words for people: options, exit codes (0 good, 1 a negative answer, 2 wrong use), tables and one-line errors.
Every command module has `add(subparsers)`, and each command of it is one coroutine function, set as `run` (it gets a
valid Snapshot) or as `run_anyway` (it gets the ConfigInvalid too, because it is asked just then).
"""
