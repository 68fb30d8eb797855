"""The peers, each a program that reads requests, answers them, and commits what has been acknowledged."""
