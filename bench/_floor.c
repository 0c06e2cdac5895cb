/* The least that a Python allocator can cost: a method of an extension type that does nothing, an object without anything in
 * it, and a method that makes such an object. Plus touch(): a byte per page of any buffer, by the shortest way that each kind of object has. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

typedef struct {
    PyObject_HEAD
} Bare;

static void bare_dealloc(PyObject *self) { PyObject_Free(self); }

static PyTypeObject BareType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "_floor.Bare",
    .tp_basicsize = sizeof(Bare),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = bare_dealloc,
    .tp_new = PyType_GenericNew,
};

/* Takes what alloc() would take. */
static PyObject *floor_noop(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names) {
    (void)self, (void)args, (void)count, (void)names;
    Py_RETURN_NONE;
}

static PyObject *floor_make(PyObject *self, PyObject *arg) {
    (void)self, (void)arg;
    return (PyObject *)PyObject_New(Bare, &BareType);
}

/* As the above, where the interpreter has less to pass: what take() and put() would be. */
static PyObject *floor_take(PyObject *self, PyObject *none) {
    (void)none;
    return Py_NewRef(self);
}

static PyObject *floor_put(PyObject *self, PyObject *arg) {
    (void)self, (void)arg;
    Py_RETURN_NONE;
}

static PyMethodDef floor_methods[] = {
    {"take", floor_take, METH_NOARGS, "Itself."},
    {"put", floor_put, METH_O, "Does nothing."},
    {"noop", (PyCFunction)(void (*)(void))floor_noop, METH_FASTCALL | METH_KEYWORDS, "Does nothing."},
    {"make", floor_make, METH_O, "Makes a bare object."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject FloorType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "_floor.Floor",
    .tp_basicsize = sizeof(PyObject),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_methods = floor_methods,
    .tp_new = PyType_GenericNew,
};

static void touch(char *data, size_t bytes) {
    for (volatile char *p = data, *end = p + bytes; p < end; p += 4096) *p = 1;
}

static PyObject *touch_buffer(PyObject *module, PyObject *obj) {
    Py_buffer view;
    (void)module;
    if (PyObject_GetBuffer(obj, &view, PyBUF_WRITABLE) < 0) return NULL;
    touch(view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

/* NumPy's export of a buffer costs more than all the rest, so here its arrays are spared it: the pointer to the data is the
 * first field of PyArrayObject, and the shape the third. */
struct array_fields {
    PyObject_HEAD
    char *data;
    int nd;
    Py_ssize_t *dimensions;
};

static PyObject *touch_doubles(PyObject *module, PyObject *obj) {
    struct array_fields *a = (struct array_fields *)obj;
    (void)module;
    touch(a->data, (size_t)a->dimensions[0] * 8);
    Py_RETURN_NONE;
}

static PyObject *touch_bytearray(PyObject *module, PyObject *obj) {
    (void)module;
    touch(PyByteArray_AS_STRING(obj), (size_t)PyByteArray_GET_SIZE(obj));
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"touch_buffer", touch_buffer, METH_O, "Writes a byte per page of a buffer."},
    {"touch_doubles", touch_doubles, METH_O, "The same for a one-dimensional NumPy array of doubles."},
    {"touch_bytearray", touch_bytearray, METH_O, "The same for a bytearray."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_floor", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__floor(void) {
    /* Only ever used from one thread at a time, so a free-threaded interpreter need not take its GIL back for it. */
    if (PyType_Ready(&BareType) < 0 || PyType_Ready(&FloorType) < 0) return NULL;
    PyObject *m = PyModule_Create(&module);
    if (m && (PyModule_AddObjectRef(m, "Floor", (PyObject *)&FloorType) < 0 ||
              PyModule_AddObjectRef(m, "Bare", (PyObject *)&BareType) < 0))
        Py_CLEAR(m);
#ifdef Py_GIL_DISABLED
    if (m) PyUnstable_Module_SetGIL(m, Py_MOD_GIL_NOT_USED);
#endif
    return m;
}
