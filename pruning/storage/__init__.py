"""Write compressed networks to disk and read them back; export them for other runtimes."""
