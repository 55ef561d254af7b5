"""How a table is written: one small module a format, each from the frame that `table` made."""
