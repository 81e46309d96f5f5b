"""Cache of a teacher's targets on disk: format, writer, reader; files addressed by content and checked byte by byte."""
