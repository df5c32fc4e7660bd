"""Object stores (S3) for `storage.filesystem`: connection, reads, uploads, faults."""
