"""The file formats that adapters and models come in."""
