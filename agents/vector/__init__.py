"""Several environments side by side: in this process, in forks, or on a Ray cluster."""
