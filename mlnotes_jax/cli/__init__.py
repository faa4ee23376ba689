"""The command line `mlnotes`."""
