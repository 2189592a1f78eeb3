"""Files that are whole or not there: plain data, the cache, and states of runs; none of them runs code."""
