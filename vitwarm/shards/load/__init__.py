"""Loading pixels: from rows to micro-batches, made in worker processes."""
