"""The verb `export-dicom`."""
