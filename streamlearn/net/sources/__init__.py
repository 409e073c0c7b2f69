"""Sources: objects of stores (files, HTTP, S3, pipes) as replayable partitions of plain blocks."""
