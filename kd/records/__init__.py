"""Records: conversations with tool calls, read from files of any format and checked line by line."""
