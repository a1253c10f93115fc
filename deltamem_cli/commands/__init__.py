"""One file per verb of the command line; nothing below this layer prints."""
