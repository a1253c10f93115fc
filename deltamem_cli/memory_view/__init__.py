"""What a memory looks like, as numbers, cells and pictures; knows no database, no model and no terminal."""
