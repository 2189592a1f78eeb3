"""The command line: each verb parses, calls, writes."""
