"""Read and write files in object stores: S3, Google Cloud Storage, Azure Blob Storage and folders, through fsspec."""
