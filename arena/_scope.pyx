# cython: language_level=3, freethreading_compatible=True, embedsignature=False, autotestdict=False
# cython: binding=False, auto_pickle=False
"""Changes that are in force for a while, and what undoes them.

A handler of Python's signals runs between two bytecodes, and what it raises comes there: between a change and the note
of how to undo it, between a lock and the ``with`` that is to end it, at the first bytecode of an ``__exit__``. So there
are no such places here. A change and its note are one call into this module, and so is undoing everything. This holds
as long as the functions it is given are C functions too (``os.close``, ``gc.enable``, a ``functools.partial`` of one).
"""

from cpython.exc cimport PyErr_Fetch, PyErr_Occurred, PyErr_Restore, PyErr_SetObject, PyErr_WriteUnraisable
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF

import os as _os
import threading as _threading
from functools import partial as _partial


cdef extern from "Python.h":
    ctypedef void (*destructor)(PyObject *) noexcept  # a reference to an object that ends is not to be taken
    object PyCapsule_New(void *pointer, const char *name, destructor at_end)
    void *PyCapsule_GetPointer(PyObject *capsule, const char *name)


cdef const char *NAME = "arena scope"


cdef report(error, where):
    """For a second error, which is not to hide the first."""
    PyErr_SetObject(type(error), error)
    PyErr_WriteUnraisable(where)


cdef class Scope:
    """What was changed, as the steps that undo it.

    As a context manager a scope undoes them when an exception passes, and otherwise leaves them to whoever was given
    it.
    """
    cdef list steps
    cdef readonly object thread
    """The ident of the thread that made it."""

    def __cinit__(self):
        self.steps = []
        self.thread = _threading.get_ident()

    @property
    def ended(self):
        """Whether there is nothing to undo."""
        return not self.steps

    def at_end(self, undo):
        """Call ``undo()`` at the end."""
        self.steps.append(undo)

    def do(self, undo, function, *args):
        """Call ``function(*args)`` now and ``undo()`` at the end, unless the function raises."""
        self.steps.append(undo)  # this comes before the step itself, for it may want memory
        try:
            return function(*args)
        except BaseException:
            self.steps.remove(undo)
            raise

    def get(self, undo, function, *args):
        """Return what ``function(*args)`` returns, and call ``undo(what it returned)`` at the end."""
        got = function(*args)
        try:
            self.steps.append(_partial(undo, got))
        except BaseException:
            undo(got)
            raise
        return got

    def last(self, calls):
        """Call each, in one step. When the first has gone well, nothing is undone any more."""
        for call in calls:
            call()
            self.steps.clear()

    cdef object finish(self):
        """Undoes everything, the last first, whatever a step raises. The first error, or None."""
        first = None
        while True:
            try:
                undo = self.steps.pop()
            except IndexError:
                return first
            try:
                try:
                    undo()
                except MemoryError:
                    undo()  # what the first try had in hand is free by now; a step goes on where it stopped
            except BaseException as error:
                if first is None:
                    first = error
                else:
                    report(error, self)

    def end(self):
        """Undo everything, the last first, even if a step raises; the first error is raised then."""
        error = self.finish()
        if error is not None:
            raise error

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        if kind is not None:
            error = self.finish()
            if error is not None:
                report(error, self)


cdef class Temporary(Scope):
    """A scope that ends in any case: with its block, or when nobody has it any more."""

    def __exit__(self, kind=None, value=None, traceback=None):
        error = self.finish()
        if error is None:
            return
        if kind is None:
            raise error
        report(error, self)

    def __del__(self):
        self.end()


cdef void strayed(PyObject *capsule) noexcept:
    cdef PyObject *kind = NULL
    cdef PyObject *value = NULL
    cdef PyObject *traceback = NULL
    cdef Scope scope
    # Python drops the values of a frame with the exception set, and among them this one, which the caller never got.
    cdef bint unwinding = PyErr_Occurred() != NULL
    PyErr_Fetch(&kind, &value, &traceback)
    scope = <Scope>PyCapsule_GetPointer(capsule, NAME)
    Py_DECREF(scope)
    if unwinding:
        error = scope.finish()
        if error is not None:
            report(error, scope)
    PyErr_Restore(kind, value, traceback)


cdef class Owner:
    """A context manager that ends its scope.

    What is changed is changed before, by whoever gives it a scope, or when it is entered, by ``_begin``. When an
    exception passes before anybody has the owner (on the way from the function that made it to the ``with``) the scope
    ends too; otherwise whoever drops it leaves all in force.
    """
    cdef readonly Scope scope
    """What is undone at the end."""
    cdef object stray

    def __init__(self, Scope scope=None):
        self.scope = Scope() if scope is None else scope
        Py_INCREF(self.scope)
        try:
            # The capsule's destructor sees the exception that is set, which a __dealloc__ or __del__ would not.
            self.stray = PyCapsule_New(<void *>self.scope, NAME, strayed)
        except BaseException:
            Py_DECREF(self.scope)
            raise

    def _begin(self):
        """Begin, in subclasses: what this returns, __enter__() returns; when it raises, the scope ends."""
        return self

    def __enter__(self):
        try:
            return self._begin()
        except BaseException:
            error = self.scope.finish()
            if error is not None:
                report(error, self)
            raise

    def __exit__(self, kind=None, value=None, traceback=None):
        error = self.scope.finish()
        if error is None:
            return
        if kind is None:
            raise error
        report(error, self)


cdef class OwnerInThread(Owner):
    """An owner whose changes are its thread's: the ``with`` ends in the thread that began it."""

    def __exit__(self, kind=None, value=None, traceback=None):
        if self.scope.thread != _threading.get_ident():
            raise RuntimeError("this block is a thread's own, and ends in another than it began in")
        Owner.__exit__(self, kind, value, traceback)


cdef list ledgers = []


cdef class Ledger:
    """What several scopes want of something that the process has once.

    ``apply(wishes, fewer)`` makes it so: with the wishes in force, the last one last, and whether one has gone. A wish,
    the ledger and what is applied change in one step. In a fork's child there are the wishes of the thread that forked,
    or none (``inherited=False``).
    """
    cdef list scopes, wishes
    cdef object apply, lock
    cdef bint inherited
    cdef readonly bint lost
    """Whether this is the child of a fork whose parent had wishes that it did not inherit."""

    def __init__(self, apply, *, bint inherited=True):
        self.apply, self.inherited = apply, inherited
        self.scopes, self.wishes = [], []
        self.lock = _threading.RLock()
        ledgers.append(self)

    @property
    def last(self):
        """The scope whose wish came last, or None."""
        return self.scopes[len(self.scopes) - 1] if self.scopes else None

    def __contains__(self, scope):
        return scope in self.scopes

    def __len__(self):
        return len(self.scopes)

    cdef object hold(self):
        """Waits for the lock, whatever signal handlers raise meanwhile. That, or None."""
        first = None
        while True:
            try:
                self.lock.acquire()
                return first
            except BaseException as error:
                if first is None:
                    first = error

    cdef bint forget(self, Scope scope) except -1:
        for i in range(len(self.scopes)):
            if self.scopes[i] is scope:
                del self.scopes[i], self.wishes[i]
                return True
        return False

    def enter(self, Scope scope, wish):
        """Have a wish in force until the scope ends.

        What ``apply`` raises is raised, and the wish is not in force then.
        """
        undo = _partial(self.leave, scope)
        self.lock.acquire()
        try:
            self.wishes.append(wish)
            self.scopes.append(scope)
            try:
                scope.steps.append(undo)
                self.apply(list(self.wishes), False)
            except BaseException:
                if undo in scope.steps:
                    scope.steps.remove(undo)
                self.forget(scope)
                try:
                    self.apply(list(self.wishes), True)
                except BaseException as error:
                    report(error, scope)
                raise
        finally:
            self.lock.release()

    def leave(self, Scope scope):
        """Undo enter(). What ``apply`` raises is raised, and the wish is gone all the same."""
        first = self.hold()
        try:
            if self.forget(scope):
                self.apply(list(self.wishes), True)
        except BaseException as error:
            if first is None:
                first = error
            else:
                report(error, scope)
        finally:
            self.lock.release()
        if first is not None:
            raise first

    cdef after_fork(self):
        self.lock = _threading.RLock()
        me = _threading.get_ident()
        before = len(self.scopes)
        for i in reversed(range(before)):
            if not self.inherited or (<Scope>self.scopes[i]).thread != me:
                del self.scopes[i], self.wishes[i]
        if not self.inherited:
            self.lost = before > 0  # and the kernel has ended them by itself
        elif len(self.scopes) < before:
            try:
                self.apply(list(self.wishes), True)
            except BaseException as error:
                report(error, self)


def _after_fork():
    for each in ledgers:
        (<Ledger>each).after_fork()


_os.register_at_fork(after_in_child=_after_fork)


def unwind(list stack, Scope scope):
    """End what was put on the stack after this scope, the last first, and take this scope off."""
    first = None
    while scope in stack:
        top = stack.pop()
        error = None if top is scope else (<Scope>top).finish()
        if first is None:
            first = error
        elif error is not None:
            report(error, scope)
    if first is not None:
        raise first


cdef class SwapBack:
    """The step that undoes swap_in_context(). When it is called again after an error it goes on where it stopped."""
    cdef Scope scope
    cdef object variable, swap, before, token, rest
    cdef bint swapped, is_last, left

    def __cinit__(self, Scope scope, variable, swap):
        self.scope, self.variable, self.swap = scope, variable, swap

    cdef bint look(self) except -1:
        """Find what the variable is to be afterwards. False: somebody has taken this entry out."""
        cdef tuple entries = self.variable.get(())
        cdef Py_ssize_t i, n = len(entries)
        for i in range(n):
            if entries[i][0] is self.scope:
                break
        else:
            return False
        self.before = entries[i][1]
        self.is_last = i == n - 1
        if self.is_last:
            self.rest = entries[:i]
        else:  # the scope that came next finds at its end what was there before this one
            self.rest = (*entries[:i], (entries[i + 1][0], self.before), *entries[i + 2:])
        return True

    def __call__(self):
        if not self.swapped:
            return
        if self.token is None:  # the handler was swapped, and that was not noted any more
            self.swap(self.before)
            self.swapped = False
            return
        if not self.left:
            if self.rest is None and not self.look():
                return
            try:
                self.variable.reset(self.token)
            except ValueError:
                return  # the token is of another context
            except RuntimeError:
                pass  # the token was used already: there was no memory for the rest of that call
            self.left = True
        self.variable.set(self.rest)
        if self.is_last:
            self.swap(self.before)
        self.swapped = False


def swap_in_context(Scope scope, variable, swap, value):
    """Have ``swap(value)``, which returns what it replaces, in force until the scope ends.

    `swap` is of the current context, as the context variable is, which is a tuple of those who have swapped: each with
    what was there before. They may end in any order; and one that ends in another context than it began in leaves that
    one alone.
    """
    cdef SwapBack undo = SwapBack(scope, variable, swap)
    entries = variable.get(())
    scope.steps.append(undo)  # this comes before the step itself, for it may want memory
    try:
        before = swap(value)
    except BaseException:
        scope.steps.pop()
        raise
    undo.before, undo.swapped = before, True
    # What raises from here on is undone with the scope.
    undo.token = variable.set((*entries, (scope, before)))


def call_swapped(variable, swap, value, function, args, kwargs):
    """Call ``function(*args, **kwargs)`` between swap_in_context() and the end of its scope."""
    cdef Scope scope = Scope()
    swap_in_context(scope, variable, swap, value)
    try:
        return function(*args, **kwargs)
    finally:
        error = scope.finish()
        if error is not None:
            report(error, scope)


def close(int fd):
    """Close a descriptor.

    What close(2) says of writes that failed is what flush() of a mapping says, and the descriptor is gone in any case.
    """
    try:
        _os.close(fd)
    except OSError:
        pass


def create(Scope files, Scope new, path, int flags):
    """Make a new file and return its descriptor, which is closed when `files` ends.

    When `new` ends the file is removed, unless that name is another's by then. FileExistsError: there is one.
    """
    fd = files.get(close, _os.open, path, flags | _os.O_CREAT | _os.O_EXCL, 0o666)
    try:
        new.at_end(_partial(remove, path, _os.fstat(fd)))
    except BaseException:
        _os.unlink(path)  # the file was made this very moment
        raise
    return fd


def remove(path, status):
    """Remove a file, if it still is the one of this stat_result."""
    try:
        now = _os.lstat(path)
    except FileNotFoundError:
        return
    if (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino):
        _os.unlink(path)


def write_zeros(int fd, at, stop):
    """Write zeros from one place in a file to another."""
    zeros = memoryview(bytes(min(1 << 20, stop - at)))
    while at < stop:
        at += _os.pwrite(fd, zeros[:stop - at], at)
