"""One module per benchmark; `prunegym benchmark NAME` runs it."""
