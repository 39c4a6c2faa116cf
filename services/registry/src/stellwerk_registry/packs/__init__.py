"""Many small blobs in one object."""
