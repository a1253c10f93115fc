"""A server and the commands of the same user: where they meet, and what they say."""
