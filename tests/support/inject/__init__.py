"""Faults injected into each system call and each allocation of the package, one after the other.

A *scenario* is a short program that uses the package. It is run once to see which calls it makes, and then once for
each of these calls and each error that it can fail with: that is a *case*. Whatever fails, afterwards

- nothing has crashed or hangs, and what was raised is an exception that the documentation names,
- what the package says is committed is what the kernel says is present,
- blocks and files hold the bytes that were put there,
- the next operations work, and
- no mapping, descriptor, lock, block or memory is left when all is closed.

=================  =====================================================================================
inject.h, .c       a library to preload, in which the n-th call of the package fails
calls.c            the calls that can fail
contents.c         what a file of /proc or /sys holds instead
python_calls.py    the calls that Python code of the package makes
library.py         builds it, and tells it what to fail
errors_of.py       which errors a call can fail with; the cases of a scenario
steps.py           what scenarios are made of: operations that may fail, and bytes that must not
scenarios/         the scenarios
judge.py           what has to hold afterwards
case.py            a case, in a forked child with a time limit
worker.py          all cases of some scenarios
session.py         the machine that they need: an ext4 disk and a tmpfs; workers with the library
report.py          the counts, and what was violated
__main__.py        the command
=================  =====================================================================================
"""
