"""The object store behind `storage.filesystem`: connection, reads, uploads, faults."""
