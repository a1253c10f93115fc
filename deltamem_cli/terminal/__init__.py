"""What draws and reads a terminal; knows no command."""
