"""What people read: counted nouns, tables, lists of problems, HTML pages and progress bars."""
