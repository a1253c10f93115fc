"""Pictures as shapes, and the files they become; knows nothing of memory."""
