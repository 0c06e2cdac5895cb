"""The table of the kernel patch that brought MADV_POPULATE (2021), made again: ``python bench/patch2021``."""
