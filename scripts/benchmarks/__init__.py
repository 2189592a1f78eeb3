"""One module per benchmark; `secateur benchmark NAME` runs it."""
