"""What is typed, one file a command. Nobody but ``__main__`` comes in here; help, words, keys and recipes answer without torch."""
