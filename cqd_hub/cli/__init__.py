"""The command line: thin, one module per verb family. Data on stdout, everything else on stderr."""
